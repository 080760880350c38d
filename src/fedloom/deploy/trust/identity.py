"""Who a client is: an Ed25519 key pair, made when it joins for the first time; the server knows the public half."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fedloom.deploy.trust import secret_files
from fedloom.errors import DataError, MissingDependency
from fedloom.privacy.secagg import primitives

SIGNATURE = primitives.SEAL_SIZE
KEY = primitives.KEY_SIZE

_MAGIC = b"fedloom identity 1\n"


@dataclass(frozen=True)
class Keys:
    """A client's key pair, 32 bytes each; the private one never leaves the machine."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def make(cls) -> Self:
        """Make a new pair from the operating system's randomness.

        Raises:
            MissingDependency: The ``cryptography`` package is not installed.
        """
        check_installed()
        return cls(*primitives.identity(secrets.token_bytes))

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """Read the pair that a file holds; where there is none, make one and write it, for its owner's eyes only.

        Raises:
            DataError: The file holds something else.
            StorageError: It cannot be read or written.
        """
        path = Path(path)
        found = secret_files.read(path)
        if found is None:
            made = cls.make()
            secret_files.write(path, _MAGIC + made.private.hex().encode() + b"\n")
            return made
        check_installed()
        text = found.removeprefix(_MAGIC).strip()
        if not found.startswith(_MAGIC) or len(text) != 2 * KEY or not set(text) <= set(b"0123456789abcdef"):
            raise DataError(f"{path}: no key of fedloom; move the file away to join as somebody new", file=str(path))
        private = bytes.fromhex(text.decode())
        return cls(*primitives.identity(lambda _: private))

    def sign(self, context: bytes, data: bytes) -> bytes:
        """Return 64 bytes that only the owner of this pair can make for ``data``."""
        return primitives.seal(self.private, context, data)


def signed(public: bytes, context: bytes, data: bytes, signature: bytes) -> bool:
    """Say whether the owner of a public key signed ``data`` in this ``context``."""
    return len(public) == KEY and len(signature) == SIGNATURE and primitives.sealed(public, context, data, signature)


def context_of(pin: str, host: str = "") -> bytes:
    """Return what signatures are bound to: the server that they are meant for, so that no other can pass them on.

    Args:
        pin: Its fingerprint, or what stands in its place.
        host: Its name in its certificate, where it has no fingerprint of its own.
    """
    return hashlib.sha256(b"\n".join((b"fedloom network 1", pin.encode(), host.casefold().encode()))).digest()


def check_installed() -> None:
    """Check that ``cryptography`` is there.

    Raises:
        MissingDependency: It is not.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingDependency.of("cryptography", "network", "a federation over the network") from None
