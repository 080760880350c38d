"""Progress bars for long work, in a terminal and in a notebook; silent elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[..., None]

REFRESH = 0.2
"""Seconds between two updates of a bar in a notebook."""


@contextmanager
def bar(description: str, total: int, show: bool = True) -> Iterator[Advance]:
    """Show a progress bar while the block runs.

    Args:
        description: What is being done.
        total: The amount of work, in the unit that ``advance`` counts.
        show: False for silence.

    Yields:
        ``advance(amount, note="")``: moves the bar and changes the note behind it.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if show and console.is_jupyter:
        with _notebook(description, total) as advance:
            yield advance
    else:
        with _terminal(console, description, total, show and console.is_terminal) as advance:
            yield advance


@contextmanager
def _terminal(console: Console, description: str, total: int, visible: bool) -> Iterator[Advance]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    note_column = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, note_column, console=console, disable=not visible, transient=True) as progress:
        task = progress.add_task(description, total=total, note="")

        def advance(amount: float = 0, note: str | None = None) -> None:
            if note is None:
                progress.advance(task, amount)
            else:
                progress.update(task, advance=amount, note=note)

        yield advance


@contextmanager
def _notebook(description: str, total: int) -> Iterator[Advance]:
    """Show a bar of HTML; rich's own needs ipywidgets, and warns where there are none."""
    from IPython.display import HTML, display

    done, said, shown = 0.0, "", time.monotonic()

    def view() -> HTML:
        progress = f"<progress value='{min(done, total):g}' max='{max(total, 1):g}'></progress>"
        return HTML(f"<div>{escape(description)} {progress} {escape(said)}</div>")

    handle = display(view(), display_id=True)

    def advance(amount: float = 0, note: str | None = None) -> None:
        nonlocal done, said, shown
        done, said = done + amount, said if note is None else note
        if time.monotonic() - shown > REFRESH:
            shown = time.monotonic()
            handle.update(view())

    try:
        yield advance
    finally:
        handle.update(HTML("<span></span>"))
