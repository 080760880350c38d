"""What can be named: methods, schemes and models, as tables for the terminal."""

from __future__ import annotations

import re

from rich import box
from rich.table import Table


def table(what: str) -> Table:
    """Build the table of ``methods``, ``schemes`` or ``models``."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heading, rows = {"methods": _methods, "schemes": _schemes, "models": _models}[what]()
    for name in heading:
        made.add_column(name, overflow="fold", no_wrap=name == heading[0])
    for row in rows:
        made.add_row(*row)
    return made


Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _methods() -> Rows:
    from fedloom.merging import METHODS

    rows: list[tuple[str, ...]] = []
    for name, method in METHODS.items():
        options = ", ".join(n if default is None else f"{n}={default:g}" for n, default in method.options.items())
        rows.append((name, method.title, options, re.sub(r'"[^"]*", ', "", method.paper)))
    return ("method", "what it does", "options (--set)", "source"), rows


def _schemes() -> Rows:
    from fedloom.partition import SCHEMES

    rows: list[tuple[str, ...]] = []
    for name, scheme in SCHEMES.items():
        options = ", ".join(f"{n}={o.default}" for n, o in scheme.options.items())
        rows.append((name, scheme.title, options))
    return ("scheme", "what it does", "options"), rows


def _models() -> Rows:
    from fedloom.models.zoo import TITLES

    rows: list[tuple[str, ...]] = list(TITLES.items())
    return ("model", "what it is"), rows
