"""The pictures: each function takes plain data and returns a Matplotlib Figure, with no global state touched.

Those of what changes step by step stand in ``curves``. ``svg`` puts a figure into a page, ``save_png`` into a file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedloom.report.curves import interpolation_curve, learning_curves, rounds_curve
from fedloom.report.drawing import save_png, style, svg
from fedloom.report.palette import CLASSES, HEAT, HEAT_ALPHA, INK, KIND_COLOURS, KIND_WORDS, MUTED
from fedloom.report.panels import figure_of, name_rows, percent_axis
from fedloom.report.words import axis_start, digits, percent, percents, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fedloom.metrics import Counts
    from fedloom.report.comparison import Comparison, Row

__all__ = [
    "accuracy_bars",
    "class_distribution",
    "confusion",
    "interpolation_curve",
    "learning_curves",
    "rounds_curve",
    "save_png",
    "svg",
]

_STACKED_CLASSES, _STACKED_CLIENTS = 8, 30
_MEMBER_BARS = 12


def class_distribution(class_counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Figure:
    """Draw how many samples of each class each client holds.

    Few classes are drawn as stacked bars, many as a heat map with the numbers in it while they can be read.

    Args:
        class_counts: Per client its C counts.
        class_names: The C names.
    """
    names = [shorten(name) for name in class_counts]
    counts = np.array(list(class_counts.values()), dtype=np.int64).reshape(len(names), len(class_names))
    few = len(class_names) <= _STACKED_CLASSES and len(names) <= _STACKED_CLIENTS
    with style():
        return _stacked(counts, names, class_names) if few else _client_heat(counts, names, class_names)


def _stacked(counts: NDArray[np.int64], names: list[str], class_names: Sequence[str]) -> Figure:
    figure, axes = figure_of(0.34 * len(names) + 1.2)
    left = np.zeros(len(names))
    widest = max(1, int(counts.sum(1).max(initial=1)))
    for k, name in enumerate(class_names):
        colour = CLASSES[k % len(CLASSES)]
        axes.barh(range(len(names)), counts[:, k], 0.74, left, color=colour, label=shorten(name), ec="none")
        for i, count in enumerate(counts[:, k]):
            if count > widest * 0.045:
                ink = "#ffffff" if _dark(colour) else "#10161c"
                axes.text(left[i] + count / 2, i, f"{count}", color=ink, size=8, ha="center", va="center_baseline")
        left += counts[:, k]
    for i, total in enumerate(counts.sum(1)):
        axes.text(total + widest * 0.008, i, f"{total:,}", color=MUTED, size=8.5, va="center_baseline")
    name_rows(axes, names)
    axes.set(xlabel="samples", xlim=(0, widest * 1.08))
    figure.legend(loc="outside right upper", title="class", alignment="left")
    return figure


def _client_heat(counts: NDArray[np.int64], names: list[str], class_names: Sequence[str]) -> Figure:
    rows = [f"{name}  ({total:,})" for name, total in zip(names, counts.sum(1), strict=True)]
    height = max(0.15, min(0.32, 14 / max(1, len(rows))))
    figure, axes = figure_of(height * len(rows) + 1.2)
    _heat(axes, counts, counts / max(1, counts.max(initial=1)), rows, class_names, numbers=_fits(counts))
    axes.set_xlabel("class")
    axes.set_title(
        f"samples per client (in total) and class; the strongest colour is {counts.max(initial=0):,}",
        color=MUTED,
        weight="normal",
        size=9,
    )
    return figure


def _fits(counts: NDArray[np.int64]) -> bool:
    """Tell whether the numbers can be read inside the cells of a heat map."""
    clients, classes = counts.shape
    return bool(clients <= 40 and classes * len(f"{counts.max(initial=0)}") <= 110)


def confusion(counts: Counts, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: rows are the truth, columns the prediction, the colour the share of the row.

    Up to 20 classes the counts stand in the cells.

    Args:
        counts: The counts of a model, with its (C, C) matrix.
        class_names: The C names.
    """
    matrix = np.asarray(counts.confusion)
    share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    size = float(np.clip(0.42 * len(class_names) + 1.6, 3.6, 9.0))
    with style():
        figure, axes = figure_of(size * 0.92, size)
        _heat(axes, matrix, np.sqrt(share), list(class_names), class_names, numbers=len(class_names) <= 20)
        axes.set(xlabel="predicted class", ylabel="true class")
    return figure


