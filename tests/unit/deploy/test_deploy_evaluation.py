"""Evaluation on samples that clients keep apart: the rows of the simulation, and what goes wrong on the way."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from fedloom import events as log
from fedloom.algorithms.base import Broadcast
from fedloom.clients import Order
from fedloom.config import Config
from fedloom.deploy.joining.agreement import Agreement
from fedloom.deploy.joining.memory import Memory
from fedloom.deploy.protocol.messages import EVALUATE, TRAIN, Task, Upload, Welcome
from fedloom.deploy.seam import Identity, Unreachable
from fedloom.deploy.serving.checks import Pattern
from fedloom.deploy.serving.desk import Desk
from fedloom.deploy.serving.evaluation import ATTEMPT, Scores
from fedloom.deploy.serving.host import host, shown
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.serving.roster import Roster
from fedloom.errors import DataError
from fedloom.records import ClientFailure
from fedloom.simulation.simulate import simulate

APART = {"holdout": 0.2, "clients_every": 2, "rounds": 3}


class Killed(BaseException):
    """What a kill looks like from inside."""


def rows(run) -> list[dict]:
    return [row for row in log.read(run.folder).rows if row["event"] == "clients"]


def same(run, other) -> bool:
    """Whether two runs say the same of their clients, but for the time."""
    first, second = ([{**row, "time": 0} for row in rows(one)] for one in (run, other))
    return first == second and list(run.clients) == list(other.clients) and len(first) > 0


def altered(client, change):
    """Let a client answer evaluations otherwise."""
    send = client._channel.upload
    client._channel.upload = lambda update: send(change(update) if update.task == EVALUATE else update)
    return client


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"algorithm": "ditto"},
        {"algorithm": "fedper", "sampling": "uniform", "per_round": 2, "compress_down": "int8"},
    ],
    ids=["fedavg", "ditto", "fedper"],
)
def test_clients_evaluate_as_in_the_simulation(world, tools, tmp_path, given):
    made = world(**APART, **given)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    for number in range(3):
        made.start(made.client(number), f"c{number}")
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert [r.client_loss for r in here.records] == [r.client_loss for r in there.records]
    assert same(here, there)
    assert {row["round"] for row in rows(here)} == {2, 3}
    sent = [json.loads(line) for line in (made.folder / "home-c0" / "sent.jsonl").read_text().splitlines()]
    counts = [row for row in sent if row["task"] == EVALUATE]
    assert [(row["round"], row["bytes"], row["accepted"]) for row in counts] == [(2, 0, True), (3, 0, True)]
    assert all(0 < row["right"] <= row["samples"] == round(0.2 * len(made.part(0))) for row in counts)


def test_of_many_clients_the_same_are_drawn_as_in_the_simulation(world, tmp_path, monkeypatch):
    monkeypatch.setattr("fedloom.simulation.evaluation.MOST", 2)
    made = world(holdout=0.5, rounds=1)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    for number in range(3):
        made.start(made.client(number), f"c{number}")
    here = made.serve(trial=True)
    assert same(here, there)
    assert [row["clients"] for row in here.clients] == [2]


def test_under_secure_aggregation_counts_are_in_the_clear(secure, tools, tmp_path):
    pytest.importorskip("cryptography")
    made = secure(holdout=0.2, rounds=1)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    agreed = []
    made.all(agree=lambda found: bool(agreed.append(found)) or True)
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert same(here, there)
    leaves = next(line for line in agreed[0].lines() if line.startswith("leaves"))
    assert "In the clear: how many steps you took" in leaves
    assert leaves.endswith("how many samples you have, and how many of those kept apart a model gets right")


def test_evaluation_over_grpc(tools, tmp_path):
    pytest.importorskip("grpc")
    from fedloom.deploy.joining.join import join
    from fedloom.deploy.serving.serve import Place, serve

    config = Config.of(**(tools.small | {"holdout": 0.2, "clients": 2, "rounds": 1, "algorithm": "ditto"}))
    there = simulate(config, out=tmp_path / "there", progress=False)
    threads = []

    def invited(text: str) -> None:
        for number in range(2):
            home, own = tmp_path / f"home-{number}", tools.part(config, number)
            more = {"name": f"c{number}", "state": home, "number": number, "device_name": "cpu", "manners": tools.quick}
            args = (text, own)
            kwargs = {**more, "agree": lambda found: True, "say": lambda text: None}
            threads.append(threading.Thread(target=join, args=args, kwargs=kwargs, daemon=True))
            threads[-1].start()

    place = Place("127.0.0.1:0")
    here = serve(config, place, out=tmp_path / "here", say=lambda text: None, invited=invited, progress=False)
    for thread in threads:
        thread.join(20)
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert same(here, there)


def test_a_client_that_is_killed_in_an_evaluation_is_left_out(world, tools, monkeypatch):
    monkeypatch.setattr("fedloom.deploy.serving.host.GOODBYE", 0.1)
    made = world(holdout=0.2, clients=2, rounds=1)

    def die(_):
        raise tools.gone

    made.start(made.client(0), "c0")
    made.start(altered(made.client(1), die), "c1")
    run = made.serve(Patience(away=0.5))
    assert run.records[0].clients == 2
    assert [(row["round"], row["clients"]) for row in run.clients] == [(1, 1)]
    assert any("round 1: evaluated on 1 of 2 clients (client_1 (c1) was not heard of" in text for text in made.said)


def test_an_evaluation_that_nobody_answers_holds_up_nothing(world, tools, monkeypatch):
    monkeypatch.setattr("fedloom.deploy.serving.host.GOODBYE", 0.1)
    made = world(holdout=0.2, clients=2, rounds=1)

    def die(_):
        raise tools.gone

    made.start(altered(made.client(0), lambda u: replace(u, facts={}, failure="dropped", reason="no")), "c0")
    made.start(altered(made.client(1), die), "c1")
    run = made.serve(Patience(deadline=30.0, away=0.5))
    assert run.records[0].clients == 2
    assert run.clients == ()


def test_a_client_that_comes_back_has_its_own_model(world, tools, tmp_path):
    made = world(holdout=0.2, algorithm="ditto", rounds=2)
    there = simulate(made.config, out=tmp_path / "there", progress=False)

    def die(_):
        made.start(made.client(2), "c2")
        raise tools.gone

    for number in range(2):
        made.start(made.client(number), f"c{number}")
    made.start(altered(made.client(2), die), "killed")
    assert same(made.serve(), there)
    assert isinstance(made.ends["killed"], tools.gone)
    assert made.ends["c2"] == "the run is over"


@pytest.mark.parametrize("sealed", [False, True], ids=["open", "secure"])
def test_a_server_that_is_killed_in_an_evaluation_asks_again(world, secure, tmp_path, monkeypatch, sealed):
    if sealed:
        pytest.importorskip("cryptography")
    given = {**APART, "rounds": 2} | ({} if sealed else {"algorithm": "ditto"})
    made = (secure if sealed else world)(**given)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    for number in range(3):
        made.start(made.client(number), f"c{number}")
    result, taken = Desk.result, []

    def dies(desk, number):
        if not desk._open.trains:
            taken.append(number)
        if len(taken) == 2:
            made.network.service = None
            raise Killed
        return result(desk, number)

    with monkeypatch.context() as patch:
        patch.setattr(Desk, "result", dies)
        with pytest.raises(Killed):
            host(made.config, made.folder / "run", made.listen)
    here = made.serve()
    assert taken == [0, 1]
    assert same(here, there)
    assert [record.clients for record in here.records] == [3, 3]
    assert made.ends == {f"c{n}": "the run is over" for n in range(3)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda u: replace(u, facts={**u.facts, "right": u.facts["samples"] + 1}), "cannot be right"),
        (lambda u: replace(u, facts={**u.facts, "own": -1}), "-1 of"),
        (lambda u: replace(u, facts={**u.facts, "samples": 1}), "it is of 1 samples"),
        (lambda u: replace(u, facts={**u.facts, "right": 0.5}), "does not say how many"),
        (lambda u: replace(u, facts={**u.facts, "right": True}), "does not say how many"),
        (lambda u: replace(u, facts={}), "does not say how many"),
        (lambda u: replace(u, facts={**u.facts, "password": 1}), "does not say how many"),
        (lambda u: replace(u, delta=torch.zeros(3)), "more than counts"),
        (lambda u: replace(u, metrics={"loss": 0.0}), "more than counts"),
        (lambda u: replace(u, task=TRAIN), "more than counts"),
    ],
    ids=["many", "negative", "samples", "half", "flag", "nothing", "strange", "vector", "metrics", "kind"],
)
def test_counts_that_no_honest_client_sends_are_refused(change, words):
    form = Scores(0.2, ("right", "own"))
    honest = Upload(3, ATTEMPT, EVALUATE, facts={"samples": 20, "right": 20, "own": 0})
    assert form.wrong(honest, 100) == ""
    assert words in form.wrong(change(honest), 100)


def test_a_lying_client_is_in_no_row(world):
    made = world(holdout=0.2, clients=2, rounds=1)
    made.start(made.client(0), "honest")
    made.start(altered(made.client(1), lambda u: replace(u, facts={**u.facts, "right": 10**6})), "liar")
    run = made.serve()
    assert [row["clients"] for row in run.clients] == [1]
    assert any("client_1 (c1)'s evaluation was refused: 1000000 of" in text for text in made.said)
    assert made.ends["liar"] == "the run is over"


def test_the_weight_of_an_update_is_of_the_samples_that_are_trained_on(world):
    made = world(holdout=0.2, clients=2, rounds=1)
    made.start(made.client(0), "honest")
    greedy, own = made.client(1), len(made.part(1))
    send = greedy._channel.upload
    greedy._channel.upload = lambda u: send(replace(u, weight=float(own)) if u.task == TRAIN else u)
    made.start(greedy, "greedy")
    run = made.serve()
    assert f"its weight is {own} where {own - round(0.2 * own)} is expected" in run.records[0].failures[0].reason


def test_a_client_with_one_sample_has_nothing_to_keep_apart(world):
    made = world(holdout=0.2, clients=1, rounds=1)
    made.start(made.client(0, "small", replace(made.part(0), x=made.part(0).x[:1], y=made.part(0).y[:1])), "small")
    made.start(made.client(0, "large"), "large")
    made.serve()
    assert "small has one sample, and none to keep apart" in str(made.ends["small"])


def agreement(**given) -> Agreement:
    tables = shown(Config.of(data="digits", clients=3, rounds=6, **given))
    return Agreement.of(Welcome(0, 3, "run", {"tables": tables, "title": "run"}), 100)


@pytest.mark.parametrize(
    ("given", "rounds"),
    [
        ({}, []),
        ({"holdout": 0.2}, [6]),
        ({"holdout": 0.2, "clients_every": 4}, [4, 6]),
        ({"holdout": 0.2, "target": 0.9, "stop_at_target": True}, [1, 2, 3, 4, 5, 6]),
    ],
    ids=["none", "last", "every", "target"],
)
def test_only_evaluations_that_were_agreed_to_are_made(given, rounds):
    agreed = agreement(**given)

    for number in range(9):
        words = (
            nullcontext() if number in rounds else pytest.raises(DataError, match=f"an evaluation after round {number}")
        )
        with words:
            agreed.check_evaluation(Task(EVALUATE, number, ATTEMPT))


def test_what_is_kept_apart_is_said_before_anybody_agrees():
    lines = agreement(holdout=0.2, clients_every=2).lines()
    assert any("training here, on your 80 samples" in line for line in lines)
    (apart,) = (line for line in lines if line.startswith("apart"))
    assert apart.startswith("apart    20 more of your samples (20 %) are never trained on")
    assert apart.endswith("after every 2 rounds and the last one")
    assert not any("apart" in line for line in agreement().lines())
    with pytest.raises(DataError, match="does not hide what is told"):
        agreement(holdout=0.2, privacy="local", noise=1.0)


@pytest.mark.parametrize("share", [-0.1, 1, float("nan"), "0.2", [0.2]])
def test_a_share_that_is_none_is_refused(share):
    tables = shown(Config.of(data="digits", clients=3, holdout=0.2))
    tables["data"]["holdout"] = share
    with pytest.raises(DataError, match="damaged"):
        Agreement.of(Welcome(0, 3, "run", {"tables": tables}), 100)


def test_a_client_that_did_not_agree_leaves_instead_of_evaluating(world):
    made = world(clients=1, rounds=1)
    client = made.client(0)
    next_task = client._channel.next_task

    def greedy(wait):
        task = next_task(wait)
        return replace(task, kind=EVALUATE) if task is not None and task.kind == TRAIN else task

    client._channel.next_task = greedy
    made.start(client, "c0")
    assert made.serve().records[0].clients == 0
    assert isinstance(made.ends["c0"], DataError)
    assert "you did not agree to that" in str(made.ends["c0"])


def test_where_sums_are_secure_a_client_evaluates_once_per_round(tmp_path):
    memory, task = Memory(tmp_path), Task(EVALUATE, 2, ATTEMPT, vector=torch.zeros(3))
    assert memory.begin_evaluation(task)
    assert memory.begin_evaluation(task)
    assert not memory.begin_evaluation(replace(task, vector=torch.ones(3)))
    assert not memory.begin_evaluation(replace(task, round=1))
    assert memory.begin_evaluation(replace(task, round=3))


def test_a_client_that_is_late_with_its_training_is_not_asked_and_its_update_is_not_lost(tmp_path):
    roster = Roster(tmp_path, 2)
    desk = Desk(roster, Patience(late="buffer", enough=1), lambda _: None)
    fast, slow = (roster.admit(Identity(f"c{n}", bytes([n]) * 32), 10, n) for n in range(2))
    desk.begin(Pattern(1, {}, frozenset(), "samples"), keeps=False, done=0)
    sent = (Broadcast(torch.zeros(1)),)
    training, evaluating = Order(1, (0, 1), sent), Order(1, (0, 1), sent, attempt=ATTEMPT)
    update = Upload(1, delta=torch.zeros(1), weight=10.0)
    desk.post(training)
    assert desk.task(fast, 0).kind == desk.task(slow, 0).kind == TRAIN
    assert desk.take(fast, update).accepted
    assert [isinstance(desk.result(n), ClientFailure) for n in (0, 1)] == [False, True]
    desk.close(training)
    desk.post(evaluating, Scores(0.2, ("right",)))
    assert desk.task(fast, 0).kind == EVALUATE
    assert desk.task(slow, 0) is None
    with pytest.raises(Unreachable):
        desk.take(slow, update)
    assert desk.take(fast, counts := Upload(1, ATTEMPT, EVALUATE, facts={"samples": 2, "right": 1})).accepted
    assert desk.take(fast, counts).again
    assert [isinstance(desk.result(n), ClientFailure) for n in (0, 1)] == [False, True]
    desk.close(evaluating)
    assert not desk.take(slow, counts).accepted  # nobody waits for it, and it may go on
    desk.post(replace(training, round=2))
    assert desk.take(slow, update).accepted
