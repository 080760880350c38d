"""The seam, over the fake and over gRPC: one suite for both, and what gRPC has to withstand."""

from __future__ import annotations

import collections
import contextlib
import itertools
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from fedloom.deploy.carrier import grpc_client
from fedloom.deploy.carrier.fake import FakeNetwork
from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.messages import Beat, Hello, Poll, Receipt, Task, Upload, Welcome, decode
from fedloom.deploy.seam import Refused, Unreachable
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.frames import PLACE, Head
from fedloom.deploy.trust.identity import Keys, context_of
from fedloom.deploy.trust.invitation import INSECURE, Invitation
from fedloom.deploy.trust.tls import Certificates, fetch_authority
from fedloom.errors import UsageError

grpc = pytest.importorskip("grpc")

VECTOR = torch.linspace(-1, 1, 1000)
BIG = torch.arange(1_500_000, dtype=torch.float32)  # six chunks


class Desk:
    """A service that takes note of everything."""

    def __init__(self):
        self.calls: list[tuple] = []
        self.tasks: list[Task] = []
        self.uploads: list[Upload] = []
        self.no: Exception | None = None

    def register(self, who, hello):
        self.note("register", who, hello)
        return Welcome(0, 2, "run", vectors={"start": VECTOR})

    def next_task(self, who, wait):
        if not self.tasks:
            time.sleep(wait)
        return self.tasks.pop() if self.tasks else None

    def upload(self, who, update):
        self.note("upload", who, update.round)
        again = any(u.round == update.round for u in self.uploads)
        self.uploads += [] if again else [update]
        return Receipt(True, "", again)

    def heartbeat(self, who, doing):
        self.note("heartbeat", who, doing)

    def leave(self, who, reason):
        self.note("leave", who, reason)

    def note(self, what, who, said):
        if self.no is not None:
            raise self.no
        self.calls.append((what, who.name, who.key, said))


class Net:
    """A server over gRPC on loopback, and its clients."""

    def __init__(self, folder: Path, *, tls: bool = True, limits: Limits | None = None):
        self.desk, self.folder, self.limits = Desk(), folder, limits
        self.admission = Admission(folder / "clients.json")
        self.certificates = Certificates.own(folder / "tls") if tls else None
        self.rows: list[dict] = []
        self.open: list = []
        self.port = 0
        self.start()

    def start(self):
        address = f"127.0.0.1:{self.port}"
        self.listener = listen(
            self.desk, self.admission, address, self.certificates, self.limits, self.folder, self.rows.append
        )
        self.port = self.listener.port

    def join(self, name, keys=None, invitation=None, **what):
        channel = connect(invitation or self.listener.invite("127.0.0.1"), keys or Keys.make(), name, **what)
        self.open.append(channel)
        return channel

    def close(self):
        for channel in self.open:
            channel.close()
        self.listener.stop(0.0)


@pytest.fixture
def net(tmp_path):
    made = Net(tmp_path)
    yield made
    made.close()


@pytest.fixture
def plain(tmp_path):
    made = Net(tmp_path, tls=False)
    yield made
    made.close()


@pytest.fixture(params=["fake", "grpc"])
def pair(request, tmp_path):
    """A service, and a client's channel to it."""
    if request.param == "fake":
        desk = Desk()
        yield desk, FakeNetwork(desk).channel("ana")
        return
    made = Net(tmp_path)
    yield made.desk, made.join("ana")
    made.close()


def test_the_seam(pair):
    desk, channel = pair
    welcome = channel.register(Hello("ana", samples=600))
    assert torch.equal(welcome.vectors["start"], VECTOR)
    desk.tasks.append(Task("train", 1, 0, BIG, lr=0.5))
    task = channel.next_task(5.0)
    assert torch.equal(task.vector, BIG)
    assert (task.round, task.lr) == (1, 0.5)
    assert channel.upload(Upload(1, delta=BIG * 2, weight=600.0)) == Receipt(True)
    assert channel.upload(Upload(1, delta=BIG * 2, weight=600.0)).accepted
    assert len(desk.uploads) == 1
    assert torch.equal(desk.uploads[0].delta, BIG * 2)
    channel.heartbeat("training")
    channel.leave("over")
    assert [(what, name) for what, name, *_ in desk.calls if what != "upload"] == [
        ("register", "ana"),
        ("heartbeat", "ana"),
        ("leave", "ana"),
    ]
    assert len({key for _, _, key, _ in desk.calls}) == 1


