"""The server sees sums alone: the same model within fixed point's error, whoever drops out, and no sum of too few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from guarded import ECHO, guarded, records_of, visit
from small_federation import CLIENTS, Small, same_bits

from fedloom.algorithms.protection import Protection
from fedloom.algorithms.sealed import SEALED, Exact, Noised, SecureSum, sealed
from fedloom.clients import Order
from fedloom.engines.recipe import Blueprint, Recipe
from fedloom.errors import MergeError, QuorumError, TrainingError
from fedloom.privacy import DistributedGaussian, Skellam
from fedloom.privacy.secagg import FixedPoint
from fedloom.privacy.secagg.packing import packed_size
from fedloom.records import ClientFailure, ClientUpdate

HEAVIEST = 120.0
SUM = {"secure": "sum", "most": CLIENTS, "heaviest": HEAVIEST, "range": 1.0}
UNEVEN = {"uneven": True}
SESSION = bytes(16)
CODE = FixedPoint(20, 1.0)


def weights_of(made):
    return [float(made.population.samples(client)) for client in range(CLIENTS)]


@pytest.mark.parametrize(
    ("name", "bits"), [("fedavg", 24), ("fedavg", 32), ("fedavg", 48), ("fedprox", 32), ("fedadam", 32), ("fedper", 32)]
)
def test_the_sum_is_the_weighted_mean_within_the_stated_error(name, bits):
    made, plain = guarded(name, small=UNEVEN, bits=bits, **SUM), Small(name, uneven=True)
    total = sum(weights_of(plain))
    code = made.federation.gather.seal.code
    bound = code.error(total, CLIENTS, whole=True)
    assert bound < 1e-2 if bits == 24 else bound < 1e-4
    order = Order(1, tuple(range(CLIENTS)), (plain.algorithm.broadcast(plain.algorithm.init(plain.w0)),))
    updates = list(plain.side.run(order))
    (found,) = made.federation.gather(1, made.side.run(order), []).updates
    assert found.weight == total
    mean = sum(u.delta.double() * u.weight for u in updates) / total
    assert float((found.delta - mean).abs().max()) <= bound + 2**-24 * float(mean.abs().max())
    if name == "fedper":
        head = sum(u.extra["head"].double() * u.weight for u in updates) / total
        assert float((found.extra["head"] - head).abs().max()) <= bound + 2**-24


def test_batchnorm_that_clients_report_is_summed_beside_the_update():
    given = SUM | {"range": 50.0}
    made, plain = guarded("fedbn", small=UNEVEN, **given), Small("fedbn", uneven=True)
    assert made.federation.gather.seal.beside == (("batchnorm", int(made.algorithm.stays.sum())),)
    found, expected = made.run(2).state["model"], plain.run(2).state["model"]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert same_keys(made.store, plain.store)


def same_keys(a, b):
    return all(a.read([c])[c].keys() == b.read([c])[c].keys() for c in range(CLIENTS))


def gone(number, client):
    return (3 * number + client) % 5 == 0


@pytest.mark.parametrize(
    "how",
    [
        SUM,
        SUM | {"mechanism": "central", "multiplier": 1.0, "quantile": 0.5, "cohort": 40.0, "noise_seed": 0},
        SUM | {"mechanism": "skellam", "multiplier": 1.0, "cohort": 6.0, "noise_seed": 0},
    ],
    ids=["exact", "central", "skellam"],
)
def test_all_the_messages_give_the_bits_of_the_sum_whoever_drops_out(how):
    summed, spoken = (guarded(fails=gone, **(how | {"secure": kind})) for kind in ("sum", "protocol"))
    (records, silent), (talked, after) = records_of(summed, 2), records_of(spoken, 2)
    assert same_bits(silent.state, after.state)
    assert [r.clients for r in records] == [r.clients for r in talked] == [6, 7]
    assert [r.failures for r in records] == [r.failures for r in talked]
    assert all(t.bytes_up > r.bytes_up and t.bytes_down > r.bytes_down for r, t in zip(records, talked, strict=True))


def test_bytes_are_those_of_packed_numbers_and_of_every_message():
    summed, spoken = (guarded(**(SUM | {"bits": 24, "secure": kind})) for kind in ("sum", "protocol"))
    size = len(summed.w0) + 1  # the weight
    (plain,), (whole,) = records_of(summed, 1)[0], records_of(spoken, 1)[0]
    assert plain.bytes_up == CLIENTS * packed_size(size, 24) == CLIENTS * -(-size * 24 // 8)
    assert plain.bytes_down == CLIENTS * 4 * len(summed.w0)
    keys = whole.bytes_up - plain.bytes_up
    assert CLIENTS * 64 < keys < CLIENTS * 4000
    assert CLIENTS * 64 < whole.bytes_down - plain.bytes_down < CLIENTS * 8000


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("fedavg", {"bits": 40}),
        ("fedbn", {"range": 50.0, "bits": 24}),
        ("fedavg", {"mechanism": "skellam", "bits": 20}),
    ],
)
def test_the_clock_expects_what_is_sent(name, how):
    made = guarded(name, **(SUM | how))
    (record,), _ = records_of(made, 1)
    sent = made.algorithm.broadcast(made.algorithm.init(made.w0))
    assert made.algorithm.upload(sent) * CLIENTS == record.bytes_up


@pytest.mark.parametrize("kind", ["sum", "protocol"])
def test_too_few_clients_are_a_round_without_updates(kind):
    made = guarded(fails=lambda number, client: number == 1 and client > 3, up="", **(SUM | {"secure": kind}))
    (first, second), last = records_of(made, 2)
    assert (first.clients, second.clients) == (0, CLIENTS)
    assert len(first.failures) == 5
    assert "4 of 8 clients are left, and secure aggregation opens no sum of fewer than 5" in first.failures[-1].reason
    half = guarded(fails=lambda *_: True, **SUM)
    assert torch.equal(records_of(half, 1)[1].state["model"], half.w0)
    assert not torch.equal(last.state["model"], made.w0)


def test_too_few_clients_keep_what_they_had():
    made = guarded("fedbn", fails=lambda number, client: client > 2, **(SUM | {"range": 50.0}))
    made.run(1)
    assert not made.store.kept


def test_too_few_clients_end_the_run_where_the_policy_says_so():
    made = guarded(**SUM)
    # clients that are late are no reason to stop by themselves
    made.federation = replace(made.federation, policy="stop", gather=late(made.federation.gather))
    with pytest.raises(QuorumError, match="opens no sum of fewer than"):
        made.run(1)


def late(gather):
    failures = [ClientFailure(f"client_{i}", "late", "late") for i in range(20)]
    return lambda number, updates, _: gather(number, updates, failures)


def test_too_few_clients_with_noise_on_the_sum_are_noise_alone():
    made = guarded(fails=lambda *_: True, mechanism="central", multiplier=1.0, clip=0.5, cohort=4.0, **SUM)
    moved = records_of(made, 1)[1].state["model"] - made.w0
    assert float(moved.std()) == pytest.approx(0.125, rel=0.02)


@pytest.mark.parametrize(("count", "asked"), [(1, 1), (1, 4), (2, 4), (5, 9)])
def test_no_sum_of_a_few(count, asked):
    gather = SecureSum(Exact(CODE, 3), SESSION)
    updates = [ClientUpdate(f"client_{i}", torch.zeros(3), 1.0, 1, {}, numbers(i)) for i in range(count)]
    lost = [ClientFailure(f"client_{i}", "gone", "dropped") for i in range(count, asked)]
    enough = count > (asked + asked // 10) // 2 and count > 1
    if enough:
        (found,) = gather(1, iter(updates), lost).updates
        assert found.weight == count
        assert found.delta.tolist() == [0.5] * 3
    else:
        with pytest.raises(QuorumError):
            gather(1, iter(updates), lost)


def numbers(_):
    return sealed(ECHO, Exact(CODE, 3, equal=True)).settle(visit(size=3), torch.full((3,), 0.5)).extra


def test_drop_outs_that_no_threshold_bears_are_too_few_clients_and_no_crash():
    gather = SecureSum(Exact(CODE, 3), SESSION, dropped=0.45)
    updates = [ClientUpdate(f"client_{i}", torch.zeros(3), 1.0, 1, {}, numbers(i)) for i in range(20)]
    with pytest.raises(QuorumError, match="corrupt"):
        gather(1, iter(updates), [])


def test_nobody_is_no_update():
    assert SecureSum(Exact(CODE, 3), SESSION)(1, iter(()), []).updates == ()


def test_a_number_out_of_range_is_a_failure_of_that_client():
    made = guarded(**(SUM | {"range": 0.01}))
    record = records_of(made, 1)[0][0]
    assert [failure.kind for failure in record.failures] == ["diverged"] * CLIENTS
    assert "client_0: a value of" in record.failures[0].reason
    assert "outside the range -1.2 to 1.2 of the fixed-point numbers" in record.failures[0].reason
    code = FixedPoint(2, 1.0)
    with pytest.raises(MergeError, match="a value of 3 is outside the range"):
        sealed(ECHO, Exact(code, 4, equal=True)).settle(visit(), torch.tensor([0.0, 3.0, 0.0, 0.0]))
    with pytest.raises(MergeError, match="the weight 10 is outside 0 to 1"):
        sealed(ECHO, Exact(code, 4)).settle(visit(), torch.zeros(4))


def test_clients_that_are_drawn_by_size_count_alike():
    made = guarded(small=UNEVEN, **(SUM | {"heaviest": 1.0, "equal": True}))
    plain = Small("fedavg", uneven=True)
    side = replace(plain.side, equal_weights=True)
    plain.federation = replace(plain.federation, engine=side.run)
    torch.testing.assert_close(made.run(2).state["model"], plain.run(2).state["model"], atol=1e-5, rtol=0)


def test_nothing_but_the_sealed_numbers_leaves_a_client():
    for mechanism in ("none", "central", "skellam"):
        made = guarded("fedavg", small=UNEVEN, mechanism=mechanism, **SUM)
        for update in made.side.run(Order(1, (0, 7), (made.algorithm.broadcast(made.algorithm.init(made.w0)),))):
            assert not update.delta.any()
            assert set(update.extra) == {SEALED}
            assert update.weight == 1.0


def test_an_update_in_whole_numbers_is_never_longer_than_it_was_clipped_to():
    """Rounding to the nearest could add half a step to each of many numbers: more than the noise is measured by."""
    size, delta = 10_000, torch.full((10_000,), 0.01)
    for shorten, longer in ((False, True), (True, False)):
        exact = Exact(FixedPoint(100, 1.0, bits=14), size, equal=True, shorten=shorten)
        wrapped = sealed(ECHO, exact).settle(visit(size=size), delta * 0.99)
        assert (float(opened(exact, wrapped).norm()) > 1.0) is longer
    guard = Protection(mechanism="central", clip=1.0, secure="sum", most=4)
    assert guard.seal(Small("fedavg").algorithm, Small("fedavg").model).shorten


def opened(exact, settled):
    array = settled.extra[SEALED].numpy().view(np.uint32)
    return exact.open(array, 1).delta


def test_local_noise_fits_into_the_range():
    made = guarded(mechanism="local", multiplier=2.0, clip=1.0, **SUM)
    (record,), _ = records_of(made, 1)
    assert (record.clients, record.failures) == (CLIENTS, ())


@pytest.mark.parametrize("kind", [DistributedGaussian, Skellam])
@pytest.mark.parametrize("multiplier", [0.0, 0.8])
def test_shares_open_to_the_clipped_mean_with_noise_of_the_right_size(kind, multiplier):
    size, cohort = 900, 4.0
    mechanism = kind(1.0, multiplier, 4, size, bits=32)
    seal = Noised(mechanism, cohort, size + 2, seed=3, noise_seed=None)
    algorithm = sealed(ECHO, seal)
    deltas = [torch.cat([torch.randn(size) * scale, torch.ones(2)]) for scale in (0.01, 1.0, 5.0)]
    updates = [
        ClientUpdate(f"client_{i}", delta, 1.0, 1, {}, algorithm.settle(visit(i, size=size + 2), delta).extra)
        for i, delta in enumerate(deltas)
    ]
    (found,) = SecureSum(seal, SESSION)(1, iter(updates), []).updates
    heads = [delta[:size] for delta in deltas]
    mean = sum(head * min(1.0, 1.0 / float(head.norm())) for head in heads) / cohort
    error = found.delta[:size] - mean
    assert found.delta[size:].tolist() == [0.0, 0.0]
    expected = mechanism.std(3) / cohort
    assert expected == pytest.approx(multiplier * (3 / 4) ** 0.5 / 4, rel=1e-6)
    assert float(error.std()) == pytest.approx(expected, rel=0.12, abs=1e-3)


def test_a_rotation_is_that_of_its_round():
    mechanism = DistributedGaussian(1.0, 0.0, 2, 64, bits=32)
    seal = Noised(mechanism, 2.0, 64)
    delta = torch.linspace(-0.1, 0.1, 64)
    first, second = (sealed(ECHO, seal).settle(visit(number=n, size=64), delta).extra[SEALED] for n in (1, 2))
    right, wrong = (seal.open(first.numpy().view(np.uint32), n).delta for n in (1, 2))
    errors = [float((found - delta / 2).norm() / (delta / 2).norm()) for found in (right, wrong)]
    assert errors[0] < 0.15
    assert errors[1] > 0.5
    assert not torch.equal(first, second)


GUARDS = (
    Protection(up="topk:0.1 | int4", down="int8"),
    Protection(secure="sum", most=CLIENTS, heaviest=100.0, range=50.0, bits=40, down="int8"),
    Protection(mechanism="skellam", multiplier=1.0, cohort=4.0, secure="sum", noise_seed=5, local_statistics=True),
)


def order_of(side, w0):
    return Order(1, (0, 1, 2), (side.algorithm.broadcast(side.algorithm.init(w0)),))


def same_update(a, b):
    kinds = [{v.dtype for v in u.extra.values()} for u in (a, b)]
    assert torch.equal(a.delta, b.delta)
    assert same_bits(a.extra, b.extra)
    assert (a.bytes_up, a.weight, kinds[0]) == (b.bytes_up, b.weight, kinds[1])


@pytest.mark.parametrize("guard", GUARDS)
def test_what_a_worker_is_told_makes_the_same_bits(guard):
    made = guarded("fedbn")
    made.algorithm = guard.around(Small("fedbn").algorithm, made.model) if not guard.private else None
    recipe = Recipe(Blueprint.of(made.model), "fedavg" if guard.private else "fedbn", {}, made.side.config, CLIENTS)
    side = replace(recipe, protection=guard).make(made.population)
    again = replace(recipe, protection=guard).make(made.population)
    mine = side if made.algorithm is None else replace(made.side, algorithm=made.algorithm)
    for a, b in zip(mine.run(order_of(mine, made.w0)), again.run(order_of(again, made.w0)), strict=True):
        same_update(a, b)


def test_a_policy_that_stops_ends_with_the_first_failure():
    made = guarded(fails=gone, **SUM)
    made.federation = replace(made.federation, policy="stop")
    with pytest.raises(TrainingError, match="client_2 went away"):
        made.run(1)
