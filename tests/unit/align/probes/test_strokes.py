"""Strokes and blobs: in range, centred, as thick and as bright as the style says."""

import numpy as np
import pytest
import torch

from fedloom.align.probes.strokes import Style, draw
from fedloom.align.probes.synthetic import STYLES

PEN = Style("pen", (1, 1), size=(0.7, 0.7), ink=(1.0, 1.0), pen=(0.1, 0.1))
BLOB = Style("blob", (1, 1), size=(0.7, 0.7), ink=(0.5, 0.5))


def drawn(style, n=200, size=(28, 28, 1), seed=0):
    return draw(n, size, style, np.random.default_rng(seed))


@pytest.mark.parametrize("style", STYLES, ids=lambda s: s.name)
@pytest.mark.parametrize("size", [(28, 28, 1), (8, 8, 1), (20, 32, 3)])
def test_pictures_are_in_range_and_no_two_are_alike(style, size):
    x = drawn(style, 50, size)
    assert x.shape == (50, size[2], *size[:2])
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1
    assert len(x.flatten(1).unique(dim=0)) == 50
    assert x.flatten(1).std(1).min() > 0.01  # none is empty


def test_chance_is_the_callers():
    assert torch.equal(drawn(PEN), drawn(PEN))
    assert not torch.equal(drawn(PEN), drawn(PEN, seed=1))


def test_the_ground_is_black_unless_the_style_says_otherwise():
    corners = drawn(PEN)[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() < 0.01
    assert drawn(STYLES[-1])[:, 0, 0, 0].mean() > 0.1


def test_a_thicker_pen_covers_more():
    thin, thick = (
        drawn(Style("", (1, 1), size=(0.8, 0.8), ink=(1.0, 1.0), pen=(width, width))).mean() for width in (0.08, 0.24)
    )
    assert 2 < thick / thin < 3.5


def test_a_straight_stroke_has_the_width_of_the_pen():
    style = Style("", (1, 1), size=(0.9, 0.9), ink=(1.0, 1.0), pen=(0.2, 0.2), bend=(0.0, 0.0))
    x = drawn(style, 300, (40, 40, 1))[:, 0]
    rows, columns = (x.amax(axis) > 0.5 for axis in (2, 1))
    level = rows.sum(1) <= 0.2 * columns.sum(1) + 8
    widths = (x[level] > 0.5).sum((1, 2)) / columns[level].sum(1)
    assert level.sum() > 5
    assert abs(widths.mean() - 8) < 1.5


def test_drawings_fill_their_box_in_the_middle():
    x = drawn(PEN, 300)[:, 0]
    extents = torch.stack([(x.amax(axis) > 0.5).sum(1) for axis in (1, 2)]).amax(0).float()
    assert abs(extents.mean() - 0.7 * 28) < 2  # a stroke ends softly
    assert extents.max() <= 0.7 * 28 + 3
    at = torch.arange(28.0)
    middle = (x.sum(2) @ at / x.sum((1, 2))).mean()
    assert abs(middle - 13.5) < 1


def test_blobs_are_filled_and_as_bright_as_their_ink():
    x = drawn(BLOB)[:, 0]
    torch.testing.assert_close(x.amax((1, 2)), torch.full((200,), 0.5))
    filled = (x > 0.4).float().mean((1, 2))
    assert 0.08 < filled.mean() < 0.49  # of a box of 0.7 x 0.7
    assert x[:, 12:16, 12:16].mean() > 0.4


def test_soft_edges_lie_between_black_and_ink():
    edges = ((drawn(PEN) > 0.05) & (drawn(PEN) < 0.95)).float().mean((1, 2, 3))
    assert edges.min() > 0.01


def test_colours_differ_between_channels():
    x = drawn(Style("", (2, 3), size=(0.8, 0.8), ink=(0.2, 1.0)), size=(16, 16, 3))
    assert (x[:, 0] - x[:, 1]).abs().mean() > 0.01


def test_large_pictures_are_enlarged_and_stay_smooth():
    x = drawn(PEN, 4, (200, 150, 1))
    assert x.shape == (4, 1, 200, 150)
    assert (x[..., 1:] - x[..., :-1]).abs().max() < 0.5


def test_none_is_an_empty_batch():
    assert drawn(PEN, 0, (28, 28, 3)).shape == (0, 3, 28, 28)
