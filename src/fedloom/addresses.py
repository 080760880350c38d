"""Addresses: where a program of this machine listens, and what others call it."""

from __future__ import annotations

import ipaddress
import socket

from fedloom.errors import UsageError


def split(address: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 address stands in brackets, and loses them.

    Raises:
        UsageError: There is no port, or no such port.

    Example:
        >>> split("0.0.0.0:8443"), split("[::1]:80")
        (('0.0.0.0', 8443), ('::1', 80))
    """
    name, colon, port = address.rpartition(":")
    name = name.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or not name or int(port) > 65535:
        raise UsageError(f"--listen {address}: an address and a port are expected, such as 0.0.0.0:8443")
    return name, int(port)


def joined(host: str, port: int) -> str:
    """Undo :func:`split`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound(host: str, port: int) -> socket.socket:
    """Listen on an address of this machine; port 0 for any that is free.

    Raises:
        UsageError: It is none, or is in use.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--listen {joined(host, port)}: no such address ({error})") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(256)
    except OSError as error:
        sock.close()
        where = joined(host, port)
        raise UsageError(f"cannot listen on {where}: {error.strerror}; take another port with --listen") from error
    return sock


def is_loopback(host: str) -> bool:
    """Say whether a host's name, with brackets or without, means this machine and nothing else.

    Example:
        >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("0.0.0.0")
        (True, True, True, False)
    """
    name = host.removeprefix("[").removesuffix("]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def own_address() -> str:
    """Return the address that others in this network know this machine by; nothing is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
