"""Keys, invitations, admission, sessions and limits: who is let in, and who is not."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.deploy.carrier.limits import Buckets, Limits
from fedloom.deploy.carrier.staging import IN_MEMORY, Staging
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.messages import Open
from fedloom.deploy.seam import Refused
from fedloom.deploy.trust import frames, identity, tls
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.frames import Head, Numbers
from fedloom.deploy.trust.identity import Keys, context_of, signed
from fedloom.deploy.trust.invitation import INSECURE, PUBLIC, Invitation
from fedloom.deploy.trust.sessions import Sessions, Unknown
from fedloom.deploy.trust.tls import Certificates
from fedloom.errors import DataError, UsageError

HERE = context_of("ab" * 32)
ANA, BOB = Keys.make(), Keys.make()
DIGEST = bytes(range(32))


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path):
    path = tmp_path / "deep" / "key"
    made = Keys.at(path)
    assert Keys.at(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.private.hex() not in repr(made)
    path.write_text("something else")
    with pytest.raises(DataError, match="no key"):
        Keys.at(path)


def test_a_signature_is_good_for_its_key_its_data_and_its_server():
    signature = ANA.sign(HERE, b"data")
    assert signed(ANA.public, HERE, b"data", signature)
    assert not signed(BOB.public, HERE, b"data", signature)
    assert not signed(ANA.public, HERE, b"date", signature)
    assert not signed(ANA.public, context_of("cd" * 32), b"data", signature)
    assert not signed(ANA.public[:-1], HERE, b"data", signature)
    assert not signed(b"\xff" * 32, HERE, b"data", signature)


@given(
    st.sampled_from(["127.0.0.1", "::1", "laptop.school.example", "10.0.0.7"]),
    st.integers(1, 65535),
    st.one_of(st.binary(min_size=32, max_size=32).map(bytes.hex), st.just(PUBLIC)),
    st.one_of(st.binary(min_size=16, max_size=16), st.just(b"")),
)
@settings(max_examples=50, deadline=None)
def test_an_invitation_is_one_text(host, port, pin, token):
    made = Invitation(host, port, pin, token)
    assert Invitation.parse(f" {made.text()}\n") == made
    assert " " not in made.text()


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_letter_that_was_changed_or_lost_is_noticed(data):
    text = Invitation("127.0.0.1", 8443, "ab" * 32, bytes(16)).text()
    place = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(["", "x", "/", "é", "0"]))
    bad = text[:place] + letter + text[place + 1 :]
    if bad != text:
        with pytest.raises(UsageError):
            Invitation.parse(bad)


@given(st.text(max_size=100))
def test_any_other_text_is_no_invitation(text):
    with pytest.raises(UsageError):
        Invitation.parse(text)


def test_without_tls_only_this_machine():
    Invitation("127.0.0.1", 1, INSECURE)
    with pytest.raises(UsageError, match="without TLS"):
        Invitation("10.0.0.7", 1, INSECURE)


def test_an_invitation_is_good_once_and_the_key_from_then_on(tmp_path):
    admission = Admission(tmp_path / "clients.json")
    token = admission.invite()
    assert admission.admit(ANA.public, "ana", token) == "ana"
    assert admission.admit(ANA.public) == "ana"
    assert admission.admit(ANA.public, "ana", token) == "ana"
    with pytest.raises(Refused, match="used already"):
        admission.admit(BOB.public, "bob", token)
    with pytest.raises(Refused, match="used already"):
        admission.admit(BOB.public, "bob")
    again = Admission(tmp_path / "clients.json")
    assert again.admit(ANA.public) == "ana"
    assert again.members == {"ana": ANA.public}
    with pytest.raises(Refused):
        again.admit(BOB.public, "bob", token)
    assert token.hex() not in (tmp_path / "clients.json").read_text()


def test_a_name_belongs_to_one_key(tmp_path):
    admission = Admission(tmp_path / "clients.json")
    token = admission.invite(uses=2)
    admission.admit(ANA.public, "Ana", token)
    with pytest.raises(Refused, match="belongs to another"):
        admission.admit(BOB.public, "ana", token)
    with pytest.raises(Refused, match="cannot become"):
        admission.admit(ANA.public, "bob", token)
    for bad in ("", "\x1b", "a\nb", "x" * 41, "../ana"):
        with pytest.raises(Refused, match="name has"):
            admission.admit(BOB.public, bad, token)
    assert admission.admit(BOB.public, "bob", token) == "bob"  # refusals did not use the invitation up


def test_who_is_sent_away_stays_away(tmp_path):
    admission = Admission(tmp_path / "clients.json")
    admission.admit(ANA.public, "ana", admission.invite())
    admission.expel("ana")
    assert not admission.is_member(ANA.public)
    for book in (admission, Admission(tmp_path / "clients.json")):
        with pytest.raises(Refused, match="sent away"):
            book.admit(ANA.public, "ana", book.invite())
    with pytest.raises(UsageError):
        admission.expel("bob")
    with pytest.raises(UsageError):
        admission.invite(0)


@pytest.mark.parametrize("text", ["[]", "{}", '{"members": {"a": "x"}, "invitations": {}, "expelled": []}', "nonsense"])
def test_a_damaged_list_of_clients_is_an_error(tmp_path, text):
    (tmp_path / "clients.json").write_text(text)
    with pytest.raises(DataError):
        Admission(tmp_path / "clients.json")


class Door:
    """Sessions with a clock that the test moves."""

    def __init__(self, folder):
        self.now = 0.0
        self.admission = Admission(folder / "clients.json")
        self.sessions = Sessions(self.admission, [HERE], clock=lambda: self.now)

    def request(self, keys=ANA, name="ana", token=b"", challenge=None, context=HERE, shown=None):
        challenge = self.sessions.challenge() if challenge is None else challenge
        data = messages.encode(Open(challenge, shown or keys.public, name, token))
        return data + keys.sign(context, data)

    def open(self, **what):
        return self.sessions.open(self.request(**what), "here")

    def check(self, session, number, keys=ANA, method=frames.BEAT):
        head, signature, _ = Head.read(Head(method, session, number, 0, DIGEST).signed_by(keys, HERE))
        return self.sessions.check(head, signature, (frames.BEAT,))


def test_a_session_is_opened_by_the_owner_of_the_key(tmp_path):
    door = Door(tmp_path)
    opened = door.open(token=door.admission.invite())
    who = door.check(opened.session, 1)
    assert (who.name, who.key, who.address) == ("ana", ANA.public, "here")
    with pytest.raises(Refused, match="the caller has another key"):
        door.open(keys=BOB, shown=ANA.public)
    with pytest.raises(Refused, match="the caller has another key"):
        door.open(context=context_of("cd" * 32))


def test_a_challenge_is_good_once_and_for_a_minute(tmp_path):
    door = Door(tmp_path)
    request = door.request(token=door.admission.invite())
    door.sessions.open(request, "")
    for bad in (request, door.request(challenge=bytes(32))):
        with pytest.raises(Refused, match="challenge"):
            door.sessions.open(bad, "")
    late = door.request()
    door.now = 61.0
    with pytest.raises(Refused, match="challenge"):
        door.sessions.open(late, "")


def test_a_call_is_good_once_and_only_for_whom_signed_it(tmp_path):
    door = Door(tmp_path)
    session = door.open(token=door.admission.invite()).session
    other = door.open(keys=BOB, name="bob", token=door.admission.invite()).session
    door.check(session, 2)
    door.check(session, 1)
    with pytest.raises(Refused, match="second time"):
        door.check(session, 2)
    with pytest.raises(Refused, match="signature"):
        door.check(session, 3, keys=BOB)
    with pytest.raises(Refused, match="signature"):
        door.check(other, 3, keys=ANA)
    with pytest.raises(Refused, match="signature"):
        door.check(session, 4, method=frames.UPLOAD)
    assert door.check(session, 3).name == "ana"  # what was refused used no number up
    assert door.check(other, 3, keys=BOB).name == "bob"


def test_a_session_ends(tmp_path):
    door = Door(tmp_path)
    session = door.open(token=door.admission.invite()).session
    with pytest.raises(Unknown):
        door.check(bytes(16), 1)
    door.now = 3599.0
    door.check(session, 1)
    door.admission.expel("ana")
    with pytest.raises(Refused, match="sent away"):
        door.check(session, 2)
    door.now += 3601.0
    with pytest.raises(Unknown):
        door.check(session, 3)


@given(st.binary(max_size=400))
def test_noise_opens_nothing(data):
    sessions = Sessions(Admission("/nonexistent/clients.json"), [HERE])
    with pytest.raises((DataError, Refused)):
        sessions.open(data, "")
    if len(data) < frames.HEAD_SIZE:
        with pytest.raises(DataError):
            Head.read(data)
    with pytest.raises(DataError):
        frames.unchunk(data[:12])


@given(st.lists(st.integers(1, 60), max_size=100))
def test_numbers_are_used_once(drawn):
    numbers, used = Numbers(most=10), set()
    for number in drawn:
        fresh = number not in used and number > max(used, default=0) - 10
        assert numbers.use(number) == fresh
        used |= {number} if fresh else set()
    assert len(numbers._used) <= 21


def test_a_caller_who_asks_too_much_waits():
    now = [0.0]
    buckets = Buckets(rate=2.0, burst=3.0, clock=lambda: now[0], most=2)
    assert [buckets.take("ana") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("bob")
    now[0] = 0.5
    assert [buckets.take("ana") for _ in range(2)] == [True, False]
    with pytest.raises(UsageError, match="limit chunk"):
        Limits(chunk=0)


@pytest.mark.parametrize("length", [100, IN_MEMORY + 100], ids=["in memory", "in a file"])
def test_an_upload_goes_on_where_it_was_cut(tmp_path, length):
    staging, data = Staging(tmp_path), bytes(itertools.islice(itertools.cycle(range(251)), length))
    part, turn = staging.begin(b"ana", DIGEST, length, 0)
    staging.add(part, turn, 0, memoryview(data[:60]))
    assert staging.have(b"ana", DIGEST) == 60
    assert staging.have(b"bob", DIGEST) == staging.have(b"ana", bytes(32)) == 0
    with pytest.raises(DataError, match="byte 60"):
        staging.begin(b"ana", DIGEST, length, 70)
    again, second = staging.begin(b"ana", DIGEST, length, 60)
    with pytest.raises(DataError, match="another call"):
        staging.add(part, turn, 60, memoryview(data[60:61]))
    with pytest.raises(DataError, match="byte 60"):
        staging.add(again, second, 61, memoryview(data[61:62]))
    with pytest.raises(DataError, match="byte 60"):
        staging.add(again, second, 60, memoryview(data[60:] + b"x"))
    staging.add(again, second, 60, memoryview(data[60:]))
    assert bytes(again.whole()) == data
    staging.end(b"ana", again, b"receipt")
    found, _ = staging.begin(b"ana", DIGEST, length, staging.have(b"ana", DIGEST))
    assert found.answer == b"receipt"
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_is_left_is_forgotten():
    staging = Staging(stalled=0.0)
    part, turn = staging.begin(b"ana", DIGEST, 10, 0)
    staging.add(part, turn, 0, memoryview(b"12345"))
    staging.begin(b"bob", DIGEST, 10, 0)
    assert staging.have(b"ana", DIGEST) == 0


def test_the_authority_stays_and_the_server_is_renewed(tmp_path, monkeypatch):
    first = Certificates.own(tmp_path)
    assert Certificates.own(tmp_path) == first
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    assert b"PRIVATE" not in first.chain
    monkeypatch.setattr(tls, "_RENEW_DAYS", 1000)
    renewed = Certificates.own(tmp_path)
    assert renewed.pin == first.pin
    assert renewed.chain != first.chain
    assert Certificates.own(tmp_path / "other").pin != first.pin
    (tmp_path / "server.pem").write_text("nonsense")
    with pytest.raises(DataError, match="damaged"):
        Certificates.own(tmp_path)


def test_the_server_certificate_lasts_and_allows_for_wrong_clocks(tmp_path):
    from cryptography import x509

    made = x509.load_pem_x509_certificate(Certificates.own(tmp_path).chain)
    now = dt.datetime.now(dt.UTC)
    assert made.not_valid_before_utc < now - dt.timedelta(days=7)
    assert now + dt.timedelta(days=300) < made.not_valid_after_utc


def test_given_certificates_have_to_be_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Certificates.given(tmp_path / "key.pem", tmp_path / "chain.pem", "here")


def test_a_list_of_clients_is_plain_json(tmp_path):
    admission = Admission(tmp_path / "clients.json")
    admission.admit(ANA.public, "ana", admission.invite())
    assert json.loads((tmp_path / "clients.json").read_text())["members"] == {"ana": ANA.public.hex()}


def test_a_key_of_the_wrong_length_is_not_admitted(tmp_path):
    admission = Admission(tmp_path / "clients.json")
    with pytest.raises(Refused):
        admission.admit(b"short", "ana", admission.invite())
    assert identity.KEY == 32
