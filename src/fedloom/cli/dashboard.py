"""The command that shows runs in a browser."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import click

from fedloom.cli import show
from fedloom.cli.options import PATH

RUNS = "runs"


@click.command(short_help="Show runs in a browser, live and past ones.")
@click.argument("runs", nargs=-1, type=PATH)
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="Address and port; 0.0.0.0:8080 for all.")
@click.option("--token", help="What visitors must show. [made where others can reach the address]")
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
def dashboard(runs: tuple[Path, ...], listen: str, token: str | None, opened: bool) -> None:
    """Show RUNS, folders of runs or folders with runs in them, in a browser, until Ctrl-C.

    Runs that go on are followed, and new ones appear by themselves. RUNS is the folder 'runs' when left out.

    \b
    fedloom dashboard
    fedloom dashboard runs/mnist-fedavg-1 --open
    fedloom dashboard runs --listen 0.0.0.0:8080
    """  # noqa: D301 - click knows a paragraph that keeps its lines by this character
    from fedloom.dashboard.watching import watch
    from fedloom.deploy.interrupts import stoppable

    with suppress(KeyboardInterrupt), stoppable(), watch(runs or RUNS, listen, token) as made:
        show.line(f"dashboard: {made.url}")
        show.line("Ctrl-C ends it")
        if opened:
            click.launch(made.url)
        while True:
            time.sleep(1.0)


ALL = (dashboard,)
