"""Models of so many million numbers that cost next to nothing to train on a handful of samples."""

from __future__ import annotations

from torch import nn

CLASSES, PIXELS = 10, 64


def wide(millions: float) -> nn.Module:
    """Return two layers that have so many million numbers together."""
    width = round((millions * 1e6 - CLASSES) / (PIXELS + 1 + CLASSES))
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, CLASSES))


def small() -> nn.Module:
    """Return the 0.2 million."""
    return wide(0.2)


def ten() -> nn.Module:
    """Return ten million."""
    return wide(10)


def quarter() -> nn.Module:
    """Return 25 million."""
    return wide(25)


def hundred() -> nn.Module:
    """Return a hundred million."""
    return wide(100)
