"""Servers and clients that lie, and what stops them."""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedloom.config import Config
from fedloom.data import load_pair
from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.carrier.staging import Staging
from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.experiment import Experiment, Samples, told
from fedloom.deploy.joining.agreement import Agreement
from fedloom.deploy.joining.memory import Memory
from fedloom.deploy.joining.side import Side
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.facts import NUMBER, SAMPLES
from fedloom.deploy.protocol.messages import STOP, TRAIN, Hello, Poll, Task, Upload
from fedloom.deploy.seam import Identity, Refused, Unreachable
from fedloom.deploy.serving.checks import Pattern
from fedloom.deploy.serving.desk import Desk
from fedloom.deploy.serving.host import shown
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.serving.roster import Roster
from fedloom.deploy.serving.server import Server
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.identity import Keys
from fedloom.errors import DataError, UsageError
from fedloom.models import io
from fedloom.simulation.planning import plan_untried
from fedloom.simulation.setup import prepare_remote

SMALL = {
    **{"data": "digits", "clients": 4, "sampling": "all", "rounds": 3, "model": "2nn", "plan": "loop", "lr": 0.1},
    **{"batch_size": 50, "threads": 1, "device": "cpu", "lr_decay": 0.5},
}


@pytest.fixture(scope="module")
def run():
    """Everything that an honest server of a run has, for some settings."""
    train, _ = load_pair("digits")

    def make(**given):
        config = Config.of(**(SMALL | given))
        alike = Samples.of(train).nothing(len(train), "alike")
        setup = prepare_remote(config, io.create(config.model.name, train, 0), alike, None, [20] * 4)
        setup = setup.computed_in(plan_untried(config)["precision"])
        experiment = Experiment("run-1", setup.recipe("loop"), Samples.of(train), "2nn with fedavg")
        welcome = experiment.welcome()
        facts = {**welcome.experiment, "ready": True, "tables": json.loads(json.dumps(shown(config)))}
        own = replace(train, x=train.x[:20], y=train.y[:20])
        return SimpleNamespace(config=config, setup=setup, welcome=replace(welcome, experiment=facts), data=own)

    return make


def with_table(welcome, table: str, key: str, value):
    tables = {**welcome.experiment["tables"]}
    tables[table] = {**tables[table], key: value}
    return replace(welcome, experiment={**welcome.experiment, "tables": tables})


def side(made, folder) -> Side:
    return Side.make(Experiment.read(made.welcome), 0, made.data, Memory(folder), lambda _: None)


def task(made, number: int = 1, attempt: int = 0, **more) -> Task:
    return Task(TRAIN, number, attempt, vector=made.setup.start.clone(), lr=0.1, **more)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("model", "name", "2nn\nprivacy  local: hides you as a whole"),
        ("algorithm", "name", "\x1b[2J\x1b[8mfedavg"),
        ("training", "epochs", "1 \u202e"),
        ("run", "rounds", [1]),
        ("training", "lr", "0.1"),
        ("training", "lr", math.inf),
        ("run", "rounds", 10**300),
        ("evaluation", "clients_every", math.inf),
        ("evaluation", "clients_every", 0.5),
        ("data", "holdout", math.nan),
    ],
)
def test_a_server_cannot_draw_on_what_a_person_reads_before_agreeing(run, table, key, value):
    welcome = run().welcome
    assert Agreement.of(welcome, 20).lines()
    with pytest.raises(DataError, match="damaged"):
        Agreement.of(with_table(welcome, table, key, value), 20)


def test_a_title_cannot_draw_on_the_screen_either(run):
    welcome = run().welcome
    with pytest.raises(DataError, match="damaged"):
        Agreement.of(replace(welcome, experiment={**welcome.experiment, "title": "a\x1b[31mb"}), 20)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"lr": 0.11}, "learning rate"),
        ({"lr": math.nan}, "learning rate"),
        ({"lr": -0.1}, "learning rate"),
        ({"attempt": 3}, "again and again"),
        ({"round": 4}, "agreed to 3"),
        ({"round": 0}, "agreed to 3"),
    ],
)
def test_a_round_that_was_not_agreed_to_is_refused(run, more, words):
    made = run()
    agreed = Agreement.of(made.welcome, 20)
    for number in (1, 2, 3):
        agreed.check(replace(task(made, number, 2), lr=made.setup.lr(number)))
    with pytest.raises(DataError, match=words):
        agreed.check(replace(task(made), **more))


