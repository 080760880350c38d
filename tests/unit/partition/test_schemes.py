"""Partition: every sample goes to exactly one client, the same way each time, or the numbers say why not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

from fedloom import partition as p
from fedloom.errors import DataError, UsageError

DIGITS = load_digits().target
MNIST_LIKE = np.random.default_rng(0).integers(0, 10, 60_000)
SCHEMES_BY_LABEL = [name for name, scheme in p.SCHEMES.items() if scheme.divide is not None]


def covers(parts, n_samples):
    joined = np.concatenate(parts)
    return (
        all(len(part) > 0 and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
        and len(joined) == n_samples
        and (np.sort(joined) == np.arange(n_samples)).all()
    )


@settings(max_examples=150, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES_BY_LABEL),
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120),
    n_clients=st.integers(1, 14),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_every_sample_goes_to_exactly_one_client_or_the_scheme_is_refused(scheme, labels, n_clients, seed, data):
    options = {}
    if scheme in ("shards", "labels"):
        options["per_client"] = data.draw(st.integers(1, 5))
    if scheme == "dirichlet":
        options = {"alpha": data.draw(st.sampled_from([1e-6, 0.1, 1, 1000])), "min_size": data.draw(st.integers(1, 4))}
        options["balance"] = data.draw(st.booleans())
    if scheme == "quantity":
        options = {"distribution": data.draw(st.sampled_from(["lognormal", "powerlaw"])), "sigma": 3.0}
    try:
        parts = p.partition(scheme, labels, n_clients, seed, options=options)
    except DataError:
        return
    assert len(parts) == n_clients
    assert covers(parts, len(labels))
    again = p.partition(scheme, labels, n_clients, seed, options=options)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES_BY_LABEL)
def test_defaults_divide_the_digits_and_depend_on_the_seed(scheme):
    parts = [p.partition(scheme, DIGITS, 6, seed) for seed in (0, 1)]
    assert all(covers(each, len(DIGITS)) for each in parts)
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(*parts, strict=True))


@pytest.mark.parametrize(("n_clients", "seed"), [(2, 0), (6, 42), (10, 2**32 - 1)])
def test_stratified_is_scikit_learns(n_clients, seed):
    folds = StratifiedKFold(n_clients, shuffle=True, random_state=seed).split(DIGITS, DIGITS)
    for part, (_, fold) in zip(p.stratified(DIGITS, n_clients, seed), folds, strict=True):
        np.testing.assert_array_equal(part, fold)


def test_stratified_shares_differ_by_one_at_most():
    counts = np.array([np.bincount(DIGITS[part], minlength=10) for part in p.stratified(DIGITS, 6, 0)])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(part) for part in p.iid(DIGITS, 7, 3)]
    assert max(sizes) - min(sizes) == 1  # 1797 = 7 * 256 + 5


def test_large_alpha_is_iid_and_small_alpha_leaves_few_classes():
    def skew(alpha):
        parts = p.dirichlet(MNIST_LIKE, 10, 0, alpha=alpha, min_size=1)
        shares = np.array([np.bincount(MNIST_LIKE[part], minlength=10) / len(part) for part in parts])
        return shares.max(axis=1).mean()

    assert skew(1e5) < 0.12
    assert skew(0.05) > 0.6


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    labels = np.zeros(20_000, dtype=int)
    labels[::2] = 1
    shares = []
    for seed in range(300):
        parts = p.dirichlet(labels, 4, seed, alpha=0.7, min_size=1)
        shares.append([np.count_nonzero(labels[part] == 0) / 10_000 for part in parts])
    # Dirichlet(a, a, a, a): variance of one share = (1/4) (3/4) / (4 a + 1)
    assert np.var(shares) == pytest.approx(0.1875 / (4 * 0.7 + 1), rel=0.1)


def test_dirichlet_min_size_is_kept_and_balance_caps_the_sizes():
    plain = [len(part) for part in p.dirichlet(DIGITS, 10, 5, alpha=0.3, min_size=40)]
    assert min(plain) >= 40
    capped = [len(part) for part in p.dirichlet(DIGITS, 10, 5, alpha=0.3, balance=True)]
    # a client stops taking part once it has N / n, so it has less than N / n and one class
    assert max(capped) < 179.7 + np.bincount(DIGITS).max()
    assert np.std(capped) < np.std(plain)


def test_shards_are_mcmahans():
    labels = np.repeat(np.arange(10), 6000)[np.random.default_rng(1).permutation(60_000)]
    parts = p.shards(labels, 100, 0)
    assert {len(part) for part in parts} == {600}
    assert max(len(np.unique(labels[part])) for part in parts) <= 2


@pytest.mark.parametrize(("n_clients", "per_client"), [(10, 1), (10, 2), (4, 3), (3, 10), (50, 3)])
def test_labels_gives_each_client_k_classes_and_each_class_a_holder(n_clients, per_client):
    parts = p.by_labels(MNIST_LIKE, n_clients, 0, per_client=per_client)
    assert {len(np.unique(MNIST_LIKE[part])) for part in parts} == {per_client}
    for label in range(10):
        held = [count for part in parts if (count := np.count_nonzero(MNIST_LIKE[part] == label))]
        assert max(held) - min(held) <= 1


def test_power_law_sizes_fall_with_the_rank():
    sizes = np.sort([len(part) for part in p.quantity(MNIST_LIKE, 20, 0, distribution="powerlaw", exponent=1.5)])[::-1]
    slope = np.polyfit(np.log(np.arange(1, 21)), np.log(sizes - 1), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.01)


def test_lognormal_sizes_have_the_spread_asked_for():
    sizes = np.array([len(part) for part in p.quantity(np.zeros(2_000_000, dtype=int), 2000, 0, sigma=0.6)])
    assert np.std(np.log(sizes - 1)) == pytest.approx(0.6, rel=0.05)
    assert {len(part) for part in p.quantity(MNIST_LIKE, 10, 0, sigma=0)} == {6000}


def test_by_column_makes_one_client_per_value():
    column = np.array(["b", "a", "b", "c"])
    parts = p.partition("by-column", [0, 0, 1, 1], None, column=column)
    assert [part.tolist() for part in parts] == [[1], [0, 2], [3]]
    assert len(p.partition("by-column", [0, 0, 1, 1], 3, column=column)) == 3
    with pytest.raises(UsageError, match="3 distinct values, but 2 clients"):
        p.partition("by-column", [0, 0, 1, 1], 2, column=column)
    with pytest.raises(UsageError, match="no column"):
        p.partition("by-column", [0, 0, 1, 1], None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p.stratified([0] * 9 + [7] * 3, 4, 0), "class 7 has 3 samples for 4 clients"),
        (lambda: p.iid([0, 1], 3, 0), "2 samples cannot be divided among 3"),
        (lambda: p.shards([0, 1, 0], 2, 0, per_client=2), "2 clients with 2 shards each need 4 samples, found 3"),
        (lambda: p.by_labels([0, 1, 2] * 9, 3, 0, per_client=4), "4 classes per client, but the data have 3"),
        (lambda: p.by_labels(DIGITS, 3, 0, per_client=2), "hold 6 at most, the data have 10"),
        (lambda: p.by_labels([0] * 50 + [1], 8, 0, per_client=2), "class 1 has 1 samples for the 8 clients"),
        (lambda: p.dirichlet(DIGITS, 300, 0), "need 3000 samples, found 1797"),
        (lambda: p.dirichlet(DIGITS, 50, 0, alpha=0.001), "no draw of 1000 gave each of 50 clients 10"),
        (lambda: p.dirichlet([3] * 50, 2, 0), "all samples are of class 3"),
        (lambda: p.shards([3] * 50, 2, 0), "all samples are of class 3"),
        (lambda: p.quantity(DIGITS, 10, 0, min_size=200), "need 2000 samples, found 1797"),
        (lambda: p.iid([], 1, 0), r"shape \(0,\)"),
    ],
)
def test_a_scheme_that_cannot_be_satisfied_is_refused_with_the_numbers(call, message):
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("dirichlett", {}, "did you mean 'dirichlet'"),
        ("dirichlet", {"aplha": 1}, "did you mean 'alpha'"),
        ("iid", {"alpha": 1}, "has no options"),
        ("dirichlet", {"alpha": "much"}, "a number is expected"),
        ("dirichlet", {"alpha": "nan"}, "above 0"),
        ("dirichlet", {"alpha": 0}, "above 0"),
        ("shards", {"per_client": 2.5}, "a whole number is expected"),
        ("shards", {"per_client": "inf"}, "a whole number is expected"),
        ("shards", {"per_client": 0}, "at least 1"),
        ("dirichlet", {"balance": "perhaps"}, "true or false"),
        ("quantity", {"distribution": "lognorm"}, "did you mean 'lognormal'"),
        ("quantity", {"sigma": -1}, "at least 0"),
    ],
)
def test_options_that_are_none_are_refused(scheme, options, message):
    with pytest.raises(UsageError, match=message):
        p.partition(scheme, DIGITS, 4, options=options)


def test_no_clients_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        p.partition("iid", DIGITS, 0)
    with pytest.raises(UsageError, match="number of clients is needed"):
        p.partition("iid", DIGITS, None)


def test_options_as_texts_are_converted():
    texts = p.partition("dirichlet", DIGITS, 4, options={"alpha": "0.7", "balance": "yes", "min_size": "12"})
    values = p.dirichlet(DIGITS, 4, 0, alpha=0.7, balance=True, min_size=12)
    assert all((a == b).all() for a, b in zip(texts, values, strict=True))


def test_one_client_gets_everything():
    for scheme in ("stratified", "iid", "dirichlet", "quantity", "shards"):
        assert len(p.partition(scheme, DIGITS, 1)[0]) == len(DIGITS)


def test_the_parts_of_a_seed_are_pinned():
    assert [part.tolist() for part in p.iid([0] * 8, 2, 0)] == [[2, 3, 4, 6], [0, 1, 5, 7]]
    assert [len(part) for part in p.dirichlet(DIGITS, 4, 0)] == [202, 600, 471, 524]
