"""An invitation: where the server is, how to know that it is the right one, and what lets a client in, as one text."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass, field
from typing import Self

from fedloom.addresses import is_loopback, joined
from fedloom.deploy.trust.identity import context_of
from fedloom.errors import UsageError

TOKEN = 16
"""The length of a token, in bytes."""
INSECURE, PUBLIC = "insecure", "public"
"""In place of a fingerprint: no TLS (on this machine only), and a certificate that the system trusts."""

_PIN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Invitation:
    """What a client needs to join.

    Attributes:
        host: A name or an address.
        port: From 1 to 65535.
        pin: SHA-256 of the authority's certificate, in hex; :data:`INSECURE` or :data:`PUBLIC`.
        token: What lets a client in once, 16 bytes; empty for one that the server knows already.

    Raises:
        UsageError: One of them is not what it should be.
    """

    host: str
    port: int
    pin: str
    token: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """Check the parts."""
        if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", self.host):
            raise UsageError(f"'{self.host[:80]}' is no name or address of a machine")
        if not 0 < self.port < 1 << 16:
            raise UsageError(f"there is no port {self.port}; use one from 1 to 65535")
        if self.pin not in (INSECURE, PUBLIC) and not _PIN.fullmatch(self.pin):
            raise UsageError("an invitation's fingerprint has 64 hexadecimal digits")
        if len(self.token) not in (0, TOKEN):
            raise UsageError(f"an invitation's token has {TOKEN} bytes")
        if self.pin == INSECURE and not is_loopback(self.host):
            raise UsageError(
                f"{self.host}: without TLS only this machine (127.0.0.1) can be reached: others could read along"
            )

    @property
    def address(self) -> str:
        """``host:port``, with brackets around an IPv6 address."""
        return joined(self.host, self.port)

    @property
    def context(self) -> bytes:
        """What a client's signatures are bound to."""
        return context_of(self.pin, self.host if self.pin == PUBLIC else "")

    def text(self) -> str:
        """Return the text to hand out.

        Example:
            >>> Invitation("127.0.0.1", 8443, "insecure", bytes(16)).text()
            '127.0.0.1:8443/insecure/AAAAAAAAAAAAAAAAAAAAAA/b2224caf'
        """
        pin = self.pin if self.pin in (INSECURE, PUBLIC) else _letters(bytes.fromhex(self.pin))
        body = f"{self.address}/{pin}/{_letters(self.token)}"
        return f"{body}/{zlib.crc32(body.encode()):08x}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what :meth:`text` wrote.

        Raises:
            UsageError: It is no invitation, or was copied badly.
        """
        body, _, check = text.strip().rpartition("/")
        parts = body.split("/")
        if len(parts) != 3 or len(text) > 500:
            raise UsageError("this is no invitation: copy the whole line that 'fedloom serve' printed, in one piece")
        if f"{zlib.crc32(body.encode()):08x}" != check:
            raise UsageError("the invitation was not copied as it is: a letter is missing or changed; copy it again")
        host, _, port = parts[0].rpartition(":")
        if not re.fullmatch(r"[0-9]{1,5}", port):
            raise UsageError(f"the invitation's address '{parts[0][:80]}' has no port")
        pin = parts[1] if parts[1] in (INSECURE, PUBLIC) else _bytes(parts[1]).hex()
        return cls(host.removeprefix("[").removesuffix("]"), int(port), pin, _bytes(parts[2]))


def _letters(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError("the invitation has letters that do not belong there; copy it again") from error
    if _letters(data) != text:
        raise UsageError("the invitation has letters that do not belong there; copy it again")
    return data
