"""Secure aggregation over the seam: the bits of the simulation, whoever drops out, and a server that sees only sums."""

from __future__ import annotations

import pytest
import torch

from fedloom.algorithms.sealed import SEALED, numbers
from fedloom.deploy.joining.memory import Memory
from fedloom.deploy.sealing.transcript import Transcript
from fedloom.errors import MissingDependency, TrainingError, UsageError
from fedloom.privacy.secagg import Step
from fedloom.privacy.secagg.packing import pack, packed_size
from fedloom.records import ClientFailure
from fedloom.rounds import Federation, begin, run
from fedloom.simulation.setup import prepare
from fedloom.simulation.simulate import simulate

pytest.importorskip("cryptography")
SHARES = {"clip": 1.0, "noise": 0.5, "noise_seed": 3, "secure_bits": 24}


@pytest.mark.parametrize(
    "given",
    [
        {"secure_aggregation": "protocol", "algorithm": "fedadam"},
        {"sampling": "uniform", "per_round": 3, "clients": 5, "algorithm": "fedprox"},
        {"privacy": "skellam", **SHARES},
        {"privacy": "distributed", **SHARES},
        {"privacy": "central", "clip": 0.5, "noise": 0.5, "noise_seed": 1},
        {"compress_down": "int8"},
    ],
    ids=["protocol", "sampled", "skellam", "distributed", "central", "packed down"],
)
def test_a_secure_run_has_the_bits_of_its_simulation(secure, tools, tmp_path, given):
    made = secure(**given)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    made.all()
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert [r.accuracy for r in here.records] == [r.accuracy for r in there.records]
    assert [r.clients for r in here.records] == [r.clients for r in there.records]
    assert not list((made.folder / "run" / "secure").iterdir())
    assert {str(end) for end in made.ends.values()} == {"the run is over"}


def test_all_messages_are_counted(secure, tmp_path):
    made = secure(secure_aggregation="protocol")
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    made.all()
    here = made.serve()
    config = 52 + 3 * 32  # with everybody's key, which a simulation does not send
    assert [r.bytes_up for r in here.records] == [r.bytes_up for r in there.records]
    assert [r.bytes_down - 3 * config for r in here.records] == [r.bytes_down for r in there.records]
    legs = [update for _, update in made.uploads if update.task == "secure"]
    assert sum(len(update.encoded) for update in legs) == sum(r.bytes_up for r in here.records)


def test_the_server_sees_no_update_and_no_noisy_client_says_more(secure, monkeypatch):
    made = secure(privacy="skellam", rounds=1, **SHARES)
    files, clients = [], made.all()
    finish = Transcript.finish

    def read(self):
        files.append(self._file._path.read_bytes())
        return finish(self)

    monkeypatch.setattr(Transcript, "finish", read)
    made.serve()
    seen = b"".join(update.encoded for _, update in made.uploads) + files[0]
    for number, client in enumerate(clients):
        (notes,) = client._folder.glob("run-*/*/secure.json")
        plain = numbers(Memory(notes.parent).beside((1, 0))[SEALED])
        packed = pack(plain, 24)
        assert packed_size(len(plain), 24) == len(packed) > 50_000
        assert not any(packed[i : i + 24] in seen for i in range(0, 30_000, 3_000))
        assert plain.tobytes()[:32] not in seen
        assert number in range(3)
    ready = [update for _, update in made.uploads if update.task == "train"]
    assert len(ready) == 3
    assert all(u.delta is None and not u.extra and not u.metrics and not u.encoded for u in ready)


def without(config, gone: int):
    """What a simulation makes of one round of which one client drops out."""
    setup = prepare(config, "digits")
    side = setup.side("loop")

    def engine(order):
        for client, result in zip(order.clients, side.run(order), strict=True):
            yield ClientFailure(f"client_{client}", "gone", "dropped") if client == gone else result

    gather = setup.protection.gather(setup.algorithm, setup.model)
    federation = Federation(setup.algorithm, engine, setup.schedule(), lambda *_: None, lr=setup.lr, gather=gather)
    ((record, snapshot),) = run(federation, begin(setup.algorithm, setup.start), 1)
    return record, snapshot.state["model"]


