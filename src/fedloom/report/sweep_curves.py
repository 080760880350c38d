"""The curves of a sweep: means over seeds, with bands from the lowest to the highest of them."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from fedloom.report import run_curves
from fedloom.report.drawing import svg
from fedloom.report.run_curves import Line
from fedloom.report.run_reading import RunLog
from fedloom.report.runs_page import tradeoff
from fedloom.report.runs_view import target_of
from fedloom.report.sweep_reading import Cell, SweepResult


def curve_picture(sweep: SweepResult, skew: str) -> Any:
    """Draw the curves of one division of the data: against rounds, and against bytes where any were sent."""
    from markupsafe import Markup

    cells = [cell for cell in sweep.cells if cell.skew == skew and cell.logs]
    lines = {kind: [_line(cell, kind) for cell in cells] for kind in ("round", "bytes")}
    lines = {kind: [line for line in drawn if line.x] for kind, drawn in lines.items()}
    if not lines["round"]:
        return None
    target = target_of([log for cell in cells for log in cell.logs])
    figure = run_curves.curves(lines, target, names=sweep.methods)
    return Markup(svg(figure, f"Accuracy of every method, {skew or 'mean over seeds'}"))


def tradeoff_picture(sweep: SweepResult, skew: str) -> Any:
    """Draw the accuracy against bytes and epsilon, of one division of the data; None where neither is at stake."""
    cells = [cell for cell in sweep.cells if cell.skew == skew and cell.logs]
    logs = [log for cell in cells for log in cell.logs]
    lines = {kind: [line for cell in cells if (line := _line(cell, kind)).x] for kind in run_curves.COMPARED}
    return tradeoff(logs, lines, sweep.methods, target_of(logs))


def _line(cell: Cell, against: str) -> Line:
    """Return the mean curve over seeds, with the lowest and the highest of them as its band."""
    curves = [dict(zip(_rounds(log, against), log.curve(against), strict=False)) for log in cell.logs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return Line(cell.method, (), ())
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    at = [[curve[n] for curve in curves] for n in common]
    ys = [[y for _, y in points] for points in at]
    several = len(curves) > 1
    return Line(
        cell.method,
        [fmean(x for x, _ in points) for points in at],
        [fmean(y) for y in ys],
        [min(y) for y in ys] if several else (),
        [max(y) for y in ys] if several else (),
    )


def _rounds(log: RunLog, against: str) -> list[int]:
    """Return the rounds of the points of ``log.curve(against)``."""
    if log.alone:
        return [s.round for s in log.own]
    return [r.round for r in log.evaluated if against != "epsilon" or r.round in log.spent]