def test_a_model_of_the_zoo_is_the_one_of_that_name(run):
    made = run()
    Agreement.of(made.welcome, 20).hold(Experiment.read(made.welcome))
    other = run(model="mlp").welcome
    lie = replace(other, experiment={**other.experiment, "tables": made.welcome.experiment["tables"]})
    with pytest.raises(UsageError, match="something else"):
        Agreement.of(lie, 20).hold(Experiment.read(lie))


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("algorithm", "name", "fedavg"),
        ("algorithm", "mu", 0.2),
        ("run", "seed", 7),
        *(("training", key, value) for key, value in [("lr", 1.0), ("momentum", 0.5), ("weight_decay", 0.1)]),
        *(("training", key, value) for key, value in [("schedule", "constant"), ("optimizer", "adam"), ("epochs", 9)]),
    ],
)
def test_training_that_was_not_agreed_to_is_refused(run, table, key, value):
    made = run(algorithm="fedprox", **{"algorithm.mu": 0.1}, momentum=0.9, lr_schedule="cosine").welcome
    Agreement.of(made, 20).hold(Experiment.read(made))
    with pytest.raises(UsageError, match="something else"):
        Agreement.of(with_table(made, table, key, value), 20).hold(Experiment.read(made))


def test_a_client_that_has_answered_stays_the_number_that_it_was(run, tmp_path):
    made = run(privacy="local", clip=1.0, noise=1.0)
    for number in (1, 0):  # nothing was answered, and before a run begins places may change
        own = Side.make(
            Experiment.read(made.welcome), 0, made.data, Memory.of(tmp_path, "run-1", number), lambda _: None
        )
    assert not own.answer(task(made)).failure
    assert Memory.of(tmp_path, "run-1", 0).folder == own.memory.folder
    Memory.of(tmp_path, "run-2", 1)
    with pytest.raises(UsageError, match="calls this client number 1, and it was number 0"):
        Memory.of(tmp_path, "run-1", 1)


def test_how_it_is_trained_is_shown(run):
    shown = Agreement.of(run().welcome, 20).lines()
    assert "2nn with fedavg: fedavg, 3 rounds" in shown[0]
    assert shown[2].endswith("sgd with learning rate 0.1")
    given = {"algorithm.mu": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "lr_schedule": "cosine"}
    shown = Agreement.of(run(algorithm="fedprox", **given).welcome, 20).lines()
    assert "fedprox (mu 0.1), 3 rounds" in shown[0]
    assert shown[2].endswith("sgd with learning rate 0.1, momentum 0.9, weight decay 0.0001, cosine schedule")


@pytest.mark.parametrize(
    "change",
    [
        lambda w: replace(w, experiment={**w.experiment, "options": {"mu": 1e9}}),
        lambda w: replace(w, experiment={**w.experiment, "samples": {**w.experiment["samples"], "high": 1e30}}),
        lambda w: replace(w, experiment={**w.experiment, "config": {**w.experiment["config"], "weight_decay": 1e9}}),
        lambda w: replace(w, model={**w.model, "trainable": []}),
        lambda w: replace(w, vectors={**w.vectors, "start": w.vectors["start"] + 1}),
    ],
)
def test_clients_that_were_told_to_train_otherwise_are_in_no_secure_sum_together(run, change):
    made = run(secure_aggregation="sum")
    honest = made.welcome
    assert told(replace(honest, client=3)) == told(honest)
    assert told(change(honest)) != told(honest)


@pytest.mark.parametrize("given", [{"privacy": "local", "clip": 1.0, "noise": 1.0}, {"secure_aggregation": "sum"}])
def test_where_it_costs_privacy_a_round_is_answered_once(run, tmp_path, given):
    made = run(**given)
    own = side(made, tmp_path)
    first = own.answer(task(made))
    assert not first.failure
    assert own.answer(task(made)).metrics.get("loss") == first.metrics.get("loss")
    others = [task(made, 1, 1), task(made, 1, 12), replace(task(made), vector=made.setup.start + 1)]
    for other in others:
        assert "answered before" in side(made, tmp_path).answer(other).reason
    assert not own.answer(task(made, 2)).failure


def test_a_failure_is_an_answer_too(run, tmp_path):
    made = run(privacy="local", clip=1.0, noise=1.0)
    own = side(made, tmp_path)
    huge = replace(task(made), vector=torch.full_like(made.setup.start, 1e38))
    found = own.answer(huge)
    assert found.failure
    assert "loss" not in found.reason
    assert "epoch" not in found.reason
    assert "answered before" in side(made, tmp_path).answer(task(made)).reason


