"""``fedloom serve`` and ``fedloom join``, typed wrongly: one line, an exit code, and not one file left behind."""

from __future__ import annotations

import datetime as dt
import socket

import pytest

pytest.importorskip("grpc")
pytest.importorskip("cryptography")

EXPERIMENT = "[data]\nsource='digits'\nclients=2\n[sampling]\nscheme='all'\n[model]\nname='2nn'\n[run]\nrounds=2\n"
SERVE = ("serve", "exp.toml", "--listen", "127.0.0.1:0", "--quiet")
BODY = "127.0.0.1:1/insecure/AAAAAAAAAAAAAAAAAAAAAA"
INVITATION = f"{BODY}/9aeced9b"


@pytest.fixture
def here(empty):
    (empty / "exp.toml").write_text(EXPERIMENT)
    return empty


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, ("--deadline", "above 0"), ("--deadline", "-1")),
        (2, ("--deadline", "nan"), ("--deadline", "nan")),
        (2, ("--away",), ("--away", "-5")),
        (2, ("--quorum", "1 update"), ("--quorum", "0")),
        (2, ("--quorum 5", "only 2 clients"), ("--quorum", "5")),
        (2, ("--norm-bound",), ("--norm-bound", "-1")),
        (3, ("missing.npz", "no such file"), ("--test", "missing.npz")),
        (2, ("unknown model 'nomodel'",), ("--set", "model.name=nomodel")),
        (2, ("no such", "name or address"), ("--address", "no such name!")),
        (2, ("without TLS",), ("--insecure", "--listen", "0.0.0.0:0")),
        (2, ("--listen", "an address and a port"), ("--listen", "nonsense")),
        (2, ("--listen", "an address and a port"), ("--listen", "127.0.0.1:99999")),
        (2, ("cannot listen on 203.0.113.5",), ("--listen", "203.0.113.5:8443")),
        (2, ("go together",), ("--certificate", "c.pem")),
        (2, ("--insecure goes without",), ("--insecure", "--certificate", "c.pem", "--key", "k.pem")),
        (3, ("k.pem", "no such file"), ("--certificate", "c.pem", "--key", "k.pem")),
    ],
)
def test_serve_says_what_is_wrong_and_leaves_nothing(here, refuse, code, words, more):
    refuse(code, words, *SERVE, "--out", "run", *more)
    assert not (here / "run").exists()


def test_a_port_that_is_taken_leaves_nothing(here, refuse):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refuse(2, ("cannot listen", str(port)), "serve", "exp.toml", "--out", "run", "--listen", f"127.0.0.1:{port}")


def test_a_test_set_of_another_shape_is_said_before_anybody_joins(here, refuse, digits):
    import numpy as np

    np.savez(here / "other.npz", x=digits[0][:, :6, :6], y=digits[1])
    refuse(3, ("other.npz", "(6, 6)", "(8, 8)"), *SERVE, "--test", "other.npz")


def test_a_model_that_cannot_be_made_is_said_before_anybody_joins(here, refuse):
    (here / "net.py").write_text("def make():\n    raise ValueError('no such layer')\n")
    refuse(4, ("net.py", "no such layer"), *SERVE, "--set", "model.name=net.py:make")


@pytest.mark.parametrize(
    ("code", "words", "more"),
    [
        (2, ("no invitation",), ("127.0.0.1:8443", "--data", "digits")),
        (2, ("no invitation",), ("", "--data", "digits")),
        (2, ("a letter is missing or changed",), (INVITATION[:-2], "--data", "digits")),
        (2, ("a letter is missing or changed",), (f"{BODY[:-1]}B/9aeced9b", "--data", "digits")),
        (3, ("missing.npz", "no such file"), (INVITATION, "--data", "missing.npz")),
        (2, ("--patience", "nan"), (INVITATION, "--data", "digits", "--patience", "nan")),
        (2, ("tpu",), (INVITATION, "--data", "digits", "--device", "tpu")),
        (2, ("--data",), (INVITATION,)),
    ],
)
def test_join_says_what_is_wrong_and_leaves_nothing(here, refuse, code, words, more):
    refuse(code, words, "join", *more, "--yes", "--quiet", "--state", here / "state")


def test_an_authority_goes_with_a_certificate_of_ones_own(here, refuse):
    words = ("--authority", "in the invitation")
    refuse(2, words, "join", INVITATION, "--data", "digits", "--quiet", "--authority", "ca.pem", "--state", here / "s")


def pair(folder, name: str, first: int, last: int, password: bytes | None = None) -> None:
    """Write a key and a certificate that is valid from so many days from now to so many."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    made = x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key()).serial_number(1)
    made = made.not_valid_before(now + dt.timedelta(days=first)).not_valid_after(now + dt.timedelta(days=last))
    hidden = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    pem = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("good.pem", "old.key", ("old.key is not the key of the first certificate in good.pem",)),
        ("old.pem", "old.key", ("old.pem", "get a new certificate")),
        ("young.pem", "young.key", ("young.pem", "get a new certificate")),
        ("hidden.pem", "hidden.key", ("hidden.key", "encrypted", "openssl pkey")),
        ("junk.pem", "good.key", ("junk.pem", "holds no certificate")),
        ("good.pem", "junk.pem", ("junk.pem", "holds no private key")),
        ("exp.toml", "good.key", ("exp.toml", "not in the PEM format")),
    ],
)
def test_certificates_that_cannot_be_shown_are_refused(here, refuse, certificate, key, words):
    for name, first, last, password in (
        ("good", -1, 9, None),
        ("old", -9, -1, None),
        ("young", 1, 9, None),
        ("hidden", -1, 9, b"x"),
    ):
        pair(here, name, first, last, password)
    (here / "junk.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    refuse(3, words, *SERVE, "--certificate", certificate, "--key", key)
