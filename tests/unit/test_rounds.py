from __future__ import annotations

import math

import pytest
import torch

from fedloom import rounds
from fedloom.metrics import Counts
from fedloom.records import ClientUpdate

TARGETS = {"ana": torch.tensor([1.0, 0.0]), "luis": torch.tensor([0.0, 3.0])}


def engine(number, start):
    """Every client goes half of the way to a place of its own."""
    for name, target in TARGETS.items():
        yield ClientUpdate(name, (target - start) / 2, 1.0 if name == "ana" else 3.0, 1, {"loss": float(number)})


def mean(number, start, updates):
    updates = list(updates)
    return start + sum(u.delta * u.weight for u in updates) / sum(u.weight for u in updates)


def evaluate(vector):
    return Counts.of(torch.stack([vector, vector.flip(0)]), torch.tensor([1, 1]))


def test_the_loop_trains_merges_and_evaluates():
    made = list(rounds.run(torch.zeros(2), engine, mean, evaluate, 3))
    assert [record.round for record, _ in made] == [1, 2, 3]
    goal = torch.tensor([0.25, 2.25])
    for number, (record, vector) in enumerate(made, 1):
        torch.testing.assert_close(vector, goal * (1 - 0.5**number))
        assert (record.clients, record.client_loss, record.accuracy) == (2, number, 0.5)
        assert record.seconds > 0


def test_a_run_is_resumed_where_it_stopped():
    whole = list(rounds.run(torch.zeros(2), engine, mean, evaluate, 5))
    rest = list(rounds.run(whole[1][1], engine, mean, evaluate, 5, first=3))
    assert [r.round for r, _ in rest] == [3, 4, 5]
    assert torch.equal(rest[-1][1], whole[-1][1])
    assert list(rounds.run(torch.zeros(2), engine, mean, evaluate, 2, first=3)) == []


def test_updates_stream_into_the_merge_one_at_a_time():
    log = []

    def traced(number, start):
        for update in engine(number, start):
            log.append(f"trained {update.client}")
            yield update

    def consuming(number, start, updates):
        for update in updates:
            log.append(f"merged {update.client}")
        return start

    list(rounds.run(torch.zeros(2), traced, consuming, evaluate, 1))
    assert log == ["trained ana", "merged ana", "trained luis", "merged luis"]


def test_a_loss_that_nobody_reports_is_no_number():
    def silent(number, start):
        yield ClientUpdate("ana", start, 1.0, 1)

    record, _ = next(rounds.run(torch.zeros(2), silent, mean, evaluate, 1))
    assert math.isnan(record.client_loss)


def test_an_interrupted_round_leaves_the_rounds_before_it():
    def failing(number, start):
        if number == 2:
            raise KeyboardInterrupt
        yield from engine(number, start)

    loop = rounds.run(torch.zeros(2), failing, mean, evaluate, 3)
    assert next(loop)[0].round == 1
    with pytest.raises(KeyboardInterrupt):
        next(loop)