def _heat(
    axes: Axes,
    counts: NDArray[np.int64],
    level: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    numbers: bool,
) -> None:
    """Draw ``level`` (0-1) as transparency of one colour, so that it can be read on light and on dark."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    ramp = [to_rgba(HEAT, 0.0), to_rgba(HEAT, HEAT_ALPHA if numbers else 1.0)]
    colours = LinearSegmentedColormap.from_list("heat", ramp)
    level = level if numbers else np.sqrt(level)
    axes.imshow(level, cmap=colours, vmin=0.0, vmax=1.0, interpolation="none", aspect="auto")
    if numbers:
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(j, i, f"{counts[i, j]}", size=7.5, ha="center", va="center_baseline")
    _heat_names(axes, rows, columns)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _heat_names(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Name rows and columns, turned, smaller, or only every second and so on when there is no room for all."""
    short = [shorten(name, 20) for name in columns]
    long = max(map(len, short), default=0) * len(short) > 95
    every = max(1, math.ceil(len(short) / (50 if long else 30)))
    axes.set_xticks(range(0, len(short), every), short[::every], color=INK)
    if long:
        look = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(short) <= 20 else {"rotation": 90}
        for label in axes.get_xticklabels():
            label.set(**look)
    inches = axes.get_figure(root=True).get_figheight() - 1.2  # type: ignore[union-attr]
    every = max(1, math.ceil(0.11 * len(rows) / inches))
    size = 9.0 if inches / max(1, len(rows)) > 0.14 else 6.5
    axes.set_yticks(range(0, len(rows), every), [shorten(r, 34) for r in rows[::every]], color=INK, size=size)


def accuracy_bars(comparison: Comparison) -> Figure:
    """Draw the accuracy of every model, best first, with the members' range shaded.

    More than twelve members share one line, a dot each. When all models are good the axis starts above zero; then
    accuracies are dots, since a bar that does not start at zero misleads.
    """
    members = [row for row in comparison.ranked() if row.kind == "member"]
    together = len(members) > _MEMBER_BARS
    lines: list[tuple[str, str, list[Row]]] = [
        (row.name, row.kind, [row]) for row in comparison.ranked() if not (together and row.kind == "member")
    ]
    if together:
        middle = float(np.median([row.counts.accuracy for row in members]))
        place = sum(line[2][0].counts.accuracy >= middle for line in lines)
        lines.insert(place, (f"{len(members)} members", "member", members))
    with style():
        figure, axes = figure_of(0.27 * max(1, len(lines)) + 1.0)
        start = axis_start([row.counts.accuracy for row in comparison.rows])
        axes.set_xlim(start, 1 + (1 - start) * 0.08)
        _spread(axes, members)
        best = comparison.best()
        for i, (_, kind, rows) in enumerate(lines):
            _accuracy_line(axes, i, kind, rows, start, digits(comparison), bold=rows[0] is best)
        name_rows(axes, [shorten(name, 30) for name, _, _ in lines])
        percent_axis(axes.xaxis)
        axes.grid(axis="both" if start else "x")
        axes.set_xlabel("accuracy on the test data" + (f" (the axis starts at {percent(start, 0)})" if start else ""))
        _kind_legend(figure, [kind for _, kind, _ in lines], spread=len(members) > 1)
    return figure


def _spread(axes: Axes, members: list[Row]) -> None:
    values = [row.counts.accuracy for row in members if math.isfinite(row.counts.accuracy)]
    if len(values) > 1:
        axes.axvspan(min(values), max(values), color=KIND_COLOURS["member"], alpha=0.22, lw=0, zorder=0)


def _accuracy_line(axes: Axes, i: int, kind: str, rows: list[Row], start: float, places: int, *, bold: bool) -> None:
    colour, values = KIND_COLOURS[kind], [r.counts.accuracy for r in rows if math.isfinite(r.counts.accuracy)]
    if not values:
        return
    if len(rows) > 1:
        axes.plot(values, [i] * len(values), "o", ms=4.5, color=colour, alpha=0.6, mec="none")
        text = percents(values, places)
    else:
        text = percent(values[0], places)
        if start:
            axes.plot(values, [i], "o", ms=8 if bold else 6.5, color=colour)
        else:
            axes.barh(i, values[0], 0.62, color=colour, ec="none")
    gap = (1 - start) * (0.016 if start or len(rows) > 1 else 0.008)
    axes.text(max(values) + gap, i, text, size=8.5, va="center_baseline", weight="bold" if bold else "normal")


def _kind_legend(figure: Figure, kinds: Collection[str], *, spread: bool) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=KIND_WORDS[k]) for k, colour in KIND_COLOURS.items() if k in kinds]
    if spread:
        handles.append(Patch(color=KIND_COLOURS["member"], alpha=0.22, label="range of the members"))
    if handles:
        figure.legend(handles=handles, loc="outside right upper", handlelength=1.2)


def _dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
