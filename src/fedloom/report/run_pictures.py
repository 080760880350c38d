"""The pictures of one run: what it reached, what that cost, how its clients fared, and who took part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedloom.report.drawing import style
from fedloom.report.palette import KIND_COLOURS
from fedloom.report.panels import figure_of, percent_axis, whole_numbers
from fedloom.report.run_curves import Line, finish, line_of, mark_target, name_lines, panel, plot
from fedloom.report.run_protected import plain_uploads
from fedloom.report.run_reading import RunLog, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FATES: Final = {
    "merged": ("method", "merged"),
    "diverged": ("apart", "diverged"),
    "dropped": ("central", "dropped out"),
    "late": ("aligned", "too late"),
    "refused": ("ensemble", "refused"),
    "offline": ("baseline", "offline"),
    "surplus": ("member", "in reserve"),
}
"""What becomes of a client that was asked: its colour and its word."""

_BINS = 200


def progress(run: RunLog) -> Figure:
    """Draw accuracy and loss of the global model over the rounds, with the clients' training loss."""
    with style():
        figure, (left, right) = figure_of(3.5, columns=2)
        if not run.alone:
            plot(left, run.along("round"), color=KIND_COLOURS["global"], label="global model, test data")
            mark_target(left, run.target)
        left.set(title="Accuracy", xlabel="round")
        percent_axis(left.yaxis)
        losses = [(r.round, r.loss) for r in run.rounds if math.isfinite(r.loss) and not run.alone]
        own = [(r.round, r.client_loss) for r in run.rounds if math.isfinite(r.client_loss)]
        plot(right, losses, color=KIND_COLOURS["global"], label="global model, test data")
        plot(right, own, color=KIND_COLOURS["member"], ls=(0, (5, 2)), label="clients, their training data")
        right.set(title="Loss (nats)", xlabel="round")
        if losses or own:
            top = _ceiling([y for _, y in losses + own])
            right.set_ylim(0, top) if top else right.set_ylim(bottom=0)
        for axes in (left, right):
            finish(axes)
            whole_numbers(axes)
        name_lines(figure, left, right)
    return figure


def cost(run: RunLog) -> Figure:
    """Draw the accuracy against the bytes sent, where there are codecs or a simulated clock against those, too."""
    kinds = ["bytes", *(["up"] if run.codec else []), *(["clock"] if run.clock else [])]
    titles = {"bytes": "what was sent", "up": "what came up", "clock": "simulated time"}
    with style():
        figure, panels = figure_of(3.5 if run.codec else 3.3, columns=len(kinds))
        panels = [panels] if len(kinds) == 1 else list(panels)
        for axes, kind in zip(panels, kinds, strict=True):
            lines = [line_of(run, kind, "as it was")]
            looks: list[dict[str, Any]] = [{"color": KIND_COLOURS["global"]}]
            if kind == "up" and (plain := _plain(run)):
                lines, looks = [*lines, plain], [*looks, {"color": KIND_COLOURS["member"], "ls": (0, (5, 2))}]
            panel(axes, lines, kind, run.target, looks)
            axes.set_title(f"Accuracy against {titles[kind]}")
        if run.codec:
            name_lines(figure, *panels)
    return figure


def _plain(run: RunLog) -> Line | None:
    """Return the curve that updates of float32 would have had; None where their number is not known."""
    sums = dict(zip((r.round for r in run.rounds), plain_uploads(run), strict=False))
    known = [(sums[r.round], r.accuracy) for r in run.evaluated if sums.get(r.round)]
    return Line("had float32 updates been sent", [x for x, _ in known], [y for _, y in known]) if known else None


def spread(run: RunLog) -> Figure:
    """Draw how the clients fare: their mean, the worst and the best tenth, with the global model and with their own."""
    with style():
        figure, axes = figure_of(3.3)
        _band(axes, run.at_home, KIND_COLOURS["method"], "global model on the clients' data")
        _band(axes, run.own, KIND_COLOURS["ensemble"], "clients' own models (personal)")
        if not run.alone:
            look: dict[str, Any] = {"color": KIND_COLOURS["global"], "ls": (0, (5, 2)), "lw": 1.4}
            plot(axes, run.along("round"), label="global model on the test data", **look)
        axes.set(xlabel="round", ylabel="accuracy")
        finish(axes)
        percent_axis(axes.yaxis)
        whole_numbers(axes)
        figure.legend(loc="outside right upper")
    return figure


def _band(axes: Axes, spreads: Sequence[Spread], colour: str, label: str) -> None:
    """Draw a mean, and around it the worst to the best tenth where they are known."""
    plot(axes, [(s.round, s.mean) for s in spreads], color=colour, label=f"{label}: mean")
    known = [s for s in spreads if math.isfinite(s.worst) and math.isfinite(s.best)]
    if not known:
        return
    x, low, high = ([getattr(s, part) for s in known] for part in ("round", "worst", "best"))
    axes.fill_between(x, low, high, color=colour, alpha=0.16, lw=0, label="worst to best tenth")
    if len(known) == 1:
        axes.vlines(x, low, high, color=colour, lw=2, alpha=0.5)


def participation(run: RunLog) -> Figure:
    """Draw what became of the clients that were asked, round by round, stacked; many rounds are taken together."""
    counts = fates(run)
    rounds = np.array([r.round for r in run.rounds], dtype=np.float64)
    width = math.ceil(len(rounds) / _BINS)
    starts = np.arange(0, len(rounds), width)
    edges = np.append(rounds[starts], rounds[-1] + 1) - 0.5
    with style():
        figure, axes = figure_of(3.0)
        base = np.zeros(len(starts))
        for kind, values in counts.items():
            colour, word = FATES.get(kind, ("member", kind))
            sums = np.add.reduceat(values, starts) / np.diff(np.append(starts, len(rounds)))
            if values.any():
                look: dict[str, Any] = {"color": KIND_COLOURS[colour], "alpha": 0.55 if kind == "merged" else 0.95}
                axes.stairs(
                    base + sums, edges, baseline=base, fill=True, lw=0, label=f"{word} ({values.sum():,.0f})", **look
                )
            base = base + sums
        axes.set(xlabel="round", ylabel="clients asked" if width == 1 else f"clients asked, mean of {width} rounds")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        _whole_ticks(axes)
        figure.legend(loc="outside right upper", reverse=True)
    return figure


def fates(run: RunLog) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Count what became of the clients: by kind, one number per round; merged first, then the known failures."""
    known = {f.kind for r in run.rounds for f in r.failures}
    found = {"merged": np.array([r.clients for r in run.rounds], dtype=np.float64)}
    for kind in [*(k for k in FATES if k in known), *sorted(known - set(FATES))]:
        found[kind] = np.array([sum(f.kind == kind for f in r.failures) for r in run.rounds], dtype=np.float64)
    return found


def _ceiling(values: Sequence[float]) -> float | None:
    """Return where an axis of losses ends when a few rounds exploded; None to show everything."""
    middle = float(np.quantile(values, 0.9))
    return 2.5 * middle if max(values) > 20 * middle > 0 else None


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
