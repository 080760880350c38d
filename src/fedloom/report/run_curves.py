"""Curves of accuracies: several runs in one plot, against rounds, bytes, the simulated clock or epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedloom.errors import UsageError
from fedloom.report.drawing import save_png, style
from fedloom.report.palette import KIND_COLOURS, MUTED, SERIES
from fedloom.report.panels import figure_of, percent_axis, whole_numbers
from fedloom.report.run_reading import RunLog, read_run
from fedloom.report.run_words import size, size_unit, time_unit
from fedloom.report.words import percent, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES: Final = {
    "round": "round",
    "clock": "simulated time",
    "bytes": "sent, down and up",
    "up": "sent up by the clients",
    "epsilon": "epsilon spent",
}

COMPARED: Final = ("up", "epsilon")
"""What runs may differ in by orders of magnitude, so that where they end is marked, and the axis may be logarithmic."""

_FAR = 5.0

_MARKED = 25
_DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


@dataclass(frozen=True)
class Line:
    """One curve of accuracies (0-1), with a band where it stands for several runs.

    Attributes:
        name: What the legend says.
        x: Rounds, seconds, bytes or epsilons, rising.
        y: Accuracies.
        low: The lower edge of the band; empty without one.
        high: The upper edge.
        goal: The point at which the target was reached, if it was.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    goal: tuple[float, float] | None = None


def line_of(run: RunLog, against: str, name: str = "") -> Line:
    """Return the accuracy of a run as a curve, with the point at which it reached its target."""
    points = run.curve(against)
    goal = None if run.alone else next(((x, y) for x, y in points if y >= run.target), None)
    return Line(name or run.name, [x for x, _ in points], [y for _, y in points], goal=goal)


def curves(
    lines: Mapping[str, Sequence[Line]], target: float = math.nan, *, title: str = "", names: Sequence[str] = ()
) -> Figure:
    """Draw the accuracies of several runs, or groups of runs, in one plot.

    Args:
        lines: By what they are drawn against, a name of :data:`AXES`, one panel each.
        target: An accuracy (0-1) to mark with a line across; NaN for none.
        title: What stands above the first panel.
        names: The names of all lines, so that one has the same colour in every picture; those of the lines by default.
    """
    named = list(names) or list(dict.fromkeys(line.name for drawn in lines.values() for line in drawn))
    styles = dict(zip(named, looks(named), strict=True))
    wanted = {kind: drawn for kind, drawn in lines.items() if any(line.x for line in drawn)}
    with style():
        figure, panels = figure_of(3.7, columns=max(1, len(wanted)))
        panels = [panels] if len(wanted) < 2 else list(panels)
        for axes, (kind, drawn) in zip(panels, wanted.items(), strict=False):
            panel(axes, drawn, kind, target, [styles[line.name] for line in drawn])
        if not wanted:
            panels[0].text(0.5, 0.5, "nothing was evaluated", transform=panels[0].transAxes, ha="center", color=MUTED)
        panels[0].set_title(title)
        name_lines(figure, *panels)
    return figure


def save_runs(
    folders: Sequence[str | Path] | Mapping[str, str | Path],
    path: str | Path,
    against: str = "bytes",
    *,
    target: float = math.nan,
) -> Path:
    """Draw the accuracy of several runs into one PNG file.

    Args:
        folders: The runs' folders; by the name in the legend, where they are a mapping.
        path: The file to write.
        against: "round", "clock" (simulated time), "bytes" (sent, down and up), "up" (what clients sent) or "epsilon".
        target: An accuracy (0-1) to mark.

    Returns:
        The path.

    Raises:
        DataError: A folder holds no run.
        StorageError: The file cannot be written.
        UsageError: ``against`` is something else.
    """
    if against not in AXES:
        raise UsageError(f"a picture is drawn against one of {', '.join(AXES)}; found '{against}'")
    named = folders if isinstance(folders, Mapping) else {read_run(f).name: f for f in folders}
    drawn = [line_of(read_run(folder), against, name) for name, folder in named.items()]
    save_png(curves({against: drawn}, target), path)
    return Path(path)


