"""Certificates that somebody else has made: whether a server can show them, said before anybody calls."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from fedloom.deploy.trust import secret_files
from fedloom.deploy.trust.invitation import PUBLIC, Invitation
from fedloom.errors import DataError


def read(path: Path) -> bytes:
    """Read a file in the PEM format.

    Raises:
        DataError: It is missing, or in another format.
    """
    data = secret_files.read(path)
    if data is None:
        raise DataError(f"{path}: no such file", file=str(path))
    if b"-----BEGIN " not in data:
        raise DataError(f"{path}: not in the PEM format (text that begins with -----BEGIN)", file=str(path))
    return data


def authority(path: Path) -> bytes:
    """Read the certificates of an authority.

    Raises:
        DataError: They are missing, or cannot be read.
    """
    from cryptography import x509

    data = read(path)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        found = []
    if not found:
        raise DataError(f"{path}: holds no certificate that can be read", file=str(path))
    return data


def names(key_path: Path, key: bytes, chain_path: Path, chain: bytes) -> list[str]:
    """Check that a private key and a certificate chain belong together, and can be used now.

    Returns:
        What the certificate is for: names and addresses.

    Raises:
        DataError: They cannot.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        private = load_pem_private_key(key, None)
    except TypeError as error:
        raise DataError(
            f"{key_path}: the key is encrypted, and a server that starts by itself knows no password: write it without one "
            f"(openssl pkey -in {key_path.name} -out plain.pem, readable by its owner alone)",
            file=str(key_path),
        ) from error
    except ValueError as error:
        raise DataError(f"{key_path}: holds no private key that can be read", file=str(key_path)) from error
    try:
        shown = x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, IndexError) as error:
        raise DataError(f"{chain_path}: holds no certificate that can be read", file=str(chain_path)) from error
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != shown.public_key().public_bytes(*form):
        raise DataError(
            f"{key_path} is not the key of the first certificate in {chain_path}: the server's own comes first there, then "
            "those that signed it",
            file=str(key_path),
        )
    now = dt.datetime.now(dt.UTC)
    if not shown.not_valid_before_utc <= now <= shown.not_valid_after_utc:
        first, last = (f"{when:%Y-%m-%d}" for when in (shown.not_valid_before_utc, shown.not_valid_after_utc))
        raise DataError(
            f"{chain_path}: valid from {first} to {last}, and today is {now:%Y-%m-%d}: get a new certificate",
            file=str(chain_path),
        )
    try:
        known = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return [*known.get_values_for_type(x509.DNSName), *map(str, known.get_values_for_type(x509.IPAddress))]


def untrusted(invitation: Invitation, said: str) -> str:
    """Say why a client does not trust the certificate of a server; ``said`` are gRPC's words."""
    if invitation.pin != PUBLIC:
        return f"{invitation.address} is not the server that the invitation is for"
    found = said.partition("CERTIFICATE_VERIFY_FAILED")[2].lstrip(": ").partition(":")[0].strip()
    return (
        f"the certificate of {invitation.address} is not trusted here ({found or 'it is for another name'}): where it is "
        "your organisation's, pass --authority FILE; where it is expired or for another name, tell who runs the server"
    )
