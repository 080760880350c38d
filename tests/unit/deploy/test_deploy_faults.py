"""What goes wrong on the way: lost calls, late and lying clients, a server that is killed; over the seam, in this process."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedloom import events as log
from fedloom.data.dataset import Dataset
from fedloom.deploy.experiment import Experiment
from fedloom.deploy.joining.client import Client
from fedloom.deploy.protocol.messages import Upload
from fedloom.deploy.seam import Refused
from fedloom.deploy.serving.engine import Remote
from fedloom.deploy.serving.host import host
from fedloom.deploy.serving.patience import Patience
from fedloom.errors import TrainingError, UsageError
from fedloom.simulation.simulate import simulate


class Killed(BaseException):
    """What a kill looks like from inside."""


def simulated(folder, config):
    return simulate(config, out=folder, progress=False)


def altered(client: Client, change) -> Client:
    """Let a client send something else than it learned."""
    channel = client._channel
    send = channel.upload
    channel.upload = lambda update: send(change(update) if update.task == "train" else update)
    return client


def test_lost_calls_and_lost_answers_change_nothing(world, tools, tmp_path):
    made = world(rounds=3, algorithm="scaffold")
    there = simulated(tmp_path / "there", made.config)
    chance = np.random.default_rng(0)
    lock = threading.Lock()

    def fault(_: str, method: str) -> str:
        with lock:
            return str(chance.choice(["ok", "lost", "unanswered"], p=[0.6, 0.2, 0.2]))

    made.network.fault = fault
    for number in range(3):
        made.start(made.client(number, manners=replace(tools.quick, patience=3.0)), f"c{number}")
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert all(record.clients == 3 for record in here.records)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda u: replace(u, delta=torch.full_like(u.delta, float("nan"))), "not finite"),
        (lambda u: replace(u, delta=u.delta[:-1]), "is expected"),
        (lambda u: replace(u, delta=u.delta.double()), "is expected"),
        (lambda u: replace(u, delta=1e6 * u.delta), "is the most"),
        (lambda u: replace(u, weight=1e9), "its weight is 1e+09"),
        (lambda u: replace(u, weight=float("nan")), "its weight is nan"),
        (lambda u: replace(u, extra={"control": u.delta}), "not what was asked for"),
        (lambda u: replace(u, metrics={"password": 1.0}), "not asked for"),
        (lambda u: replace(u, delta=None), "holds nothing"),
    ],
    ids=["nan", "short", "double", "long", "heavy", "no weight", "extra", "metrics", "nothing"],
)
def test_what_no_honest_client_sends_is_refused(world, change, words):
    made = world(rounds=1, clients=2)
    made.start(made.client(0), "honest")
    made.start(altered(made.client(1), change), "liar")
    run = made.serve(longest=100.0)
    (failure,) = run.records[0].failures
    assert run.records[0].clients == 1
    assert (failure.client, failure.kind) == ("client_1", "refused")
    assert words in failure.reason
    assert "client_1 (c1)" in failure.reason


def test_a_client_that_fails_tells_why_with_file_and_line(world, monkeypatch):
    made = world(rounds=1, clients=2)
    made.start(made.client(0), "c0")

    def broken(task, kept):
        return {}["weights"]

    bad = made.client(1)
    ready = bad._made

    def with_bug(welcome):
        side = ready(welcome)
        object.__setattr__(side, "_turn", broken)
        return side

    monkeypatch.setattr(bad, "_made", with_bug)
    made.start(bad, "c1")
    run = made.serve()
    (failure,) = run.records[0].failures
    assert (failure.client, failure.kind) == ("client_1", "dropped")
    assert "test_deploy_faults.py, line" in failure.reason
    assert "KeyError" in failure.reason
    assert any("round 1: client_1 (c1)" in text for text in made.said)


def test_a_client_that_lives_and_never_gets_ready_does_not_hold_up_the_beginning(world):
    made = world(rounds=1, clients=2)
    made.start(made.client(0), "c0")
    slow = made.client(1)
    slow._check = lambda _: (setattr(slow, "_doing", "getting ready"), time.sleep(2.0))
    thread = made.start(slow, "c1")
    with pytest.raises(TrainingError, match=r"client_1 \(c1\): it was not ready within 1 s"):
        made.serve(Patience(deadline=1.0, away=60.0))
    thread.join(20)
    assert made.ends["c1"].startswith("the run has ended")


def test_a_client_that_goes_silent_is_dropped_and_may_come_back(world, tools):
    made = world(rounds=4, clients=2, checkpoint_every=1)
    gone = threading.Event()

    def fault(who: str, _: str) -> str:
        return "lost" if who == "c1" and gone.is_set() else "ok"

    made.network.fault = fault
    made.start(made.client(0), "c0")
    late = made.client(1, manners=replace(tools.quick, patience=3.0))
    notes = late._note

    def after(task, *rest):
        notes(task, *rest)
        if task.round == 1:
            gone.set()

    late._note = after
    made.start(late, "c1")
    run = made.serve(Patience(away=0.5))
    assert run.records[0].clients == 2
    assert run.records[1].clients == 1
    assert "was not heard of" in run.records[1].failures[0].reason
    assert run.records[1].failures[0].kind == "dropped"


def test_a_late_update_is_refused_and_the_client_goes_on(world):
    made = world(rounds=2, clients=2)
    made.start(made.client(0), "c0")
    slow = made.client(1)
    answers = []

    def late(update: Upload) -> Upload:
        if update.round == 1:
            time.sleep(1.5)
        return update

    altered(slow, late)
    note = slow._note
    slow._note = lambda task, answer, receipt, seconds: (answers.append(receipt), note(task, answer, receipt, seconds))
    made.start(slow, "c1")
    run = made.serve(Patience(deadline=0.7))
    assert run.records[0].failures[0].kind == "late"
    assert not answers[0].accepted
    assert "over" in answers[0].reason


def test_a_quorum_waits_beyond_the_deadline(world):
    made = world(rounds=1, clients=2)
    made.start(made.client(0), "c0")
    made.start(altered(made.client(1), lambda u: time.sleep(1.0) or u), "c1")
    run = made.serve(Patience(deadline=0.2, quorum=2))
    assert run.records[0].clients == 2


def test_a_server_that_was_killed_goes_on_and_nobody_trains_twice(world, tools, tmp_path, monkeypatch):
    made = world(rounds=4, algorithm="scaffold")
    there = simulated(tmp_path / "there", made.config)
    trained: list[tuple[int, int]] = []
    clients = [made.client(number) for number in range(3)]
    for number, client in enumerate(clients):
        real = client._made

        def counting(welcome, real=real, number=number):
            side = real(welcome)
            turn = side._turn
            object.__setattr__(
                side, "_turn", lambda task, kept: (trained.append((number, task.round)), turn(task, kept))[1]
            )
            return side

        client._made = counting
        made.start(client, f"c{number}")
    killed = []

    def dying(order):
        for position, result in enumerate(engine(order)):
            if order.round == 3 and position == 1:
                killed.append(order.round)
                made.network.service = None
                raise Killed
            yield result

    engine = None

    class Dying(Remote):
        def __call__(self, order):
            nonlocal engine
            engine = super().__call__
            return dying(order)

    with monkeypatch.context() as patch:
        patch.setattr("fedloom.deploy.serving.host.Remote", Dying)
        with pytest.raises(Killed):
            host(made.config, made.folder / "run", made.listen)
    here = made.serve()
    assert killed
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert [r.round for r in log.rounds(log.read(here.folder).rows)] == [1, 2, 3, 4]
    assert sorted(trained) == [(c, r) for c in range(3) for r in range(1, 5)]


def test_a_server_without_data_still_knows_after_a_kill_what_samples_look_like(world, monkeypatch):
    made = world(rounds=3, data="none")
    for number in range(3):
        made.start(made.client(number), f"c{number}")

    class Dying(Remote):
        def __call__(self, order):
            if order.round == 2:
                made.network.service = None
                raise Killed
            return super().__call__(order)

    with monkeypatch.context() as patch:
        patch.setattr("fedloom.deploy.serving.host.Remote", Dying)
        with pytest.raises(Killed):
            host(made.config, made.folder / "run", made.listen)
    assert len(made.serve().records) == 3
    assert set(made.ends.values()) == {"the run is over"}


def test_more_clients_than_places_are_sent_away_and_numbers_are_kept(world):
    made = world(rounds=1, clients=2)
    made.start(made.client(0), "c0")
    made.start(made.client(1), "c1")

    def told(count):
        if count == 2:
            with pytest.raises(Refused, match="all 2 places"):
                made.client(None, "third").run()

    @contextmanager
    def asking(server):
        with made.listen(server):
            yield told

    assert host(made.config, made.folder / "run", asking).records[0].clients == 2


def test_a_client_with_other_samples_is_sent_away(world):
    made = world(rounds=1, clients=1)
    wrong = Dataset.of(np.zeros((20, 4, 4), np.uint8), np.arange(20) % 10, name="wrong", high=16.0)
    named = Dataset.of(np.zeros((20, 8, 8), np.uint8), ["cat", "dog"] * 10, name="named", high=16.0)
    made.start(made.client(0, "wrong", wrong), "wrong")
    made.start(made.client(0, "named", named), "named")
    made.start(made.client(0, "right"), "right")
    made.serve()
    assert "samples of shape (4, 4)" in str(made.ends["wrong"])
    assert "class 'cat' is none" in str(made.ends["named"])


def test_whoever_does_not_agree_leaves_and_another_takes_the_place(world):
    made = world(rounds=1, clients=1)
    shown = []

    def no(found):
        shown.extend(found.lines())
        return False

    def then():
        made.start(made.client(0, "no", agree=no), "no").join(20)
        made.start(made.client(0, "yes"), "yes")

    waiting = threading.Thread(target=then)
    waiting.start()
    record = made.serve().records[0]
    waiting.join(20)
    assert record.clients == 1
    assert isinstance(made.ends["no"], UsageError)
    assert made.ends["yes"] == "the run is over"
    assert any("2nn" in text for text in shown)
    assert not list((made.folder / "home-no").rglob("turn-*"))


def test_what_was_agreed_to_is_what_is_trained(world, monkeypatch):
    made = world(rounds=1, clients=1, privacy="local", noise=1.0)
    facts = Experiment.facts

    def without_noise(self):
        said = facts(self)
        said["protection"]["multiplier"] = 0.0
        return said

    made.start(made.client(0), "c0")
    monkeypatch.setattr(Experiment, "facts", without_noise)
    with pytest.raises(TrainingError, match="something else than what you agreed to"):
        made.serve()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"algorithm": "central"}, "cannot be served"),
        ({"network": "lan"}, "simulates slow clients"),
        ({"attack": "sign-flip", "attack_fraction": 0.4}, "leave .attack. out"),
        ({"holdout": 0.2, "privacy": "local", "noise": 1.0}, "does not hide what clients tell"),
    ],
    ids=["central", "network", "attack", "holdout"],
)
def test_what_a_network_does_not_have_is_refused_before_anybody_joins(world, given, words):
    made = world(**given)
    with pytest.raises(UsageError, match=words):
        made.serve()
    assert not (made.folder / "run").exists()
