"""What the commands print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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


def findings(found: Iterable[Finding]) -> None:
    """Print findings, each with the next command to try."""
    for one in found:
        _marked(one.level, _COLOURS[one.level], f"{one.title}. {one.text}")
        if one.command:
            line(f"    {one.command}")


def comparison(made: Comparison) -> None:
    """Print the table of a comparison, what it means, and what was not run."""
    from fedloom.report import comparison_table

    table(comparison_table(made))
    findings(made.findings)
    for methods, reason in made.not_run():
        line(f"not run: {', '.join(methods)}: {reason}")


def _marked(word: str, colour: str, text: str) -> None:
    from rich.text import Text

    _console().print(Text.assemble((word, f"bold {colour}"), f": {text}"), soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