def test_waiting_for_nothing_ends_in_time(pair):
    _, channel = pair
    began = time.monotonic()
    assert channel.next_task(0.3) is None
    assert 0.25 < time.monotonic() - began < 2.0


def test_what_the_service_refuses_is_said(pair):
    desk, channel = pair
    desk.no = Refused("the run is over")
    for call in (lambda: channel.register(Hello("ana")), lambda: channel.upload(Upload(1))):
        with pytest.raises(Refused, match="the run is over"):
            call()
    desk.no = UsageError("nonsense")
    with pytest.raises(Refused, match="nonsense"):
        channel.heartbeat("")
    desk.no = Unreachable("later")
    with pytest.raises(Unreachable, match="later"):
        channel.heartbeat("")


def test_a_channel_that_is_closed_ends_waiting(pair):
    _, channel = pair
    threading.Timer(0.3, channel.close).start()
    began = time.monotonic()
    with pytest.raises(Unreachable):
        channel.next_task(20.0)
    assert time.monotonic() - began < 3.0
    channel.close()
    with pytest.raises(Unreachable):
        channel.heartbeat("")


def test_a_heartbeat_goes_while_a_task_is_waited_for(pair):
    desk, channel = pair
    waiting = threading.Thread(target=channel.next_task, args=(1.0,))
    waiting.start()
    channel.heartbeat("alive")
    assert waiting.is_alive()
    assert desk.calls
    waiting.join(5.0)


def test_the_fake_loses_calls_and_answers():
    desk, what = Desk(), ["ok"]
    network = FakeNetwork(desk, lambda name, method: what[0])
    channel = network.channel("ana")
    what[0] = "lost"
    with pytest.raises(Unreachable):
        channel.upload(Upload(1))
    assert not desk.uploads
    what[0] = "unanswered"
    with pytest.raises(Unreachable):
        channel.upload(Upload(1))
    assert len(desk.uploads) == 1
    what[0], network.service = "ok", None
    with pytest.raises(Unreachable):
        channel.upload(Upload(1))


def test_another_server_is_not_talked_to(net, tmp_path):
    other = Net(tmp_path / "other")
    right = net.listener.invite("127.0.0.1")
    wrong = Invitation(right.host, other.port, right.pin, right.token)
    with pytest.raises(Refused, match="not the server that the invitation is for"):
        other.join("ana", invitation=wrong)
    assert not other.rows
    other.close()


