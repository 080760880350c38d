"""One page about several runs: their curves in one plot, their figures in one table, and the settings that differ."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedloom.errors import UsageError
from fedloom.files import write_text
from fedloom.report import page, run_curves, runs_view, words
from fedloom.report.comparison import Finding
from fedloom.report.drawing import svg
from fedloom.report.run_curves import Line
from fedloom.report.run_findings import explain
from fedloom.report.run_reading import RunLog, read_run

RUNS: Final = "runs.html"
_SECTIONS: Final = (
    ("table", "All runs"),
    ("curves", "Round by round"),
    ("tradeoff", "The trade-off"),
    ("cost", "What it cost"),
    ("findings", "What happened"),
    ("differences", "What differs"),
)


def runs_page(folders: Sequence[str | Path], path: str | Path | None = None, *, target: float | None = None) -> Path:
    """Write one page about several runs, such as FedAvg beside central and lonely training.

    Args:
        folders: The runs' folders.
        path: The page to write; ``runs.html`` in the folder that holds all of them by default.
        target: The accuracy (0-1) that rounds and bytes are counted to; that of the runs by default.

    Returns:
        The path of the page.

    Raises:
        DataError: A folder holds no run.
        StorageError: The page cannot be written.
        UsageError: There is no folder.
    """
    if not folders:
        raise UsageError("no run was given; name the folders of the runs to compare")
    runs = [read_run(folder) for folder in folders]
    parent = os.path.commonpath([os.fspath(run.folder.resolve().parent) for run in runs])
    written = Path(path) if path is not None else Path(parent) / RUNS
    write_text(written, render_runs(runs, target=target))
    return written


def render_runs(runs: Sequence[RunLog], *, target: float | None = None) -> str:
    """Return the page about several runs as text."""
    named = runs_view.names(runs)
    goal = runs_view.target_of(runs) if target is None else target
    drawn, told = curve_pictures(runs, named, goal), _findings(runs, named)
    different = runs_view.differences(runs, named) if len(runs) > 1 else {"names": named, "rows": []}
    present = {"findings": told, "table": True, **drawn, "differences": different["rows"]}
    sources = {str(run.setting("data", "source")) for run in runs if run.setting("data", "source")}
    return page.fill(
        "runs",
        {
            "title": f"{words.many(len(runs), 'run')}{f' on {sources.pop()}' if len(sources) == 1 else ''}",
            "facts": " · ".join(["simulation", *dict.fromkeys(run.algorithm for run in runs)][:9]),
            "lead": words.unbroken(runs_view.lead(runs, named)),
            "tiles": [],
            "sections": [section for section in _SECTIONS if present[section[0]]],
            "findings": told,
            "table": runs_view.table(runs, named, goal),
            "own": any(run.own for run in runs),
            "pictures": drawn,
            "void": any(run.void for run in runs),
            "differences": different,
        },
    )


def curve_pictures(runs: Sequence[RunLog], named: Sequence[str], target: float) -> dict[str, Any]:
    """Draw the runs against rounds, and against what they sent and their simulated clock; None without points."""
    from markupsafe import Markup

    lines = {
        kind: [run_curves.line_of(run, kind, name) for run, name in zip(runs, named, strict=True)]
        for kind in run_curves.AXES
    }
    lines = {kind: [line for line in drawn if line.x] for kind, drawn in lines.items()}
    drawn: dict[str, Any] = {"curves": None, "tradeoff": tradeoff(runs, lines, named, target), "cost": None}
    if lines["round"]:
        figure = run_curves.curves({"round": lines["round"]}, target, names=named)
        drawn["curves"] = Markup(svg(figure, "Accuracy over the rounds"))
    costs = {kind: lines[kind] for kind in ("bytes", "clock") if lines[kind]}
    if costs:
        label = "Accuracy against bytes sent and simulated time"
        drawn["cost"] = Markup(svg(run_curves.curves(costs, target, names=named), label))
    return drawn


def tradeoff(runs: Sequence[RunLog], lines: Mapping[str, Sequence[Line]], named: Sequence[str], target: float) -> Any:
    """Draw what less of something costs in accuracy: bytes where there are codecs, epsilon where there is one; or None.

    Args:
        runs: The runs.
        lines: Their curves, by what they are drawn against.
        named: The names of all lines, for their colours.
        target: An accuracy (0-1) to mark; NaN for none.
    """
    from markupsafe import Markup

    wanted = {"up": any(run.codec for run in runs), "epsilon": any(run.spent for run in runs)}
    shown = {kind: lines[kind] for kind, asked in wanted.items() if asked and lines[kind]}
    if not shown:
        return None
    label = "Accuracy against bytes that clients sent, and against epsilon"
    return Markup(svg(run_curves.curves(shown, target, names=named), label))


def _findings(runs: Sequence[RunLog], named: Sequence[str]) -> list[Finding]:
    """Return the serious findings of every run, each with the run's name; and what to mind in the comparison."""
    told = [
        Finding(f.level, f"{name}: {f.title[0].lower()}{f.title[1:]}", f.text, f.command)
        for run, name in zip(runs, named, strict=True)
        for f in explain(run)
        if f.level == "problem" or (f.level == "warning" and ("fell" in f.title or "not finished" in f.title))
    ]
    return [*told, *_unequal(runs)]


def _unequal(runs: Sequence[RunLog]) -> list[Finding]:
    """Warn where a comparison is not a fair one."""
    found = []
    seeds = {run.setting("run", "seed") for run in runs if run.config}
    lengths = {len(run.rounds) for run in runs if math.isfinite(runs_view.score(run))}
    for key, what in (("source", "data"), ("scheme", "division of the data")):
        values = {str(run.setting("data", key)) for run in runs if run.config and run.setting("data", key)}
        if len(values) > 1:
            text = f"They were made with {' and '.join(sorted(values))}. Accuracies can be compared only within each."
            found.append(Finding("warning", f"The runs differ in the {what}", text))
    if len(lengths) > 1:
        text = "What stands at the end was reached after different numbers of rounds; compare the curves instead."
        found.append(Finding("info", "The runs have different lengths", text))
    if len(runs) > 1 and len(seeds) <= 1:
        text = (
            "Each algorithm was run once, so a small difference may be chance. 'fedloom sweep' repeats every run with other "
            "seeds and gives an interval."
        )
        found.append(Finding("info", "One seed only", text))
    return found
