import pytest
import torch
from digits_team import N, blank, probe, team

from fedloom.align.checkup.agreement import agreement, answers, core, of_logits, together, usual


def one_hot(classes, n=3):
    return torch.nn.functional.one_hot(torch.tensor(classes), n).float()


def test_agreement_by_hand():
    # 3 of 4 agree; shares (1/2, 1/4, 1/4) and (1/2, 1/2, 0): chance 3/8, at most 3/4 can agree.
    found = agreement(one_hot([0, 0, 1, 2]), one_hot([0, 0, 1, 1]))
    assert found.share == pytest.approx(0.75)
    assert found.kappa == pytest.approx((0.75 - 0.375) / (1 - 0.375))
    assert found.reached == pytest.approx(1.0)


def test_two_constant_models_do_not_agree_above_chance():
    found = agreement(one_hot([1, 1, 1]), one_hot([1, 1, 1]))
    assert (found.share, found.kappa, found.reached) == (1.0, 0.0, 0.0)


def test_size_and_entropy():
    undecided, certain = of_logits(torch.zeros(5, 4)), of_logits(100 * torch.eye(4))
    assert (undecided.size, certain.size > 40) == (0.0, True)
    assert undecided.entropy == pytest.approx(1.0)
    assert certain.entropy == pytest.approx(0.0, abs=1e-6)
    assert undecided.finite
    assert not of_logits(torch.full((2, 3), torch.nan)).finite


def test_the_core_is_a_majority_or_nothing():
    healthy = [answers(member, probe()) for member in team("2nn")]
    noise = [of_logits(torch.randn(len(probe()), 10, generator=torch.Generator().manual_seed(k))) for k in range(4)]
    assert core(healthy) == tuple(range(N))
    assert core([noise[0], *healthy[:2]]) == (1, 2)
    assert core([*noise[:2], *healthy[:2]]) == ()
    assert core(noise) == ()
    assert core([]) == ()


def test_members_of_a_team_usually_agree():
    found = [answers(member, probe()) for member in team("2nn")]
    assert 0.8 < usual(found) <= 1.0
    assert usual(found[:1]) == 1.0
    assert together(found).sum(1).allclose(torch.ones(len(probe())))


def test_asking_leaves_the_inputs_alone():
    x = probe()
    kept = x.clone()
    answers(blank("mlp"), x)
    assert torch.equal(x, kept)
