"""What the commands print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from fedloom.align.candidates import Fused
    from fedloom.offline.explain import Explanation
    from fedloom.report.comparison import Comparison, Finding

_COLOURS = {"good": "green", "info": "blue", "warning": "yellow", "problem": "red"}


def line(text: str = "") -> None:
    """Print a line as it is: paths may hold brackets, which rich would take for markup."""
    click.echo(text)


def table(made: RenderableType) -> None:
    """Print a table that fits the terminal."""
    _console().print(made)


def notes(texts: Iterable[str]) -> None:
    """Print notes, one per line."""
    for text in texts:
        _marked("note", "yellow", text)


def candidates(fused: Fused) -> None:
    """Print what alignment tried."""
    from fedloom.report.candidates import candidates_table

    table(candidates_table(fused))


def findings(found: Iterable[Finding]) -> None:
    """Print findings, each with the next command to try."""
    for one in found:
        _marked(one.level, _COLOURS[one.level], f"{one.title}. {one.text}".rstrip())
        if one.command:
            line(f"    {one.command}")


def comparison(made: Comparison) -> None:
    """Print the table of a comparison, what it means, and what was not run."""
    from fedloom.report import comparison_table

    table(comparison_table(made))
    findings(made.findings)
    for methods, reason in made.not_run():
        line(f"not run: {', '.join(methods)}: {reason}")


def explanation(made: Explanation) -> None:
    """Print what each member counts in a merged model, and what that means."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made_of = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made_of.add_column("member", overflow="fold", min_width=14)
    made_of.add_column("weight" if made.exact else "nearest weight", justify="right", no_wrap=True)
    for name, weight in made.weights.items():
        made_of.add_row(Text(name), f"{weight:z.3f}")
    table(made_of)
    findings(made.findings)


def _marked(word: str, colour: str, text: str) -> None:
    from rich.text import Text

    _console().print(Text.assemble((word, f"bold {colour}"), f": {text}"), soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
