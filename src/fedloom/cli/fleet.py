"""What serve and join do with ``--engine flower``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedloom.cli import show
from fedloom.errors import UsageError

if TYPE_CHECKING:
    from fedloom.deploy.joining.agreement import Agreement
    from fedloom.deploy.serving.host import Terms

GRPC, FLOWER = ENGINES = ("grpc", "flower")

engine = click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=GRPC,
    show_default=True,
    help="What carries the run: fedloom's own network, or a fleet of Flower's.",
)
superlink = click.option(
    "--superlink", default="", help="With --engine flower: a connection of Flower's configuration. [its default]"
)


def serve(what: str, name: str, terms: Terms, out: Path | None, flags: dict[str, Any]) -> None:
    """Have Flower serve a run."""
    _refuse("listen", "address", "insecure", "certificate", "key", "dashboard")
    from fedloom.deploy.flower.launch import serve as run

    path = run(what, name, terms, out=out, say=show.line, **flags)
    show.line(f"over: {path}")


def join(data: str, agree: Callable[[Agreement, list[str]], bool], patience: float, given: dict[str, Any]) -> None:
    """Prepare a node, and ask its owner."""
    _refuse("invitation", "authority")
    from fedloom.deploy.flower import consent
    from fedloom.deploy.joining.join import place_of

    name, folder = place_of(given["name"], given["state"])
    node = consent.Node(
        *(data, name, given["number"], given["model"], given["device_name"]),
        data_dir=None if given["data_dir"] is None else str(given["data_dir"]),
        base=str(Path.cwd()),
    )
    done = consent.enrol(
        folder, node, lambda found: agree(found, consent.lines(found)), patience=patience, say=show.line
    )
    show.line(done)


def _refuse(*names: str) -> None:
    """Refuse what fedloom's own network alone has.

    Raises:
        UsageError: One of them was given.
    """
    context = click.get_current_context()
    for name in names:
        source = context.get_parameter_source(name)
        if source in (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT):
            shown = "an invitation" if name == "invitation" else f"--{name}"
            raise UsageError(
                f"{shown} has no place with --engine flower: Flower has its own network, see docs/flower.md"
            )
