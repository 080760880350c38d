"""Certificates that an organisation has issued: who trusts them, and what signatures are bound to then."""

from __future__ import annotations

import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from loopback import Desk

from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.protocol.messages import Open, encode
from fedloom.deploy.seam import Refused
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.identity import Keys, context_of
from fedloom.deploy.trust.invitation import PUBLIC, Invitation
from fedloom.deploy.trust.sessions import Sessions
from fedloom.deploy.trust.tls import Certificates

KEYS = Keys.make()


def issued(folder, *names) -> tuple[Certificates, bytes]:
    """A server's certificates for some names, and the authority that has issued them."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    now = dt.datetime.now(dt.UTC)

    def made(subject, owner):
        name = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, "our authority")]
        made = x509.CertificateBuilder().subject_name(name[0]).issuer_name(name[1]).public_key(owner.public_key())
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(days=1))
        return made.not_valid_after(now + dt.timedelta(days=30))

    authority = made("our authority", authority_key).add_extension(x509.BasicConstraints(True, None), critical=True)
    shown = made("a server", key)
    if names:
        texts = [x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
        shown = shown.add_extension(x509.SubjectAlternativeName(texts), critical=False)
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "chain.pem").write_bytes(shown.sign(authority_key, SHA256()).public_bytes(Encoding.PEM))
    given = Certificates.given(folder / "key.pem", folder / "chain.pem", "learn.fedloom.test")
    return given, authority.sign(authority_key, SHA256()).public_bytes(Encoding.PEM)


def test_clients_reach_a_server_by_every_name_in_its_certificate(tmp_path):
    certificates, authority = issued(tmp_path, "localhost", "127.0.0.1")
    desk = Desk()
    listener = listen(desk, Admission(tmp_path / "clients.json"), "127.0.0.1:0", certificates)
    try:
        for number, host in enumerate(("localhost", "127.0.0.1", "LocalHost")):
            invitation = Invitation.parse(listener.invite(host).text())
            assert invitation.pin == PUBLIC
            channel = connect(invitation, Keys.make(), f"c{number}", authority=authority)
            channel.heartbeat("here")
            channel.close()
        assert [call[:2] for call in desk.calls] == [("heartbeat", f"c{number}") for number in range(3)]
        (tmp_path / "other").mkdir()
        _, other = issued(tmp_path / "other", "localhost")
        with pytest.raises(Refused, match="not trusted here"):
            connect(listener.invite("localhost"), Keys.make(), "lea", authority=other)
    finally:
        listener.stop(0.0)


def test_what_a_client_signs_for_one_server_is_worth_nothing_at_another(tmp_path):
    """Both have certificates that the client trusts, and the second one passes on what it gets."""
    certificates, _ = issued(tmp_path, "learn.fedloom.test")
    admission = Admission(tmp_path / "clients.json")
    sessions, token = Sessions(admission, certificates.contexts), admission.invite()

    def passed_on(host: str) -> str:
        data = encode(Open(sessions.challenge(), KEYS.public, "ana", token))
        return sessions.open(data + KEYS.sign(Invitation(host, 8443, PUBLIC, token).context, data), "here").name

    for host in ("evil.test", "fedloom.test", "x.learn.fedloom.test"):
        with pytest.raises(Refused, match="signature is wrong"):
            passed_on(host)
    assert passed_on("Learn.fedloom.test") == "ana"


@pytest.mark.parametrize("names", [("*.fedloom.test",), (), ("other.test", "10.0.0.7")])
def test_the_name_in_invitations_counts_beside_those_in_the_certificate(tmp_path, names):
    certificates, _ = issued(tmp_path, *names)
    assert set(certificates.contexts) == {context_of(PUBLIC, name) for name in ("learn.fedloom.test", *names)}
