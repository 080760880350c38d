"""The commands of the simulation. Their options are the keys of the configuration, so that there is one list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fedloom.cli import options, show
from fedloom.cli.options import PATH
from fedloom.config import values
from fedloom.errors import UsageError

INTERRUPTED = 130

_SCHEME = {
    "--alpha": ("alpha", "dirichlet: the concentration; small is skewed."),
    "--per-client": ("per_client", "shards, labels: how many of them per client."),
    "--sizes": ("distribution", "quantity: lognormal or powerlaw."),
    "--sigma": ("sigma", "quantity, lognormal: the spread."),
    "--exponent": ("exponent", "quantity, powerlaw: the exponent."),
    "--min-size": ("min_size", "dirichlet, quantity: the fewest samples of a client."),
}

Command = Callable[..., Any]


def _keys(command: Command) -> Command:
    """Add an option for every key of the configuration; a text each, so that one place checks them."""
    for flag, (name, text) in reversed(_SCHEME.items()):
        command = click.option(flag, name, metavar="VALUE", help=text)(command)
    for name, (_, key) in reversed(values.flags().items()):
        if name == "data":
            continue
        command = _option(f"--{name.replace('_', '-')}", name, key)(command)
    return command


def _option(flag: str, name: str, key: Any) -> Command:
    text, default = key.metadata["help"], key.default
    if str(key.type) == "bool":
        return click.option(flag, name, is_flag=True, default=None, help=text)
    shown = "" if default in (None, "") else f" [{default}]"
    choices = [c for c in key.metadata["choices"] if c]
    listed = f" {', '.join(choices)}." if choices and not any(c in text for c in choices) else ""
    metavar = {"int": "N", "int | None": "N", "float": "X", "float | None": "X", "int | float": "N|SHARE"}.get(
        str(key.type), "NAME"
    )
    return click.option(flag, name, metavar=metavar, help=f"{text}{listed}{shown}")


_SET = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="An option of the algorithm, such as mu=0.1."
)


def settings_of(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read the values of ``--set``: an option of the algorithm, or any key with its table (``network.down=5``).

    Raises:
        UsageError: A text that is not NAME=VALUE, or a name that is given twice.

    Example:
        >>> settings_of(("mu=0.1", "network.latency=2"))
        {'algorithm.mu': '0.1', 'network.latency': '2'}
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise UsageError(f"--set {text}: NAME=VALUE is expected, such as mu=0.1")
        name = name if "." in name else f"algorithm.{name}"
        if name in found:
            raise UsageError(f"--set {text}: '{name}' is given twice")
        found[name] = value
    return found


@click.command(short_help="Run a whole federation of virtual clients here.")
@click.argument("what", metavar="DATA|EXP.TOML|FOLDER", required=False)
@click.option("--out", type=PATH, help="The folder of the run. [runs/DATA-ALGORITHM-N]")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, after its last checkpoint.")
@_keys
@_SET
@options.data_dir
@options.quiet
def simulate(what: str | None, settings: tuple[str, ...], quiet: bool, **given: Any) -> None:
    """Run rounds of federated learning with virtual clients on this machine.

    Give a data set (digits, mnist, fashion-mnist or a path) and flags, or a TOML file, which flags override; or the
    folder of an earlier run with --resume. Every flag is a key of the file, too.

    \b
    fedloom simulate mnist --clients 100 --per-round 10 --rounds 50 --model 2nn
    fedloom simulate exp.toml --algorithm fedprox --set mu=0.1
    fedloom simulate runs/mnist-fedavg-1 --resume
    """  # noqa: D301 - click knows a paragraph that keeps its lines by this character
    from fedloom.simulation.simulate import simulate as run

    made = run(what, progress=not quiet, **given, **settings_of(settings))
    for text in made.lines():
        show.line(text)
    if made.stopped == "interrupted":
        show.line(f"stopped after round {len(made.records)}; to go on: fedloom simulate {made.folder} --resume")
        raise click.exceptions.Exit(INTERRUPTED)


@click.command(short_help="Run a grid of federations and compare them.")
@click.argument("what", metavar="DATA|EXP.TOML", required=False)
@click.option(
    "--grid",
    "grids",
    multiple=True,
    metavar="NAME=V1,V2,...",
    help="Values to try: algorithm=fedavg,fedprox:mu=0.1 or seed=0,1,2; once per name.",
)
@click.option("--out", type=PATH, help="The folder of the sweep. [runs/DATA-sweep]")
@_keys
@_SET
@options.data_dir
@options.quiet
def sweep(what: str | None, grids: tuple[str, ...], settings: tuple[str, ...], quiet: bool, **given: Any) -> None:
    """Run every combination of a grid; means come with 95 % intervals over seeds.

    The same command again goes on where it was stopped: runs that are finished are skipped. A TOML file may hold the
    grid as a table, [grid]; flags are as for 'fedloom simulate'.

    \b
    fedloom sweep mnist --grid algorithm=fedavg,fedprox:mu=0.1 --grid seed=0,1,2
    fedloom sweep exp.toml --grid alpha=0.1,0.5
    """  # noqa: D301 - click knows a paragraph that keeps its lines by this character
    from fedloom.simulation.grid import of_texts
    from fedloom.simulation.sweep import sweep as run

    made = run(what, of_texts(grids), progress=not quiet, **given, **settings_of(settings))
    show.table(made.table())
    for text in made.lines():
        show.line(text)
    if made.interrupted:
        show.line("stopped; the same command again goes on from here")
        raise click.exceptions.Exit(INTERRUPTED)


ALL = (simulate, sweep)
