"""The first bytes of a connection: whether it is a browser that calls, or a client of a run.

Both come to the same port. A browser (and curl, and Prometheus) says in its TLS greeting that it speaks HTTP/1.1, and a
simple script says nothing; gRPC offers HTTP/2 alone, and its servers refuse who does not. RFC 8446, section 4.1.2
(ClientHello), and RFC 7301 (ALPN).
"""

from __future__ import annotations

import re

WEB, CLIENTS = "web", "clients"

MOST = 1 << 15
"""A greeting that is not over after so many bytes is none of a browser."""

_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16
_RECORD, _MESSAGE = 5, 4
_METHOD = re.compile(rb"[A-Z]{1,16} ")
_PREFACE = b"PRI * HTTP/2.0"


def route(data: bytes) -> str | None:
    """Say who calls: :data:`WEB`, :data:`CLIENTS`, or None while more bytes are needed to tell.

    Example:
        >>> route(b"GET / HTTP/1.1"), route(b"PRI * HTTP/2.0"), route(b"PR")
        ('web', 'clients', None)
    """
    if not data:
        return None
    found = _secure(data) if data[0] == _HANDSHAKE else _plain(data)
    return CLIENTS if found is None and len(data) >= MOST else found


def _plain(data: bytes) -> str | None:
    if data.startswith(_PREFACE[: len(data)]):
        return CLIENTS if len(data) >= len(_PREFACE) else None
    if _METHOD.match(data):
        return WEB
    return None if len(data) <= 16 and data.isalpha() and data.isupper() else CLIENTS


def _secure(data: bytes) -> str | None:
    message, whole = _message(data)
    if message is None:
        return CLIENTS
    if len(message) < _MESSAGE:
        return CLIENTS if whole else None
    length = int.from_bytes(message[1:_MESSAGE], "big")
    if message[0] != _CLIENT_HELLO or length > MOST:
        return CLIENTS
    if len(message) < _MESSAGE + length:
        return CLIENTS if whole else None
    offered = protocols(message[_MESSAGE : _MESSAGE + length])
    return CLIENTS if offered and not any(name.startswith(b"http/1") for name in offered) else WEB


def _message(data: bytes) -> tuple[bytes | None, bool]:
    """Put a handshake message together that came in several records; the flag says that no more can follow."""
    parts: list[bytes] = []
    place = 0
    while place + _RECORD <= len(data):
        kind, major = data[place], data[place + 1]
        length = int.from_bytes(data[place + 3 : place + _RECORD], "big")
        if major != 3 or length > 1 << 14:
            return None, True
        if kind != _HANDSHAKE or not length:
            return b"".join(parts), True
        parts.append(data[place + _RECORD : place + _RECORD + length])
        place += _RECORD + length
    return b"".join(parts), False


def protocols(hello: bytes) -> list[bytes]:
    """Return the protocols that a ClientHello offers by ALPN; nothing where it is damaged or offers none."""
    place = 2 + 32  # version, random
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        place += width + int.from_bytes(hello[place : place + width], "big")
    place += 2
    while place + 4 <= len(hello):
        kind = int.from_bytes(hello[place : place + 2], "big")
        length = int.from_bytes(hello[place + 2 : place + 4], "big")
        if kind == _ALPN:
            return _names(hello[place + 4 : place + 4 + length])
        place += 4 + length
    return []


def _names(extension: bytes) -> list[bytes]:
    found, place = [], 2
    while place < len(extension):
        length = extension[place]
        name = extension[place + 1 : place + 1 + length]
        if not length or len(name) < length:
            return []
        found.append(name)
        place += 1 + length
    return found
