"""Who opens calls and says nothing, or opens too many, takes no thread from others for long."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.deploy.carrier.grpc_gate import Gate
from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.messages import Receipt, Upload
from fedloom.deploy.seam import Unreachable
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.frames import PLACE, Head
from fedloom.deploy.trust.identity import Keys, context_of
from fedloom.deploy.trust.invitation import INSECURE

grpc = pytest.importorskip("grpc")
SMALL = Limits(clients=4, silent=1.5, calls=8, gap=1.0)


class Service:
    """Answers everything, and never has a task."""

    def __init__(self) -> None:
        self.beats: list[str] = []
        self.waiting = 0

    def next_task(self, who, wait):
        self.waiting += 1
        time.sleep(wait)

    def upload(self, who, update):
        return Receipt(True)

    def heartbeat(self, who, doing):
        self.beats.append(who.name)


@pytest.fixture
def net(tmp_path):
    service, opened = Service(), []
    listener = listen(service, Admission(tmp_path / "clients.json"), limits=SMALL, folder=tmp_path)

    def join(name, keys=None):
        opened.append(connect(listener.invite("127.0.0.1"), keys or Keys.make(), name))
        return opened[-1]

    def raw():
        alone = [("grpc.use_local_subchannel_pool", 1)]
        opened.append(grpc.insecure_channel(f"127.0.0.1:{listener.port}", alone))
        return opened[-1]

    yield service, join, raw
    for channel in opened:
        channel.close()
    listener.stop(0.0)


def until(true, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_calls_that_say_nothing_are_cut_and_others_are_served_meanwhile(net):
    service, join, raw = net
    over = threading.Event()

    def nothing():
        over.wait(30)
        yield from ()

    silent = []
    for _ in range(8):
        channel = raw()
        for name in ("Challenge", "Open", "Ask", "Offer", "Push"):
            call = channel.stream_unary(f"/{frames.SERVICE}/{name}")
            silent += [call.future(nothing()) for _ in range(2)]
    assert len(silent) > 2 * SMALL.threads
    honest = join("ana")
    for _ in range(5):
        honest.heartbeat("here")
    assert service.beats == ["ana"] * 5
    until(lambda: all(call.done() for call in silent))
    over.set()
    assert all(call.code() is not grpc.StatusCode.OK for call in silent)


def test_a_client_that_opens_too_many_calls_leaves_threads_to_others(net):
    service, join, _ = net
    keys, refused = Keys.make(), []
    greedy = [join("greedy", keys) for _ in range(4)]  # connections

    def poll(number):
        try:
            greedy[number % 4].next_task(2.0)
        except Unreachable as error:
            refused.append(str(error))

    threads = [threading.Thread(target=poll, args=(n,)) for n in range(SMALL.threads)]
    for thread in threads:
        thread.start()
    until(lambda: service.waiting >= SMALL.calls)
    other = join("ana")
    other.heartbeat("here")
    assert service.beats == ["ana"]
    for thread in threads:
        thread.join(20)
    assert any("too many calls open" in text for text in refused)
    greedy[0].heartbeat("still a client")
    assert service.beats == ["ana", "greedy"]


def test_an_upload_that_stops_on_its_way_is_cut_and_goes_on_later(net):
    _, join, raw = net
    keys = Keys.make()
    honest = join("ana", keys)
    upload = Upload(1, delta=torch.arange(1000, dtype=torch.float32))
    data, over = messages.encode(upload), threading.Event()

    def half():
        head = Head(frames.UPLOAD, honest.open(), 1000, len(data), data[-32:])
        yield head.signed_by(keys, context_of(INSECURE)) + PLACE.pack(0)
        yield frames.chunk(0, data[:1000])
        over.wait(30)

    call = raw().stream_unary(f"/{frames.SERVICE}/Push").future(half())
    until(call.done)
    over.set()
    assert call.code() is not grpc.StatusCode.OK
    assert honest._have(len(data), data[-32:]) == 1000
    assert honest.upload(upload).accepted


@dataclass(eq=False)
class Call:
    """What the gate has of a call."""

    gone: bool = False

    def cancel(self) -> None:
        self.gone = True


@given(st.lists(st.sampled_from("aab"), min_size=1, max_size=40), st.integers(1, 8))
def test_the_oldest_call_of_the_address_with_most_is_cut(addresses, most):
    gate, calls, held = Gate(most, 60.0), [], []
    for address in addresses:
        call = Call()
        entered = gate._waited(call, address, 60.0, counts=True)
        entered.__enter__()
        held.append(entered)
        calls.append((address, call))
        alive = [a for a, c in calls if not c.gone]
        assert len(alive) <= most
        for name in set(alive):
            of_name = [c.gone for a, c in calls if a == name]
            assert of_name == sorted(of_name, reverse=True)  # the oldest go first
    if addresses.count("b") <= most // 2:
        assert not any(c.gone for a, c in calls if a == "b")
    for entered in held:
        entered.__exit__(None, None, None)


def test_the_gate_forgets_calls_that_spoke_and_cuts_those_that_did_not():
    now = [0.0]
    gate, spoke, silent = Gate(10, 5.0, clock=lambda: now[0]), Call(), Call()
    assert gate.first(iter([b"hello"]), spoke, "a") == b"hello"
    assert gate.first(iter([]), spoke, "a") == b""
    entered = gate._waited(silent, "a", 5.0, counts=True)
    with entered:
        now[0] = 4.9
        gate.sweep()
        assert not silent.gone
        now[0] = 5.0
        gate.sweep()
    assert silent.gone
    assert not spoke.gone


def test_the_calls_of_a_client_are_counted():
    gate = Gate(10, 5.0, calls=2)
    assert [gate.enter("ana"), gate.enter("ana"), gate.enter("ana"), gate.enter("bob")] == [True, True, False, True]
    gate.leave("ana")
    gate.leave("ana")
    assert gate.enter("ana")
