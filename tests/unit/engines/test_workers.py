"""Worker processes: the bits of this process, whoever is killed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedloom import engines
from fedloom.algorithms.base import Broadcast
from fedloom.clients import ClientSide, Order, Population
from fedloom.engines.recipe import Blueprint, Recipe
from fedloom.engines.workers import Workers
from fedloom.errors import ModelError, TrainingError, UsageError
from fedloom.models import io
from fedloom.training.local import LocalConfig
from fedloom.training.shard import Shard

USER = """
import os, torch

class Net(torch.nn.Module):
    def __init__(self, n, classes):
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(n), torch.nn.Linear(n, classes)

    def forward(self, x):
        top = float(x.max())
        if top == 7.0:
            os.kill(os.getpid(), 9)
        if top == 8.0:
            raise ValueError("eight is\\ntoo much")
        return self.head(self.norm(x.flatten(1)))

def build(input_shape, n_classes):
    return Net(input_shape[0], n_classes)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, pids)):
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.fixture(scope="module")
def two(world, order):
    """Two workers. That closing ends them is seen when all tests with them are over: each start takes seconds."""
    engine = Workers(world.recipe, world.population, 2)
    yield engine
    pids = [hand.process.pid for hand in engine._hands]
    assert len(pids) == 2
    assert all(map(alive, pids))
    engine.close()
    engine.close()
    assert gone(pids, 0)
    with pytest.raises(UsageError, match="closed"):
        list(engine(order))


def test_the_same_bits_here_and_on_one_and_two_workers(world, two, final):
    states = [final(world, engines.in_process(world.side, 1)), final(world, two)]
    with Workers(world.recipe, world.population, 1) as one:
        states.append(final(world, one))
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[k], states[0][k]) for k in state)
    assert float(states[0]["control"].norm()) > 0


def test_results_come_in_the_orders_order_and_stay_while_they_are_held(world, two, order, wanted, same):
    held = list(two(order))
    for number in range(3, 7):
        list(two(replace(order, round=number)))
    same(held, wanted)


def test_a_slot_is_used_again_when_nobody_holds_its_result(two, order):
    for _ in range(3):
        for _result in two(order):
            pass
    del _result
    gc.collect()
    memory = two._memory
    assert len(memory._free) == memory._slots
    assert memory._out == 0


def test_clients_that_were_sent_different_versions(world, two, order, wanted, same):
    old = Broadcast(world.start * 1.5, order.broadcasts[0].extra)
    mixed = replace(order, broadcasts=tuple(old if i % 2 else order.broadcasts[0] for i in range(6)), stale=(0, 1) * 3)
    found = list(two(mixed))
    same(found, list(world.side.run(mixed)))
    assert not torch.equal(found[1].delta, wanted[1].delta)
    assert found[1].metrics["staleness"] == 1.0


def test_an_order_that_is_given_up_does_not_disturb_the_next(two, order, wanted, same):
    results = two(replace(order, round=9))
    next(results)
    results.close()
    same(list(two(order)), wanted)


def test_an_order_for_nobody(two, order):
    assert list(two(replace(order, clients=()))) == []


def test_a_killed_worker_is_replaced_and_nothing_is_lost(two, order, wanted, same):
    before = {hand.process.pid for hand in two._hands}
    results = two(order)
    first = next(results)
    os.kill(two._hands[0].process.pid, signal.SIGKILL)
    same([first, *results], wanted)
    assert len(two._hands) == 2
    assert len(before & {hand.process.pid for hand in two._hands}) == 1


def test_a_plan_that_trains_groups(world, order, same):
    recipe = replace(world.recipe, plan="vmap")
    with Workers(recipe, world.population, 1) as engine:
        same(list(engine(order)), list(replace(world.side, plan="vmap").run(order)))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A model of the user's own; client 1's worker is killed, client 2 raises, client 3 has no samples."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "net.py").write_text(USER)
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.random((50, 4), dtype=np.float32)), torch.from_numpy(rng.integers(0, 3, 50))
    x[10], x[20] = 7.0, 8.0
    from fedloom.data.dataset import Dataset

    data = Dataset.of(rng.random((9, 4)), np.arange(9) % 3, high=None)
    model = io.create("net.py:build", data, 1, base=folder)
    parts = [np.arange(10), np.arange(10, 20), np.arange(20, 30), np.arange(0), np.arange(30, 50)]
    population = Population(Shard("pool", x, y, 1.0), parts)
    config = LocalConfig(epochs=1, batch_size=5, lr=0.1)
    recipe = Recipe(Blueprint.of(model), "fedavg", {}, config, 5)
    with Workers(recipe, population, 1) as engine:
        yield engine, model, population, config