def looks(names: Sequence[str]) -> list[dict[str, Any]]:
    """Give every curve a colour and, when there are more curves than colours, a dash of its own."""
    steady = {"central": KIND_COLOURS["central"], "local-only": KIND_COLOURS["member"]}
    others = [name for name in names if name not in steady]
    found = []
    for name in names:
        i = others.index(name) if name in others else 0
        dash = (0, (4, 1.5)) if name in steady else _DASHES[i // len(SERIES) % len(_DASHES)]
        found.append({"color": steady.get(name, SERIES[i % len(SERIES)]), "ls": dash})
    return found


def panel(axes: Axes, lines: Sequence[Line], against: str, target: float, styles: Sequence[Mapping[str, Any]]) -> None:
    """Draw curves, with their bands and diamonds where the target was reached, and name the axes."""
    most = max((x for line in lines for x in line.x), default=0.0)
    wide = against in COMPARED and _far_apart(lines)
    units = {"bytes": size_unit, "up": size_unit, "clock": time_unit}
    length, unit = (1.0, "") if wide else units.get(against, lambda _: (1.0, ""))(most)
    for line, look in zip(lines, styles, strict=True):
        x = [value / length for value in line.x]
        if line.low:
            axes.fill_between(x, line.low, line.high, color=look["color"], alpha=0.15, lw=0)
        plot(axes, list(zip(x, line.y, strict=True)), label=_label(line.name), **look)
        if against in COMPARED and line.x:
            axes.plot(x[-1], line.y[-1], "o", ms=7.5, color=look["color"], mec="white", zorder=4)
        if line.goal:
            axes.plot(line.goal[0] / length, line.goal[1], "D", ms=7, color=look["color"], mec="white", zorder=5)
    mark_target(axes, target)
    axes.set_xlabel(f"{AXES[against]}{f' ({unit})' if unit else ''}")
    finish(axes)
    percent_axis(axes.yaxis)
    if against == "round":
        whole_numbers(axes)
    elif wide:
        _powers(axes, size if against == "up" else "{:g}".format)
    elif most:
        axes.set_xlim(left=0)


def _far_apart(lines: Sequence[Line]) -> bool:
    """Return whether curves end so far from each other that the shorter ones would not be seen."""
    ends = [line.x[-1] for line in lines if line.x]
    return bool(ends) and min(ends) > 0 and max(ends) > _FAR * min(ends)


def _powers(axes: Axes, write: Callable[[float], str]) -> None:
    """Make the horizontal axis logarithmic, with a few numbers that are written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(lambda value, _: write(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label(name: str) -> str:
    """Shorten a name for the legend; Matplotlib would leave out one that begins with an underscore."""
    short = shorten(name, 34)
    return f" {short}" if short.startswith("_") else short


def plot(axes: Axes, points: Sequence[tuple[float, float]], **look: Any) -> None:
    """Draw one curve; few points are marked one by one, and no point at all is nothing."""
    if not points:
        return
    x, y = zip(*points, strict=True)
    marker = "o" if len(points) <= _MARKED else None
    axes.plot(x, y, marker=marker, ms=5.5 if len(points) == 1 else 3.2, zorder=3, **look)


def mark_target(axes: Axes, target: float) -> None:
    """Draw the accuracy to be reached as a line across, unless it is NaN."""
    if math.isfinite(target):
        axes.axhline(target, color=KIND_COLOURS["baseline"], ls=(0, (1.5, 1.5)), lw=1.2)
        place = axes.get_yaxis_transform()
        axes.text(0.0, target, f" target {percent(target)}", transform=place, size=8, color=MUTED, va="bottom")


def finish(axes: Axes) -> None:
    """Add the grid, room above and below, and a word where there is nothing to see."""
    axes.grid(axis="y")
    axes.margins(y=0.08)
    if not axes.has_data():
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=MUTED)


def name_lines(figure: Figure, *panels: Axes) -> None:
    """Name every line once, whichever panel it stands in."""
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=min(5, len(named)))
