"""The page of a sweep: means over seeds with their intervals, and the curves behind them, per division of the data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from fedloom.files import write_text
from fedloom.report import page, words
from fedloom.report.comparison import Finding
from fedloom.report.run_findings import LITTLE, ORDER
from fedloom.report.run_words import listed, size
from fedloom.report.runs_view import ROLES
from fedloom.report.sweep_curves import curve_picture, tradeoff_picture
from fedloom.report.sweep_reading import Cell, Estimate, SweepResult, read_sweep
from fedloom.report.views import HTML

_FIGURES: Final = (
    ("final_accuracy", "Accuracy after the last round", 1),
    ("best_accuracy", "Accuracy of the best round", 1),
    ("rounds_to_target", "Rounds to the target", -1),
    ("clients_mean", "Clients: mean accuracy on their own data", 1),
    ("clients_worst", "Clients: the worst tenth", 1),
    ("epsilon", "Epsilon", 0),
    ("bytes_up", "Sent up by the clients", 0),
)
NEAR: Final = 0.01
FEWER: Final = 1.5
_COSTS: Final = ("epsilon", "bytes_up")
_OF_GLOBAL: Final = ("final_accuracy", "best_accuracy", "rounds_to_target")


def sweep_page(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a sweep, from its results and the logs of its runs.

    Returns:
        The path of the page.

    Raises:
        DataError: There are no results in the folder.
        StorageError: The folder cannot be written.
    """
    path = Path(folder) / HTML
    write_text(path, render_sweep(read_sweep(folder)))
    return path


def render_sweep(sweep: SweepResult) -> str:
    """Return the page of a sweep as text."""
    tables = [t for figure, title, sign in _FIGURES if (t := _table(sweep, figure, title, sign))]
    drawn = [(i, skew, picture) for i, skew in enumerate(sweep.skews) if (picture := curve_picture(sweep, skew))]
    tradeoffs = [(i, skew, picture) for i, skew in enumerate(sweep.skews) if (picture := tradeoff_picture(sweep, skew))]
    told = _findings(sweep)
    sections = [("tables", "Means over seeds")] if tables else []
    sections += [(f"tradeoff-{i}", f"Trade-off{f': {skew}' if skew else ''}") for i, skew, _ in tradeoffs]
    sections += [(f"curves-{i}", skew or "Curves") for i, skew, _ in drawn]
    sections += [("findings", "What happened")] if told else []
    logs = [log for cell in sweep.cells for log in cell.logs]
    sources = {str(log.setting("data", "source")) for log in logs if log.config}
    source = f" on {sources.pop()}" if len(sources) == 1 else ""
    facts = [words.many(sweep.done, "run"), words.many(len(sweep.methods), "method"), _seeds(sweep)]
    return page.fill(
        "sweep",
        {
            "title": f"Sweep{source}",
            "facts": " · ".join(facts),
            "lead": words.unbroken(_lead(sweep)),
            "tiles": [],
            "sections": sections,
            "findings": told,
            "tables": _one_table(sweep, tables),
            "drawn": drawn,
            "tradeoffs": tradeoffs,
            "void": any(log.void for log in logs),
        },
    )


def _seeds(sweep: SweepResult) -> str:
    most = max((cell.runs for cell in sweep.cells), default=0)
    return f"{words.many(most, 'seed')} each"


def _table(sweep: SweepResult, figure: str, title: str, sign: int) -> dict[str, Any] | None:
    """Return one figure of all cells: a row per method, a column per division; None when no run has it."""
    if not any(_figure(cell, figure).n for cell in sweep.cells):
        return None
    if figure == "bytes_up" and not any(log.codec for cell in sweep.cells for log in cell.logs):
        return None
    best = {skew: _best(sweep, skew, figure, sign) if sign else None for skew in sweep.skews}
    rows = []
    for method in sweep.methods:
        cells = []
        for skew in sweep.skews:
            cell = sweep.cell(method, skew)
            cells.append(_cell_view(cell, figure, best[skew]) if cell else {"text": words.DASH, "pm": "", "mark": ""})
        algorithm = next(cell.algorithm for cell in sweep.cells if cell.method == method)
        rows.append({"name": method, "kind": ROLES.get(algorithm, ("method", "")), "cells": cells})
    return {"title": title, "columns": [skew or "all" for skew in sweep.skews], "rows": rows}


