"""Codecs between the server and its clients: what is lost, what is sent later, and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from guarded import ECHO, guarded, records_of, visit
from small_federation import CLIENTS, Small, bare_model, model_after, same_bits

from fedloom import algorithms, compress
from fedloom.algorithms.base import Settled
from fedloom.algorithms.compressed import RESIDUAL, compressed
from fedloom.algorithms.protection import leaving
from fedloom.clients import Order
from fedloom.layout import Layout
from fedloom.rng import derive, stream

LOSSLESS = "float32 | zstd"


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fednova", "fedbn", "fedrep"])
def test_a_lossless_chain_changes_no_bit(name):
    made = guarded(name, up=LOSSLESS, down=LOSSLESS)
    assert torch.equal(made.run(2).state["model"], model_after(name, rounds_to_run=2))


def test_no_codec_is_the_algorithm_itself():
    assert compressed(ECHO, None) is ECHO


@pytest.mark.parametrize("chain", ["topk:0.1", "topk:0.2 | int4", "sign", "int2"])
def test_what_was_lost_is_sent_later(chain):
    algorithm = compressed(ECHO, compress.parse(chain), feedback=True)
    deltas = torch.from_numpy(stream(0, "deltas").standard_normal((12, 50), dtype="float32"))
    total, kept = torch.zeros(50), None
    for number, delta in enumerate(deltas):
        settled = algorithm.settle(visit(kept=kept, seed=number), delta)
        total, kept = total + settled.delta, settled.kept
    assert not torch.allclose(total, deltas.sum(0), atol=1e-3)
    torch.testing.assert_close(total + kept[RESIDUAL], deltas.sum(0), atol=1e-4, rtol=0)


def test_feedback_is_for_codecs_whose_errors_have_a_direction():
    for chain, keeps in (("topk:0.1", True), ("sign", True), ("int8", False), ("rotate | int1", False)):
        assert compressed(ECHO, compress.parse(chain)).keeps is keeps
    assert not compressed(ECHO, compress.parse("topk:0.1"), feedback=False).keeps
    assert compressed(ECHO, compress.parse("int8"), feedback=True).keeps


def test_with_feedback_few_numbers_learn_and_without_they_lag():
    whole, fed, lost = (
        made.accuracy(made.run(12).state)
        for made in (Small("fedavg"), guarded(up="topk:0.01"), guarded(up="topk:0.01", feedback=False))
    )
    assert fed > whole - 0.2
    assert fed > lost + 0.03


@pytest.mark.parametrize("chain", ["int8", "topk:0.01 | int8 | zstd", "powersgd:2"])
def test_bytes_are_the_lengths_of_what_is_sent_both_ways(chain):
    plain, made = Small("fedavg"), guarded(up=chain, down="float16 | zstd")
    codec, down = (compress.parse(text, plain.model.layout) for text in (chain, "float16 | zstd"))
    sent = down.encode(plain.w0, stream(0, "compress", 0))
    (record,), _ = records_of(made, 1)
    assert record.bytes_down == CLIENTS * len(sent)
    start = down.decode(sent)
    order = Order(1, tuple(range(CLIENTS)), (plain.algorithm.broadcast({"model": start}),))
    deltas = [update.delta for update in plain.side.run(order)]
    found = [
        len(codec.encode(delta, stream(derive(0, "turn", 1, 0, client), "compress")))
        for client, delta in enumerate(deltas)
    ]
    assert record.bytes_up == sum(found) < 4 * CLIENTS * len(plain.w0)


def test_the_clock_expects_about_what_is_sent():
    made = guarded("scaffold", up="topk:0.05 | int8 | zstd", down="int8")
    sent = made.algorithm.broadcast(made.algorithm.init(made.w0))
    (record,), _ = records_of(made, 1)
    assert made.algorithm.upload(sent) == pytest.approx(record.bytes_up / CLIENTS, rel=0.05)


def test_the_same_seed_gives_the_same_bits_and_every_turn_another_chance():
    made, again = guarded(up="rotate | int2", down="int4"), guarded(up="rotate | int2", down="int4")
    assert torch.equal(made.run(3).state["model"], again.run(3).state["model"])
    algorithm, delta = made.algorithm, torch.linspace(-1, 1, len(made.w0))
    echo = compressed(ECHO, compress.parse("int2"))
    first, same, other = (echo.settle(visit(seed=seed), delta).delta for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    state = algorithm.init(made.w0)
    assert torch.equal(algorithm.broadcast(state).vector, algorithm.broadcast(state).vector)
    after, _ = algorithm.reduce(state, [*made.side.run(Order(1, (0,), (algorithm.broadcast(state),)))])
    later = {**after, "model": state["model"]}
    assert not torch.equal(algorithm.broadcast(state).vector, algorithm.broadcast(later).vector)


def test_turns_of_clients_and_rounds_have_seeds_of_their_own():
    seen = []
    small = Small("fedavg")
    watching = replace(small.algorithm, settle=lambda v, t: seen.append(v.seed) or small.algorithm.settle(v, t))
    side = replace(small.side, algorithm=watching)
    for number in (1, 2):
        list(side.run(Order(number, (0, 1), (small.algorithm.broadcast({"model": small.w0}),))))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("chain", ["float32", "topk:0.1", "powersgd:2"])
def test_only_what_is_shared_is_encoded(chain):
    made = guarded("fedbn", up=chain)
    layout, stays = made.model.layout, made.algorithm.stays
    codec = compress.parse(chain, leaving(layout, stays))
    shared = int((~stays).sum())
    (record,), _ = records_of(made, 1)
    one = len(codec.encode(torch.randn(shared), stream(0)))
    assert record.bytes_up == CLIENTS * (one + 4 * int(stays.sum()))
    kept = made.store.read([0])[0]
    assert set(kept) == ({"batchnorm"} if chain == "float32" else {"batchnorm", RESIDUAL})
    assert chain == "float32" or kept[RESIDUAL].shape == (shared,)


def test_the_layout_that_leaves_is_that_of_arrays_with_something_to_send():
    layout = Layout(("a", "b", "s"), ((2, 3), (2,), (2,)), 2)
    stays = torch.tensor([False] * 6 + [True] * 4)
    assert leaving(layout, stays) == Layout(("a",), ((2, 3),), 1)
    assert leaving(layout, None) is layout


@pytest.mark.parametrize("name", ["scaffold", "fednova", "ditto", "q-fedavg"])
def test_every_kind_of_algorithm_learns_with_fewer_bytes(name):
    before = Small("fedavg").accuracy({"model": Small("fedavg").w0})
    made = guarded(name, up="topk:0.1 | int8", down="float16")
    records, last = records_of(made, 3)
    assert made.accuracy(last.state) > before + 0.1
    plain, _ = records_of(Small(name), 1)
    beside = 4 * CLIENTS * len(made.w0) if name == "scaffold" else 0
    assert records[0].bytes_up - beside < (plain[0].bytes_up - beside) / 8


def test_the_residual_is_no_business_of_the_algorithm():
    seen = []

    def settle(found, trained):
        seen.append(found.kept)
        return Settled(trained, kept={"mine": trained})

    algorithm = compressed(replace(ECHO, settle=settle), compress.parse("topk:0.5"))
    first = algorithm.settle(visit(), torch.tensor([1.0, 2.0]))
    algorithm.settle(visit(kept=first.kept), torch.tensor([1.0, 2.0]))
    assert seen[0] is None
    assert same_bits(seen[1], {"mine": torch.tensor([1.0, 2.0])})


def test_a_client_that_keeps_nothing_new_keeps_what_it_had():
    algorithm = compressed(replace(ECHO, keeps=True), compress.parse("topk:0.5"))
    settled = algorithm.settle(visit(kept={"mine": torch.ones(3)}), torch.tensor([1.0, 2.0]))
    assert set(settled.kept) == {"mine", RESIDUAL}


def test_clients_train_from_what_they_were_sent():
    made, plain = guarded(down="int4"), Small("fedavg")
    sent = made.algorithm.broadcast(made.algorithm.init(made.w0))
    codec = compress.parse("int4")
    expected = codec.decode(codec.encode(made.w0, stream(0, "compress", 0)))
    assert torch.equal(sent.vector, expected)
    assert not torch.equal(expected, made.w0)
    order = Order(1, (0,), (sent,))
    mine = next(iter(made.side.run(order)))
    theirs = next(iter(plain.side.run(Order(1, (0,), (plain.algorithm.broadcast({"model": expected}),)))))
    assert torch.equal(mine.delta, theirs.delta)
    state, _ = made.algorithm.reduce(made.algorithm.init(made.w0), [mine])
    torch.testing.assert_close(state["model"], made.w0 + mine.delta)


def test_a_client_that_fails_keeps_what_it_had():
    made = guarded(up="topk:0.05", fails=lambda number, client: number == 2 and client == 3)
    after_one = made.run(1)
    before = {client: dict(kept) for client, kept in made.store.read(range(CLIENTS)).items()}
    made.run(2, after_one)
    after = made.store.read(range(CLIENTS))
    assert [client for client in before if same_bits(before[client], after[client])] == [3]


def test_a_number_that_cannot_be_encoded_is_a_failure_of_that_client():
    made = guarded(up="int8")
    huge = replace(made.algorithm, settle=compressed(ECHO, compress.parse("int8")).settle)
    side = replace(made.side, algorithm=replace(huge, settle=lambda v, _: huge.settle(v, torch.full((3,), 1e35))))
    (found,) = side.run(Order(1, (0,), (made.algorithm.broadcast(made.algorithm.init(made.w0)),)))
    assert (found.kind, found.client) == ("diverged", "client_0")
    assert "1e+30" in found.reason


def test_statistics_that_stay_are_neither_sent_nor_lost():
    model = bare_model(4, 3)
    made = algorithms.make("fedavg", algorithms.Setting(model, Small("fedavg").config, 2))
    wrapped = compressed(replace(made, stays=torch.tensor([False] * 4 + [True] * 3)), compress.parse("float32"))
    settled = replace(wrapped, settle=compressed(replace(ECHO, stays=wrapped.stays), compress.parse("float32")).settle)
    found = settled.settle(visit(size=7), torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0]))
    assert found.delta.tolist() == [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0]
    assert found.encoded == len(compress.parse("float32").encode(torch.ones(4), stream(0)))
