"""The pictures of what changes step by step: over the epochs, over the rounds, and from one member to another."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedloom.report.drawing import style
from fedloom.report.palette import INK, KIND_COLOURS, MUTED, SERIES
from fedloom.report.panels import figure_of, percent_axis, whole_numbers
from fedloom.report.words import percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedloom.records import RoundRecord
    from fedloom.report.interpolation import Interpolation

_NAMED_LINES = 7
_WAYS = ((KIND_COLOURS["apart"], "o"), (KIND_COLOURS["aligned"], "s"), (KIND_COLOURS["method"], "^"))
"""The colour and the mark of two members as they are, aligned, and aligned with BatchNorm recalibrated."""


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
        figure, panels = figure_of(3.5, columns=2)
        for axes, key, title in zip(panels, ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True):
            if not _curve_panel(axes, key, histories, emphasis):
                axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set(title=title, xlabel="epoch")
            axes.grid(axis="y")
            whole_numbers(axes)
        percent_axis(panels[1].yaxis)
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
        figure, axes = figure_of(3.4)
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
        percent_axis(axes.yaxis)
        whole_numbers(axes)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.05 * (high - low))
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper")
    return figure


def interpolation_curve(lines: Sequence[Interpolation]) -> Figure:
    """Draw loss and accuracy along the straight line between two members, one curve per way of mixing them.

    Args:
        lines: Between the same two members: as they are, aligned, ...
    """
    with style():
        figure, panels = figure_of(3.6, columns=2)
        for axes, key, title in zip(panels, ("losses", "accuracies"), ("Loss", "Accuracy"), strict=True):
            for line, (colour, marker) in zip(lines, _WAYS, strict=False):
                points = [(x, y) for x, y in zip(line.alphas, getattr(line, key), strict=True) if math.isfinite(y)]
                if points:
                    axes.plot(*zip(*points, strict=True), marker=marker, ms=4, color=colour, label=line.name)
            _ends(axes, shorten(lines[0].first, 18), shorten(lines[0].second, 18))
            axes.set_title(title)
            axes.grid(axis="y")
            axes.margins(y=0.08)
        percent_axis(panels[1].yaxis)
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    return figure


def _ends(axes: Axes, first: str, second: str) -> None:
    """Name what stands at 0, in the middle and at 1; the names are written inwards, so that long ones fit."""
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0.0, 0.5, 1.0], [first, "half of each", second], color=INK)
    left, _, right = axes.get_xticklabels()
    left.set_horizontalalignment("left")
    right.set_horizontalalignment("right")
    axes.grid(axis="x")
