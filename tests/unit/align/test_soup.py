"""A greedy soup only grows while it gains."""

import math

import pytest
import torch

from fedloom.align.soup import greedy_soup
from fedloom.errors import MergeError


def near(goal):
    return lambda vector: -float((vector - torch.tensor(goal)).norm())


ROWS = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, -1.0]), torch.tensor([50.0, 50.0])]


def test_members_that_help_join_best_first_and_others_stay_out():
    soup = greedy_soup(ROWS, near([0.5, 0.0]))
    assert soup.used == (1, 2)
    assert torch.equal(soup.vector, torch.tensor([0.5, 0.0]))
    assert soup.score == 0.0


def test_the_soup_is_never_worse_than_the_best_member():
    for goal in ([0.0, 0.0], [1.0, 1.0], [40.0, 40.0], [2.0, -3.0]):
        score = near(goal)
        soup = greedy_soup(ROWS, score)
        assert soup.score >= max(score(row) for row in ROWS)
        assert soup.score == pytest.approx(score(soup.vector), abs=1e-6)
        assert torch.allclose(soup.vector, torch.stack([ROWS[i] for i in soup.used]).mean(0))


def test_one_member_and_identical_members_give_the_member_back():
    assert torch.equal(greedy_soup(ROWS[:1], near([9.0, 9.0])).vector, ROWS[0])
    soup = greedy_soup([ROWS[0]] * 3, near([9.0, 9.0]))
    assert soup.used == (0, 1, 2)  # a tie joins (recipe 1: no lower)
    torch.testing.assert_close(soup.vector, ROWS[0])


def test_a_score_that_is_not_a_number_never_joins():
    rows = [torch.tensor([math.nan, 0.0]), *ROWS[:2]]
    soup = greedy_soup(rows, near([0.0, 0.0]))
    assert 0 not in soup.used
    assert bool(soup.vector.isfinite().all())


def test_the_given_vectors_stay_as_they_are():
    rows = [row.clone() for row in ROWS]
    greedy_soup(rows, near([0.5, 0.0]))
    assert all(torch.equal(a, b) for a, b in zip(rows, ROWS, strict=True))


def test_no_member_is_refused():
    with pytest.raises(MergeError, match="at least one member"):
        greedy_soup([], near([0.0]))
