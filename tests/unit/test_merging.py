"""Methods by name on flat vectors: what each is told, and what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedloom import server_opt
from fedloom.errors import MergeError, UsageError
from fedloom.layout import Layout
from fedloom.merging import METHODS, Entry, merge_vectors

LAYOUT = Layout(("a.weight", "a.running_mean"), ((3, 2), (2,)), 1)
OPTIONS = {"fedavgm": {"lr": 0.5}, "trimmed-mean": {"trim": 0.2}, "krum": {"f": 1}, "multi-krum": {"f": 1}}


def vectors(n=5, seed=0):
    return list(torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)))


def entries(n=5, **given):
    return [Entry(f"m{i}.keras", samples=10 * (i + 1), steps=4, **given) for i in range(n)]


def merge(method, n=5, **given):
    given = {"layout": LAYOUT, **given}
    return merge_vectors(method, given.pop("entries", entries(n)), given.pop("vectors", vectors(n)), **given)


def test_fedavg_is_numpys_weighted_mean():
    merged = merge("fedavg")
    matrix, weights = torch.stack(vectors()).double().numpy(), np.arange(1, 6) / 15
    np.testing.assert_allclose(merged.vector, weights @ matrix, rtol=1e-6)
    np.testing.assert_allclose(merged.weights, weights)
    assert merged.notes == ()


def test_without_samples_the_weights_are_uniform_and_it_is_said():
    known = [Entry("a.keras", 100), Entry("b.keras"), Entry("c.keras")]
    merged = merge("fedavg", entries=known, vectors=vectors(3))
    np.testing.assert_allclose(merged.vector, torch.stack(vectors(3)).mean(0), rtol=1e-6)
    assert merged.notes == ("uniform weights: no sidecar tells the number of samples of b.keras (and 1 more)",)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ensemble"])
def test_every_method_gives_back_what_all_members_agree_on(method):
    same = [vectors(1)[0]] * 7
    given = {"weights": [1.0] * 7} if method == "weighted" else {}
    merged = merge(method, 7, vectors=same, previous=same[0], options=OPTIONS.get(method), **given)
    np.testing.assert_allclose(merged.vector, same[0], atol=1e-6)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ensemble"])
def test_one_member_alone_is_the_result_of_every_method_that_does_not_step(method):
    given = {"weights": [3.0]} if method == "weighted" else {}
    alone = vectors(1)
    if METHODS[method].family == "server":
        merged = merge(method, 1, previous=alone[0], **given)
    elif method in ("krum", "multi-krum", "bulyan"):
        with pytest.raises(MergeError):
            merge(method, 1, options={"f": 1})
        return
    else:
        merged = merge(method, 1, **given)
    np.testing.assert_allclose(merged.vector, alone[0], atol=1e-6)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ensemble"])
def test_nan_in_one_member_is_refused_by_every_method(method):
    spoilt = vectors()
    spoilt[3][6] = float("nan")
    given = {"weights": [1.0] * 5} if method == "weighted" else {}
    with pytest.raises(MergeError, match=r"m3\.keras holds NaN .*'a\.running_mean'"):
        merge(method, vectors=spoilt, previous=vectors(1)[0], **given)


@pytest.mark.parametrize("method", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_two_server_steps_are_two_steps_of_the_optimiser(method):
    first, second, start = vectors(3), vectors(3, seed=1), vectors(1, seed=2)[0]
    one = merge(method, 3, vectors=first, previous=start)
    two = merge(method, 3, vectors=second, previous=one.vector, state=one.state)
    optimizer = server_opt.make(method, trainable=LAYOUT.trainable)
    share = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 6
    mean = [(share @ torch.stack(v).double()).float() for v in (first, second)]
    w, state = optimizer.step(optimizer.init(start), start, mean[0] - start)
    w, state = optimizer.step(state, w, mean[1] - w)
    torch.testing.assert_close(two.vector, w)
    torch.testing.assert_close(dict(two.state), dict(state))
    assert "no memory of earlier rounds" in one.notes[-1]
    assert two.notes == ()


def test_the_server_optimisers_leave_running_statistics_to_the_plain_mean():
    merged = merge("fedadam", previous=torch.zeros(8))
    np.testing.assert_allclose(merged.vector[6:], merge("fedavg").vector[6:], rtol=1e-6)


def test_fednova_with_different_steps_follows_the_paper_and_needs_the_start():
    uneven = [Entry("a", 10, 2), Entry("b", 30, 6)]
    x, start = vectors(2), vectors(1, seed=4)[0]
    with pytest.raises(MergeError, match=r"their local steps differ \(here 2 to 6\)"):
        merge("fednova", entries=uneven, vectors=x)
    merged = merge("fednova", entries=uneven, vectors=x, previous=start)
    effective = 0.25 * 2 + 0.75 * 6
    by_hand = start + effective * (0.25 * (x[0] - start) / 2 + 0.75 * (x[1] - start) / 6)
    np.testing.assert_allclose(merged.vector[:6], by_hand[:6], rtol=1e-5)
    np.testing.assert_allclose(merged.vector[6:], (0.25 * x[0] + 0.75 * x[1])[6:], rtol=1e-5)


def test_fednova_of_equal_steps_is_the_mean_without_a_start():
    np.testing.assert_allclose(merge("fednova").vector, merge("fedavg").vector, rtol=1e-6)


def test_fednova_says_what_is_missing_or_approximate():
    with pytest.raises(MergeError, match="no sidecar tells that of b"):
        merge("fednova", entries=[Entry("a", 1, 1), Entry("b", 1)], vectors=vectors(2))
    merged = merge("fednova", entries=entries(5, local={"optimizer": "adam"}))
    assert "derived for SGD" in merged.notes[0]


def test_the_mean_never_holds_two_vectors():
    import weakref

    alive, most = [], 0

    def stream():
        nonlocal most
        for vector in vectors(20):
            fresh = vector.clone()
            alive.append(weakref.ref(fresh))
            most = max(most, sum(ref() is not None for ref in alive))
            yield fresh
            del fresh

    for method in ("fedavg", "fedavgm"):
        merge(method, 20, vectors=stream(), previous=torch.zeros(8))
    assert most <= 2  # the one that was just made, and the one that the loop still names


@pytest.mark.parametrize(
    ("method", "given", "error", "words"),
    [
        ("fedavgg", {}, UsageError, "did you mean 'fedavg'"),
        ("ensemble", {}, UsageError, "a model of its own"),
        ("fedavg", {"entries": [], "vectors": []}, MergeError, "nothing to merge"),
        ("fedavg", {"weights": [1.0, 2.0]}, UsageError, "2 weights are given for 5 models"),
        ("fedavg", {"options": {"trim": 0.1}}, UsageError, "'fedavg' has no options, and 'trim'"),
        ("median", {"weights": [1.0] * 5}, UsageError, "treats the members alike"),
        ("weighted", {}, UsageError, "needs weights"),
        ("weighted", {"weights": [1, 1, 1, 1, -1]}, MergeError, r"the weight of m4\.keras is -1"),
        ("weighted", {"weights": [0.0] * 5}, MergeError, "are zero"),
        ("fedadam", {}, MergeError, "that the members started from"),
        ("fedadam", {"previous": torch.zeros(8), "options": {"lrr": 1}}, UsageError, "did you mean 'lr'"),
        ("trimmed-mean", {"options": {"trim": 0.5}}, MergeError, "trim"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(method, given, error, words):
    with pytest.raises(error, match=words):
        merge(method, **given)


def test_a_wrong_option_of_a_server_optimiser_is_noticed_before_the_files_are_read():
    def unread():
        raise AssertionError
        yield

    with pytest.raises(UsageError, match="lrr"):
        merge("fedadam", vectors=unread(), previous=torch.zeros(8), options={"lrr": 1})