@pytest.mark.parametrize("step", list(Step), ids=lambda step: step.label)
def test_who_drops_out_before_the_masked_update_is_not_in_the_sum_and_who_does_later_is(secure, tools, step):
    made = secure(clients=4, rounds=1)
    record, expected = without(made.config, 2 if step <= Step.MASK else -1)
    clients = made.all()

    def leave(_, at):
        if at is step:
            raise UsageError("the lid was closed")

    made.leg(clients[2], leave)
    here = made.serve()
    assert torch.equal(tools.vector(here.model), expected)
    (found,) = here.records
    assert (found.clients, found.client_loss) == (record.clients, record.client_loss)
    assert found.clients == (3 if step <= Step.MASK else 4)
    assert [(f.client, f.kind) for f in found.failures] == [("client_2", "dropped")] * (4 - found.clients)
    assert all(f"step '{step.label}'" in f.reason and "the lid was closed" in f.reason for f in found.failures)


@pytest.mark.parametrize("step", [None, Step.SHARE, Step.REVEAL], ids=["training", "share", "reveal"])
def test_too_few_left_is_a_round_without_a_sum(secure, tools, step):
    made = secure(clients=4, rounds=1)
    clients = made.all()

    def leave(_, at=None):
        if at is step:
            raise UsageError("the lid was closed")

    for client in clients[:2]:
        made.leg(client, leave)
        if step is None:
            client._train = leave
    here = made.serve()
    (found,) = here.records
    assert found.clients == 0
    assert {"client_0", "client_1", "the cohort"} == {f.client for f in found.failures}
    assert torch.equal(tools.vector(here.model), prepare(made.config, "digits").start)


def test_a_drop_out_ends_a_run_whose_policy_is_to_stop(secure):
    made = secure(clients=4, rounds=1, policy="stop")
    clients = made.all()

    def leave(_, at):
        if at is Step.MASK:
            raise UsageError("the lid was closed")

    made.leg(clients[1], leave)
    with pytest.raises(TrainingError, match=r"client_1 .c1. has left: the lid was closed"):
        made.serve()


def test_a_client_that_is_killed_while_the_others_train_is_in_the_sum(secure, tools, tmp_path):
    made = secure(rounds=1)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    clients = made.all()

    def die(*_):
        made.start(made.client(1), "again")
        raise tools.gone

    made.leg(clients[1], die)
    here = made.serve()
    assert isinstance(made.ends["c1"], tools.gone)
    assert made.ends["again"] == "the run is over"
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert here.records[0].clients == 3


def test_a_client_that_is_killed_after_masking_is_asked_no_second_time(secure, tools):
    made = secure(rounds=2, clients=4)
    clients = made.all()

    def die(task, at):
        if at is Step.AGREE and task.round == 1:
            made.start(made.client(1), "again")
            raise tools.gone

    made.leg(clients[1], die)
    here = made.serve()
    assert [r.clients for r in here.records] == [4, 4]
    masked = [u.round for name, u in made.uploads if name == "c1" and u.facts.get("step") == Step.MASK and u.encoded]
    assert masked == [1, 2]
    gone = [u for name, u in made.uploads if name == "c1" and u.task == "secure" and u.failure]
    assert gone
    assert all("its keys were in memory" in update.reason for update in gone)


def test_what_a_client_agrees_to_says_what_the_server_sees(secure):
    made, agreed = secure(rounds=1, clients=4), []
    made.all(agree=lambda found: bool(agreed.append(found)) or True)
    made.serve()
    lines = "\n".join(agreed[0].lines())
    assert agreed[0].least == 3
    assert "under masks: the server sees only the sum of the updates of 3 clients or more" in lines
    assert "loss and accuracy" in lines


@pytest.mark.parametrize("changed", [{"dropouts": 0.4}, {"bits": 16}, {"secure": "off"}, {"cohort": 1000.0}])
def test_a_server_that_changes_the_seals_is_refused(secure, monkeypatch, changed):
    from fedloom.deploy.experiment import Experiment

    made, facts = secure(rounds=1), Experiment.facts
    monkeypatch.setattr(
        Experiment, "facts", lambda self: (lambda f: f | {"protection": f["protection"] | changed})(facts(self))
    )
    made.all()
    with pytest.raises(TrainingError, match="something else than what you agreed to"):
        made.serve()


def test_a_bound_on_single_updates_does_not_go_with_secure_sums(secure):
    made = secure()
    with pytest.raises(UsageError, match="--norm-bound looks at single updates"):
        made.serve(longest=10.0)
    assert not (made.folder / "run").exists()


def test_secure_sums_need_cryptography(secure, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(MissingDependency, match="cryptography"):
        secure().serve()
