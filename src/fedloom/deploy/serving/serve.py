"""Serve: a run over gRPC, as ``fedloom serve`` starts it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedloom.config import Config
from fedloom.deploy.interrupts import stoppable
from fedloom.deploy.serving.door import ADDRESS, ADMISSION, AUDIT, SECRETS, AuditLog, Door, Place
from fedloom.deploy.serving.host import NOTHING, USUAL, Terms, finished, host, served
from fedloom.deploy.settling import settled
from fedloom.errors import FedloomError, UsageError
from fedloom.simulation.folder import CONFIG
from fedloom.simulation.run import Run
from fedloom.simulation.simulate import base_of

__all__ = ["ADDRESS", "ADMISSION", "AUDIT", "HERE", "SECRETS", "AuditLog", "Place", "serve"]

HERE = Place()


def serve(
    what: str | Path | Config,
    place: Place = HERE,
    terms: Terms = USUAL,
    *,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
    invited: Callable[[str], None] = lambda _: None,
    progress: bool = True,
    **flags: Any,
) -> Run:
    """Coordinate a run whose clients join over the network. Started again with the same words, it goes on where it was.

    Args:
        what: A TOML file, the folder of a run that was served, a data set or a ``Config``.
        place: Where to listen.
        terms: How long rounds wait, what is evaluated on.
        out: The folder to write; ``runs/NAME-served-N`` when left out.
        say: Told what people should know, a line at a time.
        invited: Told the invitation that clients join with.
        progress: Show how it gets on.
        **flags: As for :func:`fedloom.simulate`.

    Returns:
        The run: its folder, records and models.

    Raises:
        UsageError: A configuration that contradicts itself, or needs what a network does not have.
        MissingDependency: ``grpcio`` or ``cryptography`` is not installed.
        TrainingError: A client cannot take part.
    """
    base, _ = base_of(what, chosen=[name for name, value in flags.items() if value is not None])
    config = served(base.override(**flags))
    if config.data.source == NOTHING and terms.test is None:
        say("note: the server has no data, so that no round is evaluated (pass --test to give it some)")
    if terms.patience.quorum > config.data.clients:
        raise UsageError(f"--quorum {terms.patience.quorum}: there are only {config.data.clients} clients")
    path = Path(out) if out is not None else free_folder(what, config)
    door, new = Door(path, place, config.data.clients, say, invited), not path.exists()
    try:
        with stoppable(), settled():
            return host(config, path, door.open, terms, say=say, progress=progress)
    except FedloomError:
        if new and not door.opened:  # nobody could join: nothing is worth keeping
            shutil.rmtree(path, ignore_errors=True)
        raise


def free_folder(what: str | Path | Config, config: Config) -> Path:
    """Return the folder of the run: one that was begun and is not over is gone on with."""
    if isinstance(what, str | Path) and (Path(what) / CONFIG).is_file():
        return Path(what)
    stem = Path(what).stem if isinstance(what, str | Path) else config.algorithm.name
    number = 1
    while finished(path := Path("runs") / f"{stem}-served-{number}"):
        number += 1
    return path
