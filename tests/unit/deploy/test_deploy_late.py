"""Late updates: refused, or buffered for the round that is open; each counts once. Events decide, no clock does."""

from __future__ import annotations

import threading

import pytest
import torch

from fedloom.algorithms.base import Broadcast
from fedloom.clients import Order
from fedloom.deploy.protocol.messages import STOP, Upload
from fedloom.deploy.seam import Identity, Unreachable
from fedloom.deploy.serving.checks import Pattern
from fedloom.deploy.serving.desk import Desk
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.serving.roster import Roster
from fedloom.errors import UsageError
from fedloom.records import ClientFailure

SIZE = 4
PATTERN = Pattern(SIZE, {}, frozenset({"loss", "staleness"}), "samples")


class Table:
    """A desk and its clients, each with one sample; nothing runs but what a test calls."""

    def __init__(self, folder, count=3, **patience):
        self.roster = Roster(folder, count)
        self.desk = Desk(self.roster, Patience(**patience), lambda _: None)
        self.members = [self.roster.admit(Identity(f"c{n}", bytes([n]) * 32), 1, n) for n in range(count)]
        self.begin(0)

    def begin(self, done):
        self.desk.begin(PATTERN, keeps=False, done=done)

    def post(self, number, clients=None):
        clients = tuple(range(len(self.members))) if clients is None else clients
        order = Order(number, clients, (Broadcast(torch.full((SIZE,), float(number))),))
        self.desk.post(order)
        return order

    def task(self, client):
        return self.desk.task(self.members[client], 0.0)

    def send(self, client, number, attempt=0, value=1.0):
        made = Upload(number, attempt, delta=torch.full((SIZE,), value), weight=1.0, metrics={"loss": 1.0})
        return self.desk.take(self.members[client], made)

    def results(self, order):
        found = [self.desk.result(client) for client in order.clients]
        self.desk.close(order)
        return found


@pytest.fixture
def table(tmp_path):
    return lambda **given: Table(tmp_path, **given)


def late(made):
    """Let client 2 miss round 1, and open round 2."""
    first = made.post(1)
    for client in range(3):
        assert made.task(client).round == 1
    assert made.send(0, 1).accepted
    assert made.send(1, 1).accepted
    found = made.results(first)
    assert isinstance(found[2], ClientFailure)
    assert found[2].kind == "surplus"
    return made.post(2)


def test_a_late_update_is_refused_unless_asked_for(table):
    made = table(enough=2)
    late(made)
    receipt = made.send(2, 1)
    assert not receipt.accepted
    assert "round 1 is over" in receipt.reason
    assert made.task(2).round == 2  # and is given the round's own task


def test_a_late_update_counts_in_the_round_that_is_open_and_only_once(table):
    made = table(enough=2, late="buffer")
    order = late(made)
    assert made.task(2).round == 1  # it is still at that, and is given nothing new
    assert made.task(0).round == 2
    assert made.send(2, 1, value=7.0).accepted
    assert made.send(2, 1, value=7.0).again
    assert made.task(2) is None
    assert made.send(0, 2).accepted
    found = made.results(order)
    assert [isinstance(one, ClientFailure) for one in found] == [False, True, False]
    assert found[2].metrics["staleness"] == 1.0
    assert "staleness" not in found[0].metrics
    assert found[2].delta.tolist() == [7.0] * SIZE
    made.post(3)
    assert made.send(2, 1).again  # never a second time
    assert made.task(2).round == 3


def test_a_round_takes_no_more_than_enough_and_the_next_takes_the_rest(table):
    made = table(enough=2, late="buffer")
    order = late(made)
    assert made.task(1).round == 2
    assert made.send(0, 2).accepted
    assert made.send(2, 1).accepted
    with pytest.raises(Unreachable):
        made.send(1, 2)  # the round is full: it comes again when the next one is open
    assert isinstance(made.results(order)[1], ClientFailure)
    with pytest.raises(Unreachable):
        made.send(1, 2)
    made.post(3)
    assert made.send(1, 2).accepted