def order_for(model, *clients):
    return Order(1, clients, (Broadcast(model.vector()),))


def test_a_model_of_the_users_own(foreign, same):
    from fedloom import algorithms

    engine, model, population, config = foreign
    algorithm = algorithms.make("fedavg", algorithms.Setting(model, config, 5))
    order = order_for(model, 4, 0)
    same(list(engine(order)), list(ClientSide(model, population, algorithm, config).run(order)))


def test_an_exception_names_the_client_in_one_line(foreign):
    engine, model, *_ = foreign
    with pytest.raises(TrainingError, match=r"^client_2: ") as caught:
        list(engine(order_for(model, 0, 2, 4)))
    assert str(caught.value) == "client_2: ValueError: eight is too much"
    assert caught.value.context["client"] == "client_2"
    assert "net.py" in caught.value.__notes__[0]
    assert len(list(engine(order_for(model, 0, 4)))) == 2


def test_an_error_of_fedlooms_keeps_its_class(foreign):
    from fedloom.errors import DataError

    engine, model, *_ = foreign
    with pytest.raises(DataError, match=r"^client_3: there is not one sample"):
        list(engine(order_for(model, 0, 3)))


def test_a_client_that_kills_two_workers_ends_the_round(foreign, same):
    engine, model, *_ = foreign
    with pytest.raises(TrainingError, match=r"^client_1: 2 workers ended while training here.*signal 9"):
        list(engine(order_for(model, 0, 1, 4)))
    assert len(list(engine(order_for(model, 0, 4)))) == 2


def test_a_model_that_cannot_be_made_is_told_once(foreign, tmp_path):
    _, model, population, config = foreign
    blueprint = replace(Blueprint.of(model), architecture=replace(model.architecture, base=tmp_path))
    recipe = Recipe(blueprint, "fedavg", {}, config, 5)
    with Workers(recipe, population, 1) as engine, pytest.raises(ModelError, match=r"net\.py: no such file"):
        list(engine(order_for(model, 0)))


SCRIPT = """
    import signal, sys, numpy as np
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests in the background ignores it
    from fedloom.clients import Order, Population
    from fedloom.algorithms.base import Broadcast
    from fedloom.data.dataset import Dataset
    from fedloom.engines.recipe import Blueprint, Recipe
    from fedloom.engines.workers import Workers
    from fedloom.models import io
    from fedloom.training.local import LocalConfig
    from fedloom.training.shard import Shard
    chance = np.random.default_rng(0)
    data = Dataset.of(chance.random((400, 64)), chance.integers(0, 10, 400), high=None)
    model = io.create("mlp", data, 0)
    population = Population(Shard.of(data, model), np.array_split(np.arange(400), 4))
    engine = Workers(Recipe(Blueprint.of(model), "fedavg", {}, LocalConfig(epochs=1), 4), population, 1)
    assert len(list(engine(Order(1, (0, 1, 2, 3), (Broadcast(model.vector()),))))) == 4
    print(*[hand.process.pid for hand in engine._hands], flush=True)
    while True:
        for _ in engine(Order(2, (0, 1, 2, 3), (Broadcast(model.vector()),))):
            pass
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_a_script_that_has_no_main_guard(tmp_path, number):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        line = run.stdout.readline()
        pids = [int(word) for word in line.split()]
        run.send_signal(number)
        try:
            _, errors = run.communicate(timeout=20)
        finally:
            run.kill()  # a script that does not end must not keep the tests from ending
    assert len(pids) == 1, errors
    assert gone(pids)
    assert "leaked" not in errors