def _one_table(sweep: SweepResult, tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put all figures into one table where the data are divided in one way only: a column per figure."""
    if len(sweep.skews) != 1 or not tables:
        return tables
    rows = [
        {**first, "cells": [cell for table in tables for cell in table["rows"][i]["cells"]]}
        for i, first in enumerate(tables[0]["rows"])
    ]
    return [{"title": sweep.skews[0] or "All methods", "columns": [table["title"] for table in tables], "rows": rows}]


def _figure(cell: Cell, figure: str) -> Estimate:
    """Return an estimate; clients that are alone have no global model that means anything."""
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    if cell.algorithm == "local-only" and figure in _OF_GLOBAL:
        return nothing
    if cell.algorithm in ROLES and figure == "bytes_up":
        return nothing
    return cell.figures.get(figure, nothing)


def _best(sweep: SweepResult, skew: str, figure: str, sign: int) -> Cell | None:
    """Return the best federated cell of a column."""
    rivals = [c for c in sweep.cells if c.skew == skew and c.algorithm not in ROLES]
    known = [c for c in rivals if math.isfinite(_figure(c, figure).mean)]
    if figure == "rounds_to_target":
        most = max((_figure(c, figure).n for c in known), default=0)
        known = [c for c in known if _figure(c, figure).n == most]  # not the one that was quick by chance, once
    return max(known, key=lambda c: sign * _figure(c, figure).mean, default=None) if len(rivals) > 1 else None


def _cell_view(cell: Cell, figure: str, best: Cell | None) -> dict[str, str]:
    found = _figure(cell, figure)
    rounds = figure == "rounds_to_target"
    text, half = _written(figure, found)
    if figure == "epsilon" and found.n and any(log.void for log in cell.logs):
        text += ", void"
    alone = cell.algorithm == "local-only"
    few = f"{found.n} of {cell.runs} runs" if 0 < found.n < cell.runs or (rounds and not found.n and not alone) else ""
    mark = ""
    if best is cell:
        mark = "top"
    elif best is not None and cell.algorithm not in ROLES and _overlap(found, _figure(best, figure)):
        mark = "close"
    return {"text": words.unbroken(text), "pm": " ".join(part for part in (half, few) if part), "mark": mark}


def _written(figure: str, found: Estimate) -> tuple[str, str]:
    """Write a mean, and half of its interval where the figure is one of chance."""
    if not math.isfinite(found.mean):
        return words.DASH, ""
    if figure in _COSTS:
        return size(found.mean) if figure == "bytes_up" else f"{found.mean:.3g}", ""
    rounds, sure = figure == "rounds_to_target", math.isfinite(found.half)
    if rounds:
        return f"{found.mean:.0f}", f"± {found.half:.1f}" if sure else ""
    return words.percent(found.mean, 2), f"± {100 * found.half:.2f}" if sure else ""


def _overlap(one: Estimate, other: Estimate) -> bool:
    return one.low <= other.high and other.low <= one.high


def _lead(sweep: SweepResult) -> str:
    said = []
    for skew in sweep.skews:
        best = _best(sweep, skew, "final_accuracy", 1)
        if best is None:
            continue
        reached = _figure(best, "final_accuracy")
        half = f" ± {100 * reached.half:.1f}" if math.isfinite(reached.half) else ""
        share = words.percent(reached.mean).removesuffix(" %")
        near = listed([cell.method for cell in _near(sweep, best)], 2)
        tie = f"; its interval overlaps with {near}" if near else ""
        said.append(f"{f'With {skew}, ' if skew else ''}{best.method} ends highest, at {share}{half} %{tie}.")
    more = f" The other {len(said) - 3} divisions of the data are in the table." if len(said) > 3 else ""
    return " ".join(said[:3]) + more or f"{words.many(sweep.done, 'run')} {'is' if sweep.done == 1 else 'are'} over."


def _findings(sweep: SweepResult) -> list[Finding]:
    found = []
    if sweep.failures:
        text = "\n\n".join(f"{name}: {reason}" for name, reason in sweep.failures[:10])
        found.append(Finding("problem", f"{words.many(len(sweep.failures), 'run')} could not go on", text))
    for skew in sweep.skews:
        found += _weak(sweep, skew)
        found += _close(sweep, skew)
        found += _cheaper(sweep, skew)
    if sweep.done < sweep.planned:
        text = "The same command again goes on with the runs that are missing; those that are over are not run again."
        found.append(Finding("warning", f"{sweep.done} of {sweep.planned} runs are over", text))
    if sweep.cells and all(cell.runs < 2 for cell in sweep.cells):
        text = "Without other seeds nobody can tell a difference from chance: add seed=0,1,2 to the grid."
        found.append(Finding("warning", "One seed only", text))
    return sorted(found, key=lambda finding: ORDER.index(finding.level))


def _weak(sweep: SweepResult, skew: str) -> list[Finding]:
    """Name methods that learned little where another one learned much."""
    best = _best(sweep, skew, "final_accuracy", 1)
    if best is None or _figure(best, "final_accuracy").mean < LITTLE:
        return []
    weak = [c for c in sweep.cells if c.skew == skew and _figure(c, "final_accuracy").mean < LITTLE]
    where = f" with {skew}" if skew else ""
    said = listed([f"{c.method} ({words.percent(_figure(c, 'final_accuracy').mean)})" for c in weak])
    text = f"{best.method} has {words.percent(_figure(best, 'final_accuracy').mean)} there, so the data can be learned."
    if any(cell.algorithm == "scaffold" for cell in weak):
        text += (
            " SCAFFOLD is known for this where clients hold few classes: the non-IID benchmark of Li et al., as "
            "reproduced with Flower, has 33.80 % on Fashion-MNIST with two classes per client."
        )
    return [Finding("warning", f"Learned little{where}: {said}", text)] if weak else []


def _near(sweep: SweepResult, best: Cell) -> list[Cell]:
    """Return the federated cells of a column whose final accuracy cannot be told from the best one's."""
    rivals = [c for c in sweep.cells if c.skew == best.skew and c is not best and c.algorithm not in ROLES]
    return [c for c in rivals if _overlap(_figure(c, "final_accuracy"), _figure(best, "final_accuracy"))]


def _close(sweep: SweepResult, skew: str) -> list[Finding]:
    """Say which methods cannot be told from the best one."""
    best = _best(sweep, skew, "final_accuracy", 1)
    if best is None:
        return []
    near = _near(sweep, best)
    if not near:
        return []
    where = f" with {skew}" if skew else ""
    text = (
        f"The 95 % intervals of {listed([best.method, *(c.method for c in near)])} overlap after the last round: with these "
        "seeds none of them can be called the better one. More seeds make the intervals narrower."
    )
    return [Finding("info", f"No clear winner{where}", text)]


def _cheaper(sweep: SweepResult, skew: str) -> list[Finding]:
    """Name the method that comes near to the best with far fewer bytes, where codecs are compared."""
    best = _best(sweep, skew, "final_accuracy", 1)
    if best is None or not any(log.codec for cell in sweep.cells for log in cell.logs):
        return []
    top, most = _figure(best, "final_accuracy").mean, _figure(best, "bytes_up").mean
    rivals = [c for c in sweep.cells if c.skew == skew and c.algorithm not in ROLES and c is not best]
    near = [c for c in rivals if _figure(c, "final_accuracy").mean >= top - NEAR and _figure(c, "bytes_up").mean > 0]
    least = min(near, key=lambda c: _figure(c, "bytes_up").mean, default=None)
    if least is None or not most > FEWER * _figure(least, "bytes_up").mean:
        return []
    sent, reached = _figure(least, "bytes_up").mean, _figure(least, "final_accuracy").mean
    text = (
        f"Its clients sent {size(sent)}, those of {best.method} {size(most)}; the accuracy at the end is "
        f"{words.percent(reached, 2)} against {words.percent(top, 2)}."
    )
    where = f" with {skew}" if skew else ""
    return [
        Finding("good", f"{least.method} does nearly as well with {most / sent:.3g} times fewer bytes up{where}", text)
    ]
