from __future__ import annotations

import pytest
import torch

from fedloom.models import io, zoo
from fedloom.training.threads import enough_threads, multiplications


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


# Counted by hand: a kernel's weights times the places it is used at, and the weights of dense layers.
BY_HAND = {
    "2nn": 198_800,
    "cnn": 800 * 784 + 51_200 * 196 + 3136 * 512 + 5120,
    "cnn-small": 288 * 784 + 18_432 * 196 + 314_600,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_estimate_is_within_a_half_of_the_count(name):
    model = io.from_config(zoo.config(name, (28, 28), 10))
    assert multiplications(model) == pytest.approx(BY_HAND[name], rel=0.5)


@pytest.mark.parametrize(
    ("name", "shape", "batch", "threads"),
    [("cnn-small", (8, 8), 32, 1), ("2nn", (28, 28), 10, 1), ("cnn", (28, 28), 10, 4), ("cnn-small", (28, 28), 32, 4)],
)
def test_small_work_gets_one_thread_and_large_work_all(four_threads, name, shape, batch, threads):
    model = io.from_config(zoo.config(name, shape, 10))
    with enough_threads(model, batch, backward=True):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 4


def test_the_users_number_is_restored_after_an_error(four_threads):
    with (
        pytest.raises(ZeroDivisionError),
        enough_threads(io.from_config(zoo.config("2nn", (8, 8), 2)), 1, backward=True),
    ):
        1 / 0  # noqa: B018
    assert torch.get_num_threads() == 4
