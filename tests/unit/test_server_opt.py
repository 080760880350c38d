import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import files, server_opt
from fedloom.errors import MergeError, UsageError

ALL = {"sgd": server_opt.sgd(), **{name: server_opt.make(name) for name in server_opt.METHODS}}
each = pytest.mark.parametrize("name", list(ALL))


def roll(optimizer, w, deltas):
    state = optimizer.init(w)
    for delta in deltas:
        w, state = optimizer.step(state, w, delta)
    return w, state


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def golden(rule, lr, beta1, tau, deltas):
    """Algorithm 2 of Reddi et al. on one number, in Python's floats."""
    w, m, v = 0.0, 0.0, tau**2
    for d in deltas:
        m = beta1 * m + (1 - beta1) * d
        v = rule(v, d)
        w += lr * m / (math.sqrt(v) + tau)
    return w


def test_adam_by_hand():
    # tau = 1, so v starts at 1. Step 1: m = 0.1 * 3 = 0.3, v = 0.99 + 0.01 * 9 = 1.08.
    # Step 2, delta = -1: m = 0.27 - 0.1 = 0.17, v = 0.99 * 1.08 + 0.01 = 1.0792.
    optimizer = server_opt.adam(lr=0.5, tau=1.0)
    w, state = roll(optimizer, torch.zeros(1), [torch.tensor([3.0]), torch.tensor([-1.0])])
    expected = 0.5 * 0.3 / (math.sqrt(1.08) + 1) + 0.5 * 0.17 / (math.sqrt(1.0792) + 1)
    assert math.isclose(float(w), expected, rel_tol=1e-6)
    assert math.isclose(float(state["momentum"]), 0.17, rel_tol=1e-6)
    assert math.isclose(float(state["second_moment"]), 1.0792, rel_tol=1e-6)


def test_yogi_by_hand():
    # v = 1, delta = 3: v - 9 < 0, so v = 1 + 0.09. Then delta = 1: v - 1 > 0, so v = 1.09 - 0.01.
    _, state = roll(server_opt.yogi(tau=1.0), torch.zeros(1), [torch.tensor([3.0]), torch.tensor([1.0])])
    assert math.isclose(float(state["second_moment"]), 1.08, rel_tol=1e-6)


def test_adagrad_by_hand():
    # v = 1 + 9 + 16 = 26; w = 0.1 * 3 / (sqrt(10) + 1) + 0.1 * 4 / (sqrt(26) + 1).
    optimizer = server_opt.adagrad(lr=0.1, tau=1.0)
    w, state = roll(optimizer, torch.zeros(1), [torch.tensor([3.0]), torch.tensor([4.0])])
    assert float(state["second_moment"]) == 26.0
    assert math.isclose(float(w), 0.3 / (math.sqrt(10) + 1) + 0.4 / (math.sqrt(26) + 1), rel_tol=1e-6)


def test_momentum_by_hand():
    optimizer = server_opt.momentum(lr=1.0, beta=0.5)
    w, state = roll(optimizer, torch.tensor([1.0]), [torch.tensor([2.0]), torch.tensor([4.0])])
    assert (float(w), float(state["momentum"])) == (1.0 + 2.0 + 5.0, 5.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=5), st.floats(0, 0.95))
def test_adaptive_steps_follow_the_algorithm(deltas, beta1):
    rules = {
        "fedadagrad": lambda v, d: v + d * d,
        "fedadam": lambda v, d: 0.99 * v + 0.01 * d * d,
        "fedyogi": lambda v, d: v - 0.01 * d * d * ((v > d * d) - (v < d * d)),
    }
    for name, rule in rules.items():
        optimizer = server_opt.make(name, options={"beta1": beta1, "lr": 0.2})
        w, _ = roll(optimizer, torch.zeros(1), [torch.tensor([d]) for d in deltas])
        assert math.isclose(float(w), golden(rule, 0.2, beta1, 1e-3, deltas), rel_tol=1e-3, abs_tol=1e-5)


def test_sgd_with_lr_1_is_the_mean():
    w, delta = noise(50), noise(50, seed=1)
    after, state = roll(ALL["sgd"], w, [delta])
    assert torch.equal(after, w + delta)
    assert state == {}


def test_momentum_0_is_sgd():
    w, deltas = noise(50), list(noise(4, 50, seed=1))
    for lr in (1.0, 0.3):
        left, _ = roll(server_opt.momentum(lr=lr, beta=0.0), w, deltas)
        right, _ = roll(server_opt.sgd(lr=lr), w, deltas)
        assert torch.equal(left, right)


