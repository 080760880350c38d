"""What the pictures have in common: figures and axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedloom.report.palette import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 10.0


def figure_of(height: float, width: float = _WIDTH, columns: int = 1) -> tuple[Figure, Any]:
    """Make a figure of that size in inches, with its panels beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a horizontal bar plot, the first at the top."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(max(1, len(names)) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)


def percent_axis(axis: Any) -> None:
    """Write shares of 0-1 as percentages."""
    axis.set_major_formatter(lambda share, _: f"{round(100 * share, 3):g} %")


def whole_numbers(axes: Axes) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    low, high = axes.dataLim.intervalx
    if math.isfinite(low):
        room = 0.5 if high == low else 0.04 * (high - low)
        axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