def test_what_is_too_old_or_was_not_asked_is_refused(table):
    made = table(enough=2, late="buffer", oldest=1)
    late(made)
    made.post(3)
    assert made.task(2).round == 3
    assert not made.send(2, 1).accepted
    other = table(enough=2, late="buffer")
    late(other)
    other.post(3, clients=(0, 1))
    assert not other.send(2, 1).accepted


def test_a_forged_round_number_is_refused(table):
    made = table(enough=2, late="buffer")
    late(made)
    assert not made.send(0, 1, attempt=1).accepted  # it was asked for attempt 0
    made.task(0)
    assert made.send(0, 1).again  # what it sent before counts as before
    assert made.task(0).round == 2


def test_a_server_that_was_started_again_asks_anew(table):
    late(table(enough=2, late="buffer"))
    again = table(enough=2, late="buffer")
    again.begin(1)
    again.post(2)
    assert not again.send(2, 1).accepted
    assert again.task(2).round == 2


def test_after_the_last_round_a_late_answer_ends(table):
    made = table(enough=2, late="buffer")
    late(made)
    made.desk.stop("the run is over")
    receipt = made.send(2, 1)
    assert not receipt.accepted
    assert receipt.reason == "the run is over"
    assert made.task(2).kind == STOP


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"secure_aggregation": "sum"}, "secure sum"),
        ({"privacy": "central", "noise": 1.0}, "promise of central"),
    ],
    ids=["secure", "central"],
)
def test_buffer_does_not_go_with_what_needs_whole_rounds(world, given, words):
    with pytest.raises(UsageError, match=words):
        world(**given).serve(Patience(late="buffer"))


def test_fedbuff_over_the_network_uses_a_late_update(world):
    made = world(algorithm="fedbuff:buffer=2", sampling="uniform", per_round=3, rounds=3)
    second, came = threading.Event(), threading.Event()
    quick, waits, slow = (made.client(number) for number in range(3))
    asked, send, sent = quick._channel.next_task, slow._channel.upload, waits._channel.upload

    def seen(wait):
        found = asked(wait)
        if found is not None and found.round == 2:
            second.set()
        return found

    def slowly(update):
        if update.task == "train" and update.round == 1:
            second.wait(30)
            receipt = send(update)
            assert receipt.accepted
            came.set()
            return receipt
        return send(update)

    def after(update):
        if update.task == "train" and update.round == 2:
            came.wait(30)
        return sent(update)

    quick._channel.next_task, slow._channel.upload, waits._channel.upload = seen, slowly, after
    for name, client in (("c0", quick), ("c1", waits), ("c2", slow)):
        made.start(client, name)
    run = made.serve()
    assert [record.clients for record in run.records] == [2, 2, 2]
    assert run.records[0].metrics["staleness"] == 0.0
    assert run.records[1].metrics["staleness"] == 0.5  # one of two updates is of the round before
    assert set(made.ends.values()) == {"the run is over"}


def test_a_client_does_not_wait_for_ever_after_the_last_round(world, monkeypatch):
    made = world(clients=1, rounds=1)
    monkeypatch.setattr("fedloom.deploy.joining.client.LAST_WORD", 0.2)
    client = made.client(0)
    note = client._note

    def gone(*words):
        note(*words)
        made.network.fault = lambda *_: "lost"

    client._note = gone
    monkeypatch.setattr("fedloom.deploy.serving.host.GOODBYE", 0.5)
    made.start(client, "c0")
    made.serve()
    assert "the last round is done" in str(made.ends["c0"])


def test_an_upload_may_be_as_long_as_the_run_needs_and_no_longer():
    small = Pattern(1000, {}, frozenset(), "samples").largest
    large = Pattern(100_000_000, {}, frozenset(), "samples").largest
    assert small < 32 << 20
    assert 400_000_000 < large < 1_000_000_000
