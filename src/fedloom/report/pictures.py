"""The pictures: each function takes plain data and returns a Matplotlib Figure, with no global state touched.

``svg`` puts a figure into a page, ``save_png`` into a file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedloom.report.drawing import save_png, style, svg
from fedloom.report.palette import CLASSES, HEAT, HEAT_ALPHA, INK, KIND_COLOURS, KIND_WORDS, MUTED, SERIES
from fedloom.report.words import axis_start, digits, percent, percents, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fedloom.metrics import Counts
    from fedloom.records import RoundRecord
    from fedloom.report.comparison import Comparison, Row

__all__ = [
    "accuracy_bars",
    "class_distribution",
    "confusion",
    "learning_curves",
    "rounds_curve",
    "save_png",
    "svg",
]

_WIDTH = 10.0
_STACKED_CLASSES, _STACKED_CLIENTS = 8, 30
_NAMED_LINES = 7
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
    figure, axes = _figure(0.34 * len(names) + 1.2)
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
    _rows(axes, names)
    axes.set(xlabel="samples", xlim=(0, widest * 1.08))
    figure.legend(loc="outside right upper", title="class", alignment="left")
    return figure


def _client_heat(counts: NDArray[np.int64], names: list[str], class_names: Sequence[str]) -> Figure:
    rows = [f"{name}  ({total:,})" for name, total in zip(names, counts.sum(1), strict=True)]
    height = max(0.15, min(0.32, 14 / max(1, len(rows))))
    figure, axes = _figure(height * len(rows) + 1.2)
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
        figure, axes = _figure(size * 0.92, size)
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


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], *, emphasis: Collection[str] = ()) -> Figure:
    """Draw loss and accuracy over the epochs.

    Up to three models show training (dashed) and validation; more show the validation curve, or training when there
    is none. More than seven models without emphasis share one colour.

    Args:
        histories: Per model one mapping per epoch, with ``epoch``, ``loss`` (nats), ``accuracy`` (0-1) and, where
            known, ``val_loss`` and ``val_accuracy``. What is missing, None or NaN is left out.
        emphasis: Names of models that stand out (central training).
    """
    with style():
        figure, panels = _figure(3.5, columns=2)
        for axes, key, title in zip(panels, ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True):
            if not _curve_panel(axes, key, histories, emphasis):
                axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set(title=title, xlabel="epoch")
            axes.grid(axis="y")
            _whole_numbers(axes)
        _percent_axis(panels[1].yaxis)
        handles, labels = panels[0].get_legend_handles_labels()
        if not handles:
            handles, labels = panels[1].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper")
    return figure


def _curve_panel(
    axes: Axes, key: str, histories: Mapping[str, Sequence[Mapping[str, Any]]], emphasis: Collection[str]
) -> bool:
    both = len(histories) <= 3
    lines = {name: {k: _points(epochs, k) for k in (f"val_{key}", key)} for name, epochs in histories.items()}
    validated = any(line[f"val_{key}"] for line in lines.values())
    plain = [name for name in lines if name not in emphasis]
    group = f"{len(plain)} models" if len(plain) > _NAMED_LINES else ""
    for name, line in lines.items():
        loud = name in emphasis
        i = 0 if loud else plain.index(name)
        colour = KIND_COLOURS["central"] if loud else KIND_COLOURS["member"] if group else SERIES[i % len(SERIES)]
        label = shorten(name) if loud or not group else group if i == 0 else ""
        look: dict[str, Any] = {
            "color": colour,
            "lw": 2.4 if loud else 1.0 if group else 1.7,
            "zorder": 4 if loud else 3,
        }
        look |= {"alpha": 0.55} if group and not loud else {}
        if line[f"val_{key}"]:
            _line(axes, line[f"val_{key}"], label=f"{label}, validation" if both and line[key] else label, **look)
        if line[key] and (both or not validated):
            look |= {"ls": "--", "mfc": "none"} if both else {}
            _line(axes, line[key], label=f"{label}, training" if both else label, **look)
    if not both:
        axes.set_ylabel("validation" if validated else "training")
    return any(points for line in lines.values() for points in line.values())


def _points(epochs: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(e.get("epoch", i + 1), e.get(key)) for i, e in enumerate(epochs)]
    return [(float(x), float(y)) for x, y in found if y is not None and math.isfinite(y)]


def _line(axes: Axes, points: list[tuple[float, float]], **look: Any) -> None:
    x, y = zip(*points, strict=True)
    marker = "o" if len(points) == 1 or (len(points) <= 25 and look.get("lw", 2) > 1) else None
    axes.plot(x, y, marker=marker, ms=5.5 if len(points) == 1 else 3.2, **look)


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
        figure, axes = _figure(0.27 * max(1, len(lines)) + 1.0)
        start = axis_start([row.counts.accuracy for row in comparison.rows])
        axes.set_xlim(start, 1 + (1 - start) * 0.08)
        _spread(axes, members)
        best = comparison.best()
        for i, (_, kind, rows) in enumerate(lines):
            _accuracy_line(axes, i, kind, rows, start, digits(comparison), bold=rows[0] is best)
        _rows(axes, [shorten(name, 30) for name, _, _ in lines])
        _percent_axis(axes.xaxis)
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


def rounds_curve(
    rounds: Sequence[RoundRecord], *, central: float | None = None, best_member: float | None = None
) -> Figure:
    """Draw the accuracy of the global model over the rounds of a federation.

    Args:
        rounds: The records, in order.
        central: The accuracy of central training (0-1), drawn as a line across.
        best_member: The accuracy of the best member alone (0-1), likewise.
    """
    with style():
        figure, axes = _figure(3.4)
        points = _points([{"epoch": r.round, "accuracy": r.accuracy} for r in rounds], "accuracy")
        if points:
            _line(axes, points, color=KIND_COLOURS["global"], lw=2.2, label="global model", zorder=3)
            x, y = points[-1]
            axes.annotate(percent(y), (x, y), (7, 0), textcoords="offset points", va="center", weight="bold", size=8.5)
        for value, kind, dash, text in (
            (central, "central", (5, 2), "central training"),
            (best_member, "member", (1.5, 1.5), "best member alone"),
        ):
            if value is not None and math.isfinite(value):
                label = f"{text}, {percent(value)}"
                axes.axhline(value, color=KIND_COLOURS[kind], ls=(0, dash), lw=1.5, label=label)
        axes.set(xlabel="round", ylabel="accuracy")
        axes.margins(y=0.12)
        axes.grid(axis="y")
        _percent_axis(axes.yaxis)
        _whole_numbers(axes)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.05 * (high - low))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper")
    return figure


def _figure(height: float, width: float = _WIDTH, columns: int = 1) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(max(1, len(names)) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)


def _percent_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda share, _: f"{round(100 * share, 3):g} %")


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = axes.dataLim.intervalx
    if math.isfinite(low):
        room = 0.5 if high == low else 0.04 * (high - low)
        axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))


def _dark(colour: str) -> bool:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
