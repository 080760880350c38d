"""TLS without a certificate authority to pay: the server makes its own on its first start, and invitations name it.

The server's certificate carries the authority's in an extension, so that a client can fetch it, compare its
fingerprint with that of the invitation, and trust nothing else from then on.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedloom.deploy.seam import Refused, Unreachable
from fedloom.deploy.trust import given, secret_files
from fedloom.deploy.trust.identity import check_installed, context_of
from fedloom.deploy.trust.invitation import PUBLIC
from fedloom.errors import DataError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SERVER_NAME = "fedloom.invalid"
"""What the server's certificate is for, wherever it runs: who has the fingerprint need not trust names."""

SERVER_FILE = "server.pem"
"""The server's own key and certificate, in the folder of :meth:`Certificates.own`."""

_EXTENSION = "2.25.219373528014829203750214871230984417"  # the authority's certificate, DER
_SKEW = dt.timedelta(days=30)  # clocks of laptops are wrong
_AUTHORITY_DAYS, _SERVER_DAYS, _RENEW_DAYS = 3650, 365, 60


@dataclass(frozen=True)
class Certificates:
    """What a server shows.

    Attributes:
        key: Its private key, PEM.
        chain: Its certificate, and those that lead to the authority, PEM.
        pin: The fingerprint of the authority, in hex; :data:`PUBLIC` where the client's system knows it.
        names: What clients may call the server, where the fingerprint does not say which server it is.
    """

    key: bytes = field(repr=False)
    chain: bytes
    pin: str
    names: tuple[str, ...] = ()

    @property
    def contexts(self) -> list[bytes]:
        """What clients' signatures may be bound to."""
        return [context_of(self.pin, name) for name in self.names or ("",)]

    @classmethod
    def own(cls, folder: str | Path) -> Self:
        """Return the certificates of a server that is its own authority; they are made when there are none.

        The server's certificate is made anew 60 days before it ends; the fingerprint stays.

        Raises:
            MissingDependency: The ``cryptography`` package is not installed.
            DataError: A file is damaged.
            StorageError: They cannot be read or written.
        """
        check_installed()
        folder = Path(folder)
        found = _read(folder / "authority.pem")
        if found is None:
            found = _authority()
            secret_files.write(folder / "authority.pem", _pem(*found))
        key, authority = found
        server = _read(folder / SERVER_FILE)
        if server is None or not _good(server[1], authority):
            server = _server(key, authority)
            secret_files.write(folder / SERVER_FILE, _pem(*server))
        return cls(_key_pem(server[0]), _certificate_pem(server[1]), fingerprint(_der(authority)))

    @classmethod
    def given(cls, key: str | Path, chain: str | Path, name: str) -> Self:
        """Return certificates that a public authority, or the organisation's own, has issued.

        Args:
            key: The file of the private key, PEM.
            chain: The file of the certificates, PEM.
            name: What invitations call the server; it may be another one of those that a wildcard stands for.

        Raises:
            DataError: A file is missing or damaged, the key is another's or encrypted, or the certificate is not valid now.
        """
        check_installed()
        parts = [given.read(path) for path in (Path(key), Path(chain))]
        names = given.names(Path(key), parts[0], Path(chain), parts[1])
        return cls(parts[0], parts[1], PUBLIC, (name, *names))


def fingerprint(der: bytes) -> str:
    """Return the SHA-256 of a certificate, in hex."""
    return hashlib.sha256(der).hexdigest()


def fetch_authority(host: str, port: int, pin: str, timeout: float = 10.0) -> bytes:
    """Fetch the certificate of a server's authority, and check its fingerprint.

    Nothing is sent before that check, and the certificate proves nothing by itself: the connection that follows
    has to be signed by it.

    Returns:
        The certificate, PEM.

    Raises:
        Unreachable: Nobody answers there.
        Refused: It is another server than the one that the invitation is for.
    """
    check_installed()
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), timeout=timeout) as plain:
            shown = _shown(plain, context)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:  # it stops, or has just begun
        raise Unreachable(f"{host}:{port} hung up: is the server running?") from error
    except ssl.SSLError as error:
        raise Refused(f"{host}:{port} does not speak TLS ({error.reason}): is it a server of fedloom?") from error
    except OSError as error:
        raise Unreachable(f"{host}:{port} cannot be reached ({error}): is the server running?") from error
    try:
        certificate = x509.load_der_x509_certificate(shown)
        value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(_EXTENSION)).value
        der = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
        if fingerprint(der) == pin:
            authority = x509.load_der_x509_certificate(der)
            certificate.verify_directly_issued_by(authority)
            return _certificate_pem(authority)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension):
        pass
    raise Refused(
        f"{host}:{port} is not the server that the invitation is for: its fingerprint is another. "
        "Somebody may be in between; ask for a new invitation, and do not go on if that fails too"
    )


def _shown(plain: socket.socket, context: ssl.SSLContext) -> bytes:
    """Shake hands, and return the certificate that the server shows; ``wrap_socket`` leaks a socket that was reset before."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = context.wrap_bio(incoming, outgoing, server_hostname=SERVER_NAME)
    while True:
        try:
            talk.do_handshake()
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            data = plain.recv(1 << 14)
            if data:
                incoming.write(data)
            else:
                incoming.write_eof()
            continue
        plain.sendall(outgoing.read())
        return talk.getpeercert(binary_form=True) or b""


def _authority() -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("fedloom authority", "fedloom authority", key, _AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return key, _sign(builder, key)


def _server(
    authority_key: EllipticCurvePrivateKey, authority: x509.Certificate
) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder("fedloom server", "fedloom authority", key, _SERVER_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    carried = x509.UnrecognizedExtension(x509.ObjectIdentifier(_EXTENSION), _der(authority))
    return key, _sign(builder.add_extension(carried, critical=False), authority_key)


def _builder(subject: str, issuer: str, key: EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _sign(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives.hashes import SHA256

    return builder.sign(key, SHA256())


def _good(server: x509.Certificate, authority: x509.Certificate) -> bool:
    """Say whether a server's certificate is of this authority and will last."""
    from cryptography.exceptions import InvalidSignature

    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return server.not_valid_after_utc > dt.datetime.now(dt.UTC) + dt.timedelta(days=_RENEW_DAYS)


def _read(path: Path) -> tuple[EllipticCurvePrivateKey, x509.Certificate] | None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = secret_files.read(path)
    if data is None:
        return None
    try:
        key, certificate = load_pem_private_key(data, None), x509.load_pem_x509_certificate(data)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged; move it away to make a new one", file=str(path)) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise DataError(f"{path}: damaged; move it away to make a new one", file=str(path))
    return key, certificate


def _pem(key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    return _key_pem(key) + _certificate_pem(certificate)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)
