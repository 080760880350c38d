"""What alignment tried, as a table: for the terminal and for a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fedloom.report import words

if TYPE_CHECKING:
    from rich.table import Table

    from fedloom.align.candidates import Candidate, Fused

KINDS = {"plain": "as they are", "merge": "one model", "baseline": "to compare", "member": "to compare"}
_HEADINGS = ("model", "", "score", "time", "")


def candidates_table(fused: Fused) -> Table:
    """Build the table of all candidates, best first; the chosen one is bold. It fits 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=Text(_caption(fused)), caption_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in ("score", "time") else "left", overflow="fold")
    for candidate in _ranked(fused):
        style = "bold" if candidate.name == fused.chosen else ""
        table.add_row(*(Text(cell) for cell in _cells(candidate)), style=style)
    return table


def candidates_html(fused: Fused) -> str:
    """Return the table for a notebook."""
    rows = [f"<tr>{''.join(f'<th>{h}</th>' for h in _HEADINGS)}</tr>"]
    for candidate in _ranked(fused):
        tag = "th" if candidate.name == fused.chosen else "td"
        rows.append(f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in _cells(candidate))}</tr>")
    return f"<table>{''.join(rows)}</table><p>{escape(_caption(fused))}</p>"


def _ranked(fused: Fused) -> list[Candidate]:
    return sorted(fused.candidates, key=lambda c: (-c.score, c.distance))


def _cells(candidate: Candidate) -> list[str]:
    seconds = words.duration(candidate.seconds) if candidate.seconds else ""
    return [candidate.name, KINDS[candidate.kind], words.percent(candidate.score), seconds, candidate.note]


def _caption(fused: Fused) -> str:
    took = words.duration(fused.seconds)
    return f"Score: {fused.judge}. Fitted on {fused.probe}. Matching the units took {took}."
