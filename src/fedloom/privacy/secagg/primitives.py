"""The cryptography that secure aggregation is made of; every primitive is that of the ``cryptography`` package.

X25519 agrees on a secret with each neighbour, HKDF-SHA256 makes keys of it that are good for one purpose in one round,
AES-256-GCM encrypts shares, AES-256 in counter mode expands a key to a mask, Ed25519 signs.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedloom.errors import DataError, MissingDependency, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

Draw = Callable[[int], bytes]
"""Returns so many random bytes; ``secrets.token_bytes`` everywhere but in tests."""

KEY_SIZE, SEAL_SIZE = 32, 64
CIPHER_OVERHEAD = 16

_CHUNK = 1 << 18  # bytes: the key stream and the part of the vector stay in the cache
_ZEROS = memoryview(bytes(_CHUNK))
_NONCE = bytes(12)  # each key encrypts exactly one message, so the nonce may be fixed


def check_installed() -> None:
    """Check that the ``cryptography`` package is there.

    Raises:
        MissingDependency: It is not.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingDependency.of("cryptography", "privacy", "secure aggregation") from None


def identity(draw: Draw) -> tuple[bytes, bytes]:
    """Make a client's identity.

    Returns:
        The private and the public Ed25519 key, 32 bytes each.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = draw(KEY_SIZE)
    return private, Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def seal(private: bytes | None, context: bytes, data: bytes) -> bytes:
    """Return 64 bytes that bind ``data`` to ``context``: an Ed25519 signature; without a private key a checksum.

    The checksum stops accidents, not people.
    """
    digest = _digest(context, data)
    if private is None:
        return hashlib.sha512(digest).digest()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).sign(digest)


def sealed(public: bytes | None, context: bytes, data: bytes, found: bytes) -> bool:
    """Say whether ``found`` is the seal of ``data`` by the owner of a public key (None: the checksum)."""
    digest = _digest(context, data)
    if public is None:
        return found == hashlib.sha512(digest).digest()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(found, digest)
    except InvalidSignature:
        return False
    return True


def check_identity(private: bytes | None, public: bytes | None, client: int) -> None:
    """Check that a private key belongs to the public one that everybody knows.

    Raises:
        UsageError: It does not, or one of the two is missing.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if private is None and public is None:
        return
    if private is None or public is None:
        missing = "private key" if private is None else "public key in the configuration"
        raise UsageError(f"client {client}: its identity has no {missing}", client=client)
    if (
        len(private) != KEY_SIZE
        or Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() != public
    ):
        raise UsageError(f"client {client}: its private identity key does not belong to the public one", client=client)


def public_of(private: bytes) -> bytes:
    """Return the public X25519 key of a private one."""
    return _x25519(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, context: bytes, purpose: str, *numbers: int) -> bytes:
    """Return the 32-byte key that the owners of two X25519 keys share for one purpose.

    HKDF-SHA256 of the agreed secret; salt: ``context``; info: the purpose and the numbers.

    Raises:
        DataError: The public key is one of the few with which nothing can be agreed.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        secret = _x25519(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise DataError("a client's public key is not usable (a point of small order); it was made up") from None
    return derive(secret, context, purpose, *numbers)


def derive(secret: bytes, context: bytes, purpose: str, *numbers: int) -> bytes:
    """Return the 32-byte key of a secret for one purpose, see :func:`agree`."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = b"fedloom secagg 1 " + purpose.encode() + struct.pack(f"<{len(numbers)}I", *numbers)
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=context, info=info).derive(secret)


def encrypt(key: bytes, plain: bytes, about: bytes) -> bytes:
    """Encrypt with AES-256-GCM under a key that is used this once; ``about`` is bound to it, not hidden."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key).encrypt(_NONCE, plain, about)


def decrypt(key: bytes, cipher: bytes, about: bytes) -> bytes:
    """Undo :func:`encrypt`.

    Raises:
        DataError: It was changed on the way, or is from or for someone else.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(_NONCE, cipher, about)
    except InvalidTag:
        raise DataError("an encrypted share was changed on the way, or is not for this client and round") from None


def add_mask(total: NDArray[np.unsignedinteger], key: bytes, sign: int) -> None:
    """Add a key's mask to ``total``, or subtract it, in place.

    The mask is the AES-256-CTR key stream from counter 0, read as little-endian numbers of the type of ``total``.

    Args:
        total: uint32 or uint64, contiguous; sums wrap around.
        key: 32 bytes, used for this mask only.
        sign: 1 or -1.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(_CHUNK + 15)
    numbers = np.frombuffer(buffer, dtype=total.dtype.newbyteorder("<"), count=_CHUNK // total.itemsize)
    apply = np.add if sign > 0 else np.subtract
    for start in range(0, total.size, numbers.size):
        part = total[start : start + numbers.size]
        stream.update_into(_ZEROS[: part.nbytes], buffer)
        apply(part, numbers[: part.size], out=part)


def _digest(context: bytes, data: bytes) -> bytes:
    digest = hashlib.sha256(b"fedloom secagg seal" + context)
    digest.update(data)  # without a copy: a masked vector is large
    return digest.digest()


def _x25519(private: bytes) -> X25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private)
