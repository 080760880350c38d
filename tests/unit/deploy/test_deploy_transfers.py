"""Large messages: so many travel at once, the others wait for their turn, and nothing keeps a turn for ever."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.deploy.carrier import transfers as turns
from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.carrier.transfers import FEW, SHARE, Transfers, _Transfer
from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.messages import Poll, Receipt, Task, Upload
from fedloom.deploy.seam import Unreachable
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.frames import PLACE, Head
from fedloom.deploy.trust.identity import Keys, context_of
from fedloom.deploy.trust.invitation import INSECURE

grpc = pytest.importorskip("grpc")
DELTA = torch.arange(1_000_000, dtype=torch.float32)  # 4 MB: many pieces
MODEL = torch.zeros(6_000_000)  # more than a connection takes of its own accord


@dataclass(eq=False)
class Call:
    """What a turn has of a call."""

    callbacks: list = field(default_factory=list)
    over: bool = False

    def add_callback(self, callback):
        self.callbacks += [] if self.over else [callback]
        return not self.over

    def cancel(self):
        if not self.over:
            self.over = True
            for callback in self.callbacks:
                callback()


@given(st.integers(1, 6), st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=60))
def test_who_came_first_goes_first_and_no_more_than_so_many(most, steps):
    transfers, alive, number = Transfers(most, 1 << 19), [], 0
    for step in steps:
        if step is None:
            number += 1
            alive.append(_Transfer(f"c{number}", Call()))
            assert transfers._enter(alive[-1]) == []
        elif alive:
            transfers._leave(alive.pop(step % len(alive)))
        assert list(transfers._under_way) == alive[:most]
        assert list(transfers._waiting) == alive[most:]
        assert all(one.woken.is_set() == (one in alive[:most]) for one in alive)
        assert sum(one.piece == 1 << 19 for one in transfers._under_way) <= FEW
        assert all(one.piece in (1 << 19, (1 << 19) // SHARE) for one in transfers._under_way)


@given(st.integers(1, 3), st.lists(st.booleans(), min_size=1, max_size=12))
def test_everybody_gets_a_turn_and_every_end_gives_it_back(most, broken):
    transfers, at_once, most_at_once, lock = Transfers(most, 1 << 19), [0], [0], threading.Lock()

    def go(number):
        with contextlib.suppress(ValueError), transfers.turn(f"c{number}", Call()):
            with lock:
                at_once[0] += 1
                most_at_once[0] = max(most_at_once[0], at_once[0])
            time.sleep(1e-4)
            with lock:
                at_once[0] -= 1
            if broken[number]:
                raise ValueError
        return 1

    with ThreadPoolExecutor(len(broken)) as pool:
        assert sum(pool.map(go, range(len(broken)), timeout=10)) == len(broken)
    assert most_at_once[0] <= most
    assert not transfers.full
    assert not transfers._under_way


def test_a_client_that_begins_anew_has_one_turn_and_the_old_call_is_cut():
    transfers, old, new = Transfers(2, 1 << 19), Call(), Call()
    with transfers.turn("ana", old), transfers.turn("ana", new):
        assert old.over
        assert not new.over
        assert [one.context for one in transfers._under_way] == [new]


def test_a_call_that_ends_while_it_waits_is_out_of_line():
    transfers, call = Transfers(1, 1 << 19), Call()
    with transfers.turn("ana", Call()):
        threading.Timer(0.05, call.cancel).start()
        with pytest.raises(Unreachable), transfers.turn("bob", call):
            pass
        gone = Call(over=True)
        with pytest.raises(Unreachable), transfers.turn("cleo", gone):
            pass
        assert not transfers._waiting


class Service:
    """Takes every upload; the model is large."""

    def __init__(self):
        self.round, self.beats, self.came = 1, [], []

    def next_task(self, who, wait):
        return Task("train", self.round, vector=MODEL) if who.name != "idle" else time.sleep(min(wait, 0.1))

    def upload(self, who, update):
        self.came.append((who.name, bool(torch.equal(update.delta, DELTA))))
        return Receipt(True)

    def heartbeat(self, who, doing):
        self.beats.append(who.name)


class Net:
    """A server with few turns, and its clients."""

    def __init__(self, folder, **limits):
        self.service, self.open, self.pool = Service(), [], ThreadPoolExecutor(10)
        self.listener = listen(
            self.service, Admission(folder / "c.json"), limits=Limits(clients=12, silent=2.0, **limits), folder=folder
        )
        self.transfers = self.listener._calls._transfers

    def join(self, name, keys=None):
        self.open.append(connect(self.listener.invite("127.0.0.1"), keys or Keys.make(), name))
        return self.open[-1]

    def stalled_upload(self):
        """Begin an upload, and send nothing of it."""
        keys, over = Keys.make(), threading.Event()
        honest, data = self.join("stalls", keys), messages.encode(Upload(1, delta=DELTA))

        def requests():
            head = Head(frames.UPLOAD, honest.open(), 1000, len(data), data[-32:])
            yield head.signed_by(keys, context_of(INSECURE)) + PLACE.pack(0)
            over.wait(30)

        call = self.raw().stream_unary(f"/{frames.SERVICE}/Push").future(requests())
        until(lambda: self.transfers.full)
        return call, over

    def stalled_poll(self):
        """Ask for the model, and read nothing of it."""
        honest, poll = self.join("stalls"), messages.encode(Poll(0.0))
        ask = self.raw().unary_stream(f"/{frames.SERVICE}/Ask")
        call = ask(honest._head(frames.POLL, len(poll), poll[-32:]) + poll)
        until(lambda: self.transfers.full)
        return call, threading.Event()

    def raw(self):
        self.open.append(
            grpc.insecure_channel(f"127.0.0.1:{self.listener.port}", [("grpc.use_local_subchannel_pool", 1)])
        )
        return self.open[-1]

    def close(self):
        for channel in self.open:
            channel.close()
        self.listener.stop(0.0)
        self.pool.shutdown()


@pytest.fixture
def made(tmp_path):
    nets = []

    def make(**limits):
        nets.append(Net(tmp_path, **limits))
        return nets[-1]

    yield make
    for net in nets:
        net.close()


def until(true, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_large_messages_of_many_clients_are_under_way_a_few_at_a_time_and_all_arrive(made):
    net = made(transfers=2)
    clients, over, most = [net.join(f"c{i}") for i in range(10)], threading.Event(), [0]

    def look():
        while not over.wait(0.001):
            most[0] = max(most[0], len(net.transfers._under_way))

    def go(number):
        task = clients[number].next_task(1.0)
        return torch.equal(task.vector, MODEL) and clients[number].upload(Upload(1, delta=DELTA)).accepted

    looking = threading.Thread(target=look)
    looking.start()
    assert all(net.pool.map(go, range(len(clients)), timeout=50))
    over.set()
    looking.join()
    assert sorted(net.service.came) == sorted((f"c{i}", True) for i in range(10))
    assert most[0] == 2
    until(lambda: not net.transfers._under_way)


@pytest.mark.parametrize("how", ["stalled_upload", "stalled_poll"])
def test_a_stalled_transfer_is_cut_and_beats_and_polls_go_on_meanwhile(made, how):
    net = made(transfers=1, gap=2.0)
    ana, idle = net.join("ana"), net.join("idle")
    call, over = getattr(net, how)()
    waits = net.pool.submit(ana.upload, Upload(1, delta=DELTA))
    until(lambda: net.transfers._waiting)
    began = time.monotonic()
    for _ in range(5):
        ana.heartbeat("waiting")
        assert idle.next_task(0.0) is None
        assert idle.upload(Upload(1, delta=DELTA[:1000])).accepted
    assert time.monotonic() - began < 1.5
    assert not waits.done()
    assert waits.result(10).accepted
    over.set()
    call.cancel()
    assert net.service.beats == ["ana"] * 5
    assert ("ana", True) in net.service.came


def test_who_is_gone_and_who_is_cut_gives_the_turn_back(made):
    net = made(transfers=1, gap=60.0)
    ana, bob = net.join("ana"), net.join("bob")
    call, over = net.stalled_upload()
    gone = net.pool.submit(bob.upload, Upload(1, delta=DELTA))
    until(lambda: net.transfers._waiting)
    bob.close()
    until(lambda: not net.transfers._waiting)
    with pytest.raises(Unreachable):
        gone.result(10)
    waits = net.pool.submit(ana.upload, Upload(1, delta=DELTA))
    until(lambda: net.transfers._waiting)
    call.cancel()
    assert waits.result(10).accepted
    over.set()


def test_a_task_that_had_to_wait_is_the_one_of_its_turn(made):
    net = made(transfers=1, gap=60.0)
    ana = net.join("ana")
    call, over = net.stalled_upload()
    waits = net.pool.submit(ana.next_task, 1.0)
    until(lambda: net.transfers._waiting)
    net.service.round = 2
    call.cancel()
    assert waits.result(10).round == 2
    over.set()


def test_who_waits_for_the_model_or_gets_it_slowly_counts_as_alive(made, monkeypatch):
    monkeypatch.setattr(turns, "SIGN", 0.05)
    net = made(transfers=1, gap=60.0)
    ana = net.join("ana")
    call, over = net.stalled_upload()
    waits = net.pool.submit(ana.next_task, 1.0)
    until(lambda: net.service.beats.count("ana") >= 3)
    call.cancel()
    assert waits.result(10) is not None
    over.set()


@pytest.mark.parametrize(("sign", "expected"), [(0.0, 10), (60.0, 0)])
def test_signs_of_life_come_every_now_and_then(monkeypatch, sign, expected):
    monkeypatch.setattr(turns, "SIGN", sign)
    told = []
    assert list(turns.telling((time.sleep(1e-3) or b"x" for _ in range(10)), lambda: told.append(1))) == [b"x"] * 10
    assert len(told) == expected


def test_a_server_that_stops_keeps_nobody_in_line(made):
    net = made(transfers=1, gap=60.0)
    ana = net.join("ana")
    call, over = net.stalled_upload()
    waits = net.pool.submit(ana.next_task, 1.0)
    until(lambda: net.transfers._waiting)
    began = time.monotonic()
    net.listener.stop(0.2)
    with pytest.raises(Unreachable):
        waits.result(5)
    assert time.monotonic() - began < 4
    over.set()
    until(call.done)