def test_a_trial_tells_no_loss_where_the_server_is_to_see_sums_only(run, tmp_path):
    assert "loss" in side(run(), tmp_path / "a").check(trial=True).facts
    assert "loss" not in side(run(secure_aggregation="sum"), tmp_path / "b").check(trial=True).facts


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_to_log_are_finite(value):
    pattern = Pattern(2, {}, frozenset({"loss"}), "samples")
    upload = Upload(1, delta=torch.zeros(2), weight=20.0, steps=1, metrics={"loss": 0.5})
    assert pattern.wrong(upload, 20) == ""
    assert "not finite" in pattern.wrong(replace(upload, metrics={"loss": value}), 20)


@pytest.fixture
def server(tmp_path):
    roster = Roster(tmp_path, 3)
    return Server("run", {}, "", roster, Desk(roster, Patience(), lambda _: None), None, lambda _: None)


def hello(name: str, samples: int = 20, shape=(8, 8), **more):
    facts = {SAMPLES: Samples(tuple(shape), ("a", "b"), 16.0).to_json(), NUMBER: None, **more}
    return Identity(name, name.encode().ljust(32)), Hello(name, samples=samples, facts=facts)


def test_who_comes_back_when_the_run_is_over_is_told_so_and_a_stranger_is_sent_away(server):
    server.register(*hello("ana"))
    server.stop("the run is over")
    who, again = hello("ana")
    server.register(who, again)
    task = server.next_task(who, 0.0)
    assert (task.kind, task.reason) == (STOP, "the run is over")
    with pytest.raises(Refused, match="the run is over"):
        server.register(*hello("mallory"))


def test_who_gets_no_place_does_not_say_what_samples_look_like(server):
    with pytest.raises(Refused, match="no samples"):
        server.register(*hello("mallory", 0, (5, 5)))
    assert server.register(*hello("ana")).client == 0


@pytest.mark.parametrize("more", [{"samples": 1 << 40}, {"shape": (1 << 20, 1 << 20)}, {"shape": (1,) * 40}])
def test_sizes_that_no_computer_has_are_refused(server, more):
    with pytest.raises(Refused):
        server.register(*hello("mallory", **more))
    assert not server.members()


def test_uploads_that_are_left_take_no_more_room_than_there_is():
    staging = Staging(None, most=3)
    for i in range(10):
        part, turn = staging.begin(bytes([i]), bytes(32), 100, 0)
        staging.add(part, turn, 0, memoryview(bytes(50)))
    assert [staging.have(bytes([i]), bytes(32)) for i in range(10)] == [0] * 7 + [50] * 3


@pytest.fixture
def net(tmp_path):
    """A server of gRPC that has something long to say, and takes note of what is refused."""
    grpc = pytest.importorskip("grpc")
    noted: list[dict] = []
    service = SimpleNamespace(next_task=lambda *_: Task(TRAIN, 1, vector=torch.zeros(4 << 20)))
    limits = Limits(clients=4, calls=1)
    listener = listen(service, Admission(tmp_path / "a.json"), limits=limits, folder=tmp_path, audit=noted.append)
    raw = grpc.insecure_channel(f"127.0.0.1:{listener.port}", [("grpc.use_local_subchannel_pool", 1)])
    channel = connect(listener.invite("127.0.0.1"), Keys.make(), "mallory")
    yield SimpleNamespace(raw=raw, channel=channel, noted=noted, error=grpc.RpcError)
    raw.close()
    channel.close()
    listener.stop(0.0)


def test_an_answer_that_is_not_read_counts_as_a_call(net):
    poll = messages.encode(Poll(0.0))
    ask = net.raw.unary_stream(f"/{frames.SERVICE}/Ask")  # another connection
    held = ask(net.channel._head(frames.POLL, len(poll), poll[-32:]) + poll)
    next(held)  # it has begun, and the rest stays where it is
    with pytest.raises(Unreachable):
        net.channel.heartbeat("as busy as it likes")
    held.cancel()
    ends, found = time.monotonic() + 10, None
    while found is None and time.monotonic() < ends:  # who has gone is not counted for ever
        with contextlib.suppress(Unreachable):
            found = net.channel.next_task(0.0)
    assert found is not None


def test_who_is_unknown_cannot_fill_the_disk_with_refusals(net):
    ask = net.raw.unary_stream(f"/{frames.SERVICE}/Ask")
    for _ in range(400):
        with pytest.raises(net.error):
            next(ask(b"nonsense"))
    refused = [row for row in net.noted if row.get("refused")]
    assert 200 <= len(refused) < 300
