"""Tables for the terminal, and the small views of results in a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from fedloom.report import words
from fedloom.report.palette import ICONS, KIND_WORDS, PAGE

if TYPE_CHECKING:
    from rich.table import Table

    from fedloom.report.comparison import Comparison, Finding

_STYLES: Final = {
    "member": "default",
    "method": "blue",
    "aligned": "bright_yellow",
    "baseline": "default",
    "ensemble": "magenta",
    "central": "yellow",
    "global": "green",
    "apart": "red",
}
_BAR: Final = 8
_WIDE_CLASSES: Final = 12
# What 80 columns leave for the classes' figures beside the client's name and the sum.
_CLASS_COLUMNS: Final = 61


def comparison_table(comparison: Comparison) -> Table:
    """Build the table of all models, best first, with a bar each; the best merge is bold. It fits 80 columns.

    The bars start where :func:`words.axis_start` says, as in the report.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    start = words.axis_start(row.counts.accuracy for row in comparison.rows)
    digits, best = words.digits(comparison), comparison.best()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold", min_width=14)
    table.add_column("kind", no_wrap=True)
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column(f"from {start:.0%}" if start else "", no_wrap=True)
    for heading in ("macro F1", "loss", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.ranked():
        cells: list[str | Text] = [
            Text(row.name),
            Text(KIND_WORDS[row.kind], style=_STYLES[row.kind]),
            words.percent(row.counts.accuracy, digits),
            Text(_bar(row.counts.accuracy, start), style=_STYLES[row.kind]),
            words.percent(row.counts.macro_f1, digits),
            words.loss(row.counts.loss),
            words.duration(row.seconds),
        ]
        table.add_row(*cells, style="bold" if row is best else "")
    return table


def _bar(share: float, start: float) -> str:
    if not math.isfinite(share):
        return ""
    eighths = round(8 * _BAR * max(0.0, share - start) / (1 - start))
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def class_table(class_counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> Table:
    """Build the table of samples per client and class.

    Of more than 12 classes, or classes whose names cannot be told apart in 80 columns, only the span is shown.

    Args:
        class_counts: Per client its C counts.
        class_names: The C names.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("client", overflow="fold", min_width=8)
    room = max(4, min(10, _CLASS_COLUMNS // max(1, len(class_names)) - 2))
    cut = [n[:room] for n in class_names]
    wide = len(cut) > _WIDE_CLASSES or len(set(cut)) < len(cut)
    headings = ("classes", "smallest class", "largest class") if wide else cut
    rows = {
        client: [str(cell) for cell in (_span(counts, class_names) if wide else counts)]
        for client, counts in class_counts.items()
    }
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    for client, cells in rows.items():
        shown = [Text("·" if cell == "0" else cell) for cell in cells]
        table.add_row(Text(client), *shown, Text(f"{sum(class_counts[client])}", style="bold"))
    return table


def _span(counts: Sequence[int], class_names: Sequence[str]) -> list[str]:
    held = [k for k, count in enumerate(counts) if count]
    if not held:
        return ["0", words.DASH, words.DASH]
    low, high = min(held, key=lambda k: counts[k]), max(held, key=lambda k: counts[k])
    ends = [f"{words.shorten(class_names[k], 14)} ({counts[k]:,})" for k in (low, high)]
    return [f"{len(held)} of {len(class_names)}", *ends]


def text_html(text: str) -> str:
    """Return plain text for a notebook, its line breaks and columns kept."""
    return f"<pre>{escape(text)}</pre>"


def findings_html(findings: Iterable[Finding]) -> str:
    """Return findings for a notebook: icon, title, text and the next command of each."""
    parts = []
    for finding in findings:
        text = "".join(f"<p style='margin:.3em 0'>{escape(part)}</p>" for part in finding.text.split("\n\n") if part)
        command = f"<pre style='margin:.3em 0'>{escape(finding.command)}</pre>" if finding.command else ""
        parts.append(
            f"<div style='border-left:4px solid {PAGE[finding.level][0]};padding:.2em .8em;margin:.6em 0'>"
            f"<b>{ICONS[finding.level]} {escape(finding.title)}</b>{text}{command}</div>"
        )
    return "".join(parts)


def class_counts_html(class_counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> str:
    """Return the class distribution for a notebook: the picture, with the totals in its rows."""
    from fedloom.report.pictures import class_distribution, svg

    picture = svg(class_distribution(class_counts, class_names), "Number of samples of each class at each client")
    colours = "--ink:currentColor;--muted:currentColor;--grid:color-mix(in srgb,currentColor 18%,transparent)"
    return f"<div style='{colours};max-width:900px'>{picture}</div>"