def test_adaptive_steps_with_large_tau_are_sgd():
    # m / (sqrt(v) + tau) tends to m / (2 tau), because v starts at tau^2.
    w, deltas = noise(50), list(noise(3, 50, seed=1))
    tau = 1e4
    for make in (server_opt.adam, server_opt.yogi, server_opt.adagrad):
        after, _ = roll(make(lr=2 * tau, beta1=0.0, tau=tau), w, deltas)
        torch.testing.assert_close(after, w + sum(deltas), rtol=0.05, atol=0.05)


@each
def test_step_is_pure_and_deterministic(name):
    optimizer, w, delta = ALL[name], noise(30), noise(30, seed=1)
    state = optimizer.init(w)
    copies = [t.clone() for t in (w, delta, *state.values())]
    first, second = optimizer.step(state, w, delta), optimizer.step(state, w, delta)
    assert all(torch.equal(a, b) for a, b in zip(copies, (w, delta, *state.values()), strict=True))
    assert torch.equal(first[0], second[0])
    assert first[0].dtype == torch.float32
    assert set(first[1]) == set(state)


@pytest.mark.parametrize("name", list(server_opt.METHODS))
def test_state_survives_a_file(name, tmp_path):
    optimizer, w, deltas = ALL[name], noise(30), list(noise(4, 30, seed=1))
    whole, _ = roll(optimizer, w, deltas)
    half, state = roll(optimizer, w, deltas[:2])
    files.write_tensors(tmp_path / "state.safetensors", state, {})
    state, _ = files.read_tensors(tmp_path / "state.safetensors")
    for delta in deltas[2:]:
        half, state = optimizer.step(state, half, delta)
    assert torch.equal(whole, half)


@pytest.mark.parametrize("name", list(server_opt.METHODS))
def test_buffers_follow_the_plain_mean(name):
    w, delta = noise(30), noise(30, seed=1)
    optimizer = server_opt.make(name, trainable=20)
    after, state = optimizer.step(optimizer.init(w), w, delta)
    alone = server_opt.make(name)
    head, _ = alone.step(alone.init(w[:20]), w[:20], delta[:20])
    assert torch.equal(after[:20], head)
    assert torch.equal(after[20:], w[20:] + delta[20:])
    assert all(len(t) == 20 for t in state.values())


@each
def test_no_update_moves_nothing_at_first(name):
    w = noise(30)
    after, _ = roll(ALL[name], w, [torch.zeros(30)])
    assert torch.equal(after, w)


@each
def test_what_does_not_fit_is_refused(name):
    optimizer, w = ALL[name], noise(3)
    state = optimizer.init(w)
    with pytest.raises(MergeError, match=r"shape \(4,\) does not fit a model of shape \(3,\)"):
        optimizer.step(state, w, noise(4))
    with pytest.raises(MergeError, match="the mean update holds NaN"):
        optimizer.step(state, w, torch.tensor([1.0, math.nan, 0.0]))
    with pytest.raises(MergeError, match="found other"):
        optimizer.step({"other": w}, w, w)
    if state:
        with pytest.raises(MergeError, match=r"has shape \(2,\) where \(3,\) is expected"):
            optimizer.step({key: noise(2) for key in state}, w, w)


@pytest.mark.parametrize("name", list(server_opt.METHODS))
def test_table_says_the_defaults(name):
    row = server_opt.METHODS[name]
    w, deltas = noise(9), list(noise(2, 9, seed=1))
    assert torch.equal(roll(row.maker(), w, deltas)[0], roll(server_opt.make(name), w, deltas)[0])
    assert torch.equal(roll(row.maker(), w, deltas)[0], roll(row.maker(**row.options), w, deltas)[0])
    assert row.title
    assert row.paper
    given_none = server_opt.make(name, options=dict.fromkeys(row.options))
    assert torch.equal(roll(given_none, w, deltas)[0], roll(row.maker(), w, deltas)[0])


@pytest.mark.parametrize("name", list(server_opt.METHODS))
def test_hyperparameters_out_of_range_are_refused(name):
    for option in server_opt.METHODS[name].options:
        for value in (-0.5, math.nan, math.inf):
            with pytest.raises(UsageError, match=f"{option} = "):
                server_opt.make(name, options={option: value})


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'fedadam'"):
        server_opt.make("fedadamm")
    with pytest.raises(UsageError, match="unknown option of fedavgm 'beta3': did you mean 'beta'"):
        server_opt.make("fedavgm", options={"beta3": 0.5})


def test_a_result_beyond_float32_is_refused():
    optimizer, w = server_opt.sgd(lr=1e38), torch.ones(2)
    with pytest.raises(MergeError, match="'sgd' gives numbers beyond float32"):
        optimizer.step({}, w, torch.full((2,), 1e3))