def test_a_server_that_shows_the_right_authority_needs_its_signature(net, tmp_path, monkeypatch):
    """Whoever is in between can show a copy of the authority's certificate, but not sign with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    from fedloom.deploy.trust import tls

    authority = x509.load_pem_x509_certificate((net.folder / "tls" / "authority.pem").read_bytes())
    forged_key, forged = tls._server(ec.generate_private_key(ec.SECP256R1()), authority)
    pin = net.certificates.pin
    forger = Net(tmp_path / "forger")
    forger.listener.stop(0.0)
    forger.certificates = Certificates(tls._key_pem(forged_key), tls._certificate_pem(forged), pin)
    forger.port = 0
    forger.start()
    invitation = Invitation("127.0.0.1", forger.port, pin, bytes(16))
    with pytest.raises(Refused, match="not the server"):
        fetch_authority("127.0.0.1", forger.port, pin)
    known = fetch_authority("127.0.0.1", net.port, pin)  # gRPC looks again, on each connection
    monkeypatch.setattr(grpc_client, "fetch_authority", lambda *_: known)
    with pytest.raises(Refused, match="not the server"):
        forger.join("ana", invitation=invitation)
    assert not forger.rows
    forger.close()


def test_nobody_home_and_no_tls(net, plain):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="cannot be reached"):
        connect(Invitation("127.0.0.1", port, net.certificates.pin, bytes(16)), Keys.make(), "ana")
    with pytest.raises(Refused, match="does not speak TLS"):
        connect(Invitation("127.0.0.1", plain.port, net.certificates.pin, bytes(16)), Keys.make(), "ana", timeout=3.0)
    with pytest.raises(Unreachable):
        connect(Invitation("127.0.0.1", net.port, INSECURE, bytes(16)), Keys.make(), "ana", timeout=3.0)


def test_where_a_server_may_listen(net, plain):
    with pytest.raises(UsageError, match="without TLS"):
        listen(Desk(), net.admission, "0.0.0.0:0")
    with pytest.raises(UsageError, match="cannot listen"):
        listen(Desk(), net.admission, f"127.0.0.1:{net.port}", net.certificates)
    with pytest.raises(UsageError, match="without TLS"):
        plain.listener.invite("10.0.0.7")


def test_an_invitation_lets_one_client_in(net):
    invitation = net.listener.invite("127.0.0.1")
    keys = Keys.make()
    net.join("ana", keys, invitation)
    assert net.join("", keys, invitation).name == "ana"
    with pytest.raises(Refused, match="used already"):
        net.join("bob", None, invitation)
    with pytest.raises(Refused, match="belongs to another"):
        net.join("ana")
    with pytest.raises(Refused, match="cannot become"):
        net.join("bob", keys, invitation)
    refused = [row for row in net.rows if row.get("refused")]
    assert len(refused) == 3
    net.admission.expel("ana")
    with pytest.raises(Refused, match="sent away"):
        net.open[0].heartbeat("")


def test_a_server_that_was_started_again_knows_its_clients(net):
    channel = net.join("ana")
    channel.heartbeat("before")
    net.listener.stop(0.0)
    with pytest.raises(Unreachable):
        channel.heartbeat("nobody")
    net.start()
    until = time.monotonic() + 10.0
    while True:
        try:
            channel.heartbeat("after")
            break
        except Unreachable:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert [said for *_, said in net.desk.calls] == ["before", "after"]


class Raw:
    """A client that says what it wants."""

    def __init__(self, net):
        self.keys, self.context = Keys.make(), context_of(INSECURE)
        self.honest = net.join("ana", self.keys)
        self.session = self.honest.open()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{net.port}")
        net.open.append(self)
        self.number = itertools.count(1000)

    def close(self):
        self.channel.close()

    def call(self, name, request):
        path = f"/{frames.SERVICE}/{name}"
        if name == "Ask":
            return list(self.channel.unary_stream(path)(request, timeout=10.0))
        if name == "Push":
            return self.channel.stream_unary(path)(iter(request), timeout=10.0)
        return self.channel.unary_unary(path)(request, timeout=10.0)

    def head(self, method, data, *, length=None, digest=None, session=None, keys=None, number=None):
        head = Head(
            method,
            session or self.session,
            next(self.number) if number is None else number,
            len(data) if length is None else length,
            digest or data[-32:],
        )
        return head.signed_by(keys or self.keys, self.context)

    def refused(self, name, request, said):
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, request)
        assert said in caught.value.details(), caught.value.details()
        return caught.value.code()


BEAT = messages.encode(Beat("hello"))


def test_a_recorded_call_is_refused(plain):
    raw = Raw(plain)
    request = raw.head(frames.BEAT, BEAT) + BEAT
    raw.call("Ask", request)
    raw.refused("Ask", request, "second time")
    assert len(plain.desk.calls) == 1
    data = messages.encode(Upload(1, delta=VECTOR))
    push = [raw.head(frames.UPLOAD, data) + PLACE.pack(0), frames.chunk(0, data)]
    assert decode(raw.call("Push", push), Receipt).accepted
    raw.refused("Push", push, "second time")
    assert len(plain.desk.calls) == 2


def test_one_client_cannot_speak_for_another(plain):
    raw, bob = Raw(plain), Keys.make()
    bobs = plain.join("bob", bob).open()
    raw.refused("Ask", raw.head(frames.BEAT, BEAT, keys=bob) + BEAT, "signature")
    raw.refused("Ask", raw.head(frames.BEAT, BEAT, session=bobs) + BEAT, "signature")
    raw.refused("Ask", raw.head(frames.BEAT, BEAT, session=bytes(16)) + BEAT, "session is unknown")
    raw.call("Ask", raw.head(frames.BEAT, BEAT, session=bobs, keys=bob) + BEAT)
    assert [name for _, name, *_ in plain.desk.calls] == ["bob"]
    plain.join("cleo").register(Hello("ana"))  # what a message says of its sender counts for nothing
    assert plain.desk.calls[-1][1] == "cleo"


def test_a_changed_or_wrong_message_is_refused(plain):
    raw = Raw(plain)
    other = messages.encode(Beat("hellO"))
    raw.refused("Ask", raw.head(frames.BEAT, BEAT) + other, "not the one that was signed")
    raw.refused("Ask", raw.head(frames.BEAT, BEAT) + BEAT + b"x", "not the one that was signed")
    raw.refused("Ask", raw.head(frames.UPLOAD, BEAT) + BEAT, "signature")
    raw.refused("Ask", raw.head(frames.POLL, BEAT) + BEAT, "expected the message Poll")
    for wait in (-1.0, float("nan")):
        poll = messages.encode(Poll(wait))
        raw.refused("Ask", raw.head(frames.POLL, poll) + poll, "a wait of less than nothing")
    for name, noise in itertools.product(("Open", "Ask", "Offer"), (b"", b"x", bytes(500))):
        raw.refused(name, noise, "")
    for noise in ([], [b""], [bytes(500)]):
        raw.refused("Push", noise, "")
    bad = bytearray(messages.encode(Upload(1)))
    bad[-40] ^= 1
    push = [raw.head(frames.UPLOAD, bytes(bad)) + PLACE.pack(0), frames.chunk(0, bytes(bad))]
    raw.refused("Push", push, "checksum is wrong")
    assert not plain.desk.calls
    raw.honest.heartbeat("still here")


def test_a_damaged_or_misplaced_chunk_costs_only_itself(plain):
    raw, data = Raw(plain), messages.encode(Upload(1, delta=BIG))
    cut = [data[i : i + frames_size] for i in range(0, len(data), frames_size)]
    bad = bytearray(frames.chunk(frames_size, cut[1]))
    bad[100] ^= 1
    start = raw.head(frames.UPLOAD, data) + PLACE.pack(0)
    code = raw.refused("Push", [start, frames.chunk(0, cut[0]), bytes(bad)], "damaged on the way")
    assert code is grpc.StatusCode.ABORTED
    assert PLACE.unpack(raw.call("Offer", raw.head(frames.OFFER, data)))[0] == frames_size
    there = raw.head(frames.UPLOAD, data) + PLACE.pack(frames_size)
    raw.refused("Push", [there, frames.chunk(3 * frames_size, cut[3])], "goes on at byte")
    raw.refused("Push", [raw.head(frames.UPLOAD, data) + PLACE.pack(7)], "goes on at byte")
    assert raw.honest.upload(Upload(1, delta=BIG)).accepted
    assert torch.equal(plain.desk.uploads[0].delta, BIG)


frames_size = 1 << 20


def test_a_receipt_that_was_lost_is_given_again(plain):
    raw, data = Raw(plain), messages.encode(Upload(1, delta=VECTOR))
    push = [PLACE.pack(0), frames.chunk(0, data)]
    first = raw.call("Push", [raw.head(frames.UPLOAD, data) + push[0], push[1]])
    again = raw.call("Push", [raw.head(frames.UPLOAD, data) + push[0], push[1]])
    assert first == again
    assert [what for what, *_ in plain.desk.calls] == ["upload"]


def test_a_receipt_that_says_no_is_not_kept(plain):
    raw = Raw(plain)
    answers = [Receipt(True), Receipt(False, "too early")]
    plain.desk.upload = lambda who, update: answers.pop()
    assert raw.honest.upload(Upload(1, delta=VECTOR)) == Receipt(False, "too early")
    assert raw.honest.upload(Upload(1, delta=VECTOR)) == Receipt(True)
    assert raw.honest.upload(Upload(1, delta=VECTOR)) == Receipt(True)


def test_an_upload_that_is_brought_again_while_it_is_taken_counts_once(plain):
    raw, data = Raw(plain), messages.encode(Upload(1, delta=VECTOR))
    taken, go, answers = [], threading.Event(), []

    def upload(who, update):
        taken.append(update)
        go.wait(10.0)
        return Receipt(True)

    plain.desk.upload = upload
    first = [raw.head(frames.UPLOAD, data) + PLACE.pack(0), frames.chunk(0, data)]
    rest = [raw.head(frames.UPLOAD, data) + PLACE.pack(len(data))]
    callers = [threading.Thread(target=lambda p=push: answers.append(raw.call("Push", p))) for push in (first, rest)]
    callers[0].start()
    until = time.monotonic() + 5.0
    while not taken and time.monotonic() < until:
        time.sleep(0.01)
    callers[1].start()
    time.sleep(0.3)
    go.set()
    for caller in callers:
        caller.join(10.0)
    assert [decode(answer, Receipt).accepted for answer in answers] == [True, True]
    assert len(taken) == 1


def test_an_error_that_nobody_expected_is_not_tried_again(plain):
    channel = plain.join("ana")
    plain.desk.no = KeyError("a bug")
    for call in (lambda: channel.register(Hello("ana")), lambda: channel.upload(Upload(1))):
        with pytest.raises(Refused, match="the server failed"):
            call()


def test_what_is_too_large_is_refused_before_it_is_sent(tmp_path):
    net = Net(tmp_path, tls=False, limits=Limits(message=1 << 20))
    raw = Raw(net)
    with pytest.raises(Refused, match="takes 1048576 at most"):
        raw.honest.upload(Upload(1, delta=BIG))
    data = messages.encode(Upload(1, delta=VECTOR))
    short = raw.head(frames.UPLOAD, data, length=100) + PLACE.pack(0)
    raw.refused("Push", [short, frames.chunk(0, data)], "goes on at byte")  # more than was announced
    raw.refused("Ask", raw.head(frames.BEAT, BEAT) + bytes(3 << 20), "larger than max")
    raw.refused(
        "Push", [raw.head(frames.UPLOAD, data) + PLACE.pack(0), frames.chunk(0, bytes(3 << 20))], "larger than max"
    )
    assert not net.desk.uploads
    raw.honest.upload(Upload(1, delta=VECTOR))
    net.close()


def test_who_asks_too_much_waits_and_others_do_not(tmp_path):
    net = Net(tmp_path, tls=False, limits=Limits(rate=5.0, burst=10.0, opens=1.0, opens_burst=3.0))
    ana, bob = net.join("ana"), net.join("bob")
    with pytest.raises(Unreachable, match="too often"):
        collections.deque((ana.heartbeat("now") for _ in range(40)), 0)
    bob.heartbeat("now")
    time.sleep(0.5)
    ana.heartbeat("later")
    with pytest.raises(Unreachable, match="too many clients"):
        collections.deque(map(net.join, ("cleo", "dan", "eve", "flo")), 0)
    net.close()


class Cutter:
    """Stands between client and server, and cuts the connection when so many bytes have gone up."""

    def __init__(self, port: int):
        self.port, self.up, self.cut_at = port, 0, float("inf")
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.here = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source, target, up):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if up:
                    self.up += len(data)
                    if self.up > self.cut_at:
                        self.cut_at = float("inf")
                        break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        self.listening.close()


def test_an_upload_that_is_cut_goes_on_where_it_was(net):
    cutter = Cutter(net.port)
    net.open.append(cutter)
    right = net.listener.invite("127.0.0.1")
    channel = net.join("ana", None, Invitation(right.host, cutter.here, right.pin, right.token))
    size = BIG.numel() * 4
    for number, share in enumerate((0.4, 0.8), 1):
        cutter.up, cutter.cut_at = 0, share * size
        assert channel.upload(Upload(number, delta=BIG * number)).accepted
        assert torch.equal(net.desk.uploads[-1].delta, BIG * number)
        assert cutter.cut_at == float("inf")
        assert size < cutter.up < size * 1.5 + (1 << 20)  # and not 1.4 or 1.8 times it and more
    assert len(net.desk.uploads) == 2


BOUNDED = """
import pathlib, re, sys, tempfile, torch
sys.path.insert(0, sys.argv[1])
from test_deploy_transport import Net, Desk
from fedloom.deploy.protocol.messages import Receipt, Task, Upload

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

def reset():
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak()

net = Net(pathlib.Path(tempfile.mkdtemp()))
net.desk.upload = lambda who, update: Receipt(bool(update.delta[-1] == 7.0))
channel = net.join("ana")
channel.upload(Upload(1, delta=torch.ones(2_000_000)))
delta = torch.full((12_500_000,), 7.0)
before = reset()
assert channel.upload(Upload(1, delta=delta)).accepted
up = peak() - before
net.desk.tasks.append(Task("train", vector=delta))
before = reset()
task = channel.next_task(5.0)
down = peak() - before
print(up, down, flush=True)
net.close()
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
def test_fifty_megabytes_take_little_more_than_themselves():
    """Both ends are in this process: the vector as it arrives is counted, and no second copy fits into the bound."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(Path(__file__).parent)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    up, down = (int(n) for n in done.stdout.split())
    assert up < 90e6
    assert down < 90e6
