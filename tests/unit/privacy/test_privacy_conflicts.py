"""Conflicts: every mechanism names what breaks it, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

import fedloom.privacy
from fedloom.privacy import (
    AdaptiveClip,
    DistributedGaussian,
    Gaussian,
    LocalGaussian,
    Setting,
    Skellam,
    TreeNoise,
    conflicts,
)

MECHANISMS = {
    "central": Gaussian(1.0, 1.0),
    "local": LocalGaussian(1.0, 1.0),
    "tree": TreeNoise(1.0, 1.0),
    "discrete-gaussian": DistributedGaussian(1.0, 1.0, clients=10, size=10),
    "skellam": Skellam(1.0, 1.0, clients=10, size=10),
}
GOOD = Setting(secure=True)
SUMS = ("central", "tree", "discrete-gaussian", "skellam")
BREAKS = [
    ({"equal_weights": False}, "count alike", tuple(MECHANISMS)),
    (
        {"extras": ("control",), "algorithm": "scaffold"},
        r"scaffold sends more than the update \(control\)",
        tuple(MECHANISMS),
    ),
    ({"buffers": 8}, "BatchNorm", tuple(MECHANISMS)),
    ({"refresh": True}, "made anew", tuple(MECHANISMS)),
    ({"mean": False, "algorithm": "krum"}, "krum does not merge by a mean", SUMS),
    ({"asynchronous": True, "algorithm": "fedbuff"}, "fedbuff has no rounds", SUMS),
    ({"codec": "topk:0.01"}, "changes an update after it was clipped", SUMS),
    ({"sampling": "size"}, "how much data", SUMS),
    ({"policy": "retry"}, "policy retry", ("central",)),
    ({"over_selection": True}, "the fastest", ("central",)),
    ({"sampling": "uniform", "availability": True}, "passes over", ("central",)),
    ({"secure": False}, "sees every share", ("discrete-gaussian", "skellam")),
]


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize(("broken", "words", "concerned"), BREAKS, ids=[str(next(iter(b[0]))) for b in BREAKS])
def test_a_broken_setting_is_named_once_by_those_it_concerns(name, broken, words, concerned):
    found = list(conflicts(MECHANISMS[name], replace(GOOD, **broken)))
    if name not in concerned:
        assert not found
        return
    assert len(found) == 1
    with pytest.raises(ValueError, match=words):
        raise ValueError(found[0])


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_good_setting_has_no_conflict_and_a_bad_one_all_of_them(name):
    assert not list(conflicts(MECHANISMS[name], GOOD))
    bad = replace(GOOD, equal_weights=False, extras=("control",), buffers=8, refresh=True)
    assert len(list(conflicts(MECHANISMS[name], bad))) == 4


def test_all_and_fixed_sampling_bear_retries():
    for scheme in ("all", "fixed"):
        assert not list(conflicts(Gaussian(1.0, 1.0), replace(GOOD, sampling=scheme, policy="retry")))


def test_the_server_clips_what_it_decodes_where_it_sees_updates():
    assert not list(conflicts(Gaussian(1.0, 1.0), Setting(codec="int8")))


def test_adaptive_clipping_goes_with_central_noise_and_enough_clients():
    rule = AdaptiveClip()
    assert not list(conflicts(Gaussian(1.0, 1.0), GOOD, rule, cohort=100))
    assert "more clients" in next(conflicts(Gaussian(1.0, 1.0), GOOD, rule, cohort=10))
    assert "fixed clip" in next(conflicts(TreeNoise(1.0, 1.0), GOOD, rule, cohort=100))


def test_public_names_of_privacy_exist():
    names = fedloom.privacy.__all__
    assert sorted(set(names)) == sorted(names)
    assert all(hasattr(fedloom.privacy, name) for name in names)
