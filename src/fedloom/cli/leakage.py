"""The command of the attacks on privacy."""

from __future__ import annotations

from typing import Any

import click

from fedloom.cli import options, show
from fedloom.cli.options import PATH


@click.command(short_help="Show what an update and a model give away.")
@click.argument("data", required=False)
@click.option("--model", default="lenet", show_default=True, help="lenet, 2nn, mlp or another; 'fedloom list models'.")
@click.option(
    "--images", type=int, default=1, show_default=True, help="Pictures that the victim's update comes from, 1 to 8."
)
@click.option("--out", type=PATH, default="fedloom-leak", show_default=True, help="The folder to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of everything.")
@options.data_dir
@options.quiet
def leak(data: str | None, quiet: bool, **given: Any) -> None:
    """Attack privacy on pictures, without and with protection, and write a page about what was seen.

    DATA is digits, mnist, fashion-mnist or a folder of images; mnist where it is on this machine, else digits. The
    server draws a client's picture from its update, and finds out who was in the training data of a model; clipping,
    noise, secure aggregation and compression stand in its way.

    \b
    fedloom leak digits
    fedloom leak mnist --model 2nn --images 4
    """  # noqa: D301 - click knows a paragraph that keeps its lines by the character that \b stands for
    from fedloom.leakage.leak import leak as run

    for text in run(data, progress=not quiet, **given).lines():
        show.line(text)


ALL = (leak,)
