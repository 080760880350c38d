"""Join: take part in a run over gRPC with data of one's own, as ``fedloom join`` does."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from fedloom.data.dataset import Dataset
from fedloom.data.sources import load_training
from fedloom.deploy.carrier.aside import Aside, aside
from fedloom.deploy.carrier.transport_grpc import connect
from fedloom.deploy.interrupts import stoppable
from fedloom.deploy.joining.agreement import Agreement
from fedloom.deploy.joining.client import PATIENT, Client, Manners
from fedloom.deploy.seam import Channel, Unreachable
from fedloom.deploy.settling import settled
from fedloom.deploy.trust import given
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.invitation import PUBLIC, Invitation
from fedloom.deploy.trust.locking import alone
from fedloom.errors import UsageError
from fedloom.models.model import device

HOME = "FEDLOOM_HOME"
KEY = "identity.key"


def ask(found: Agreement) -> bool:
    """Show what will be done, and ask in the terminal or the notebook."""
    print(*found.lines(), sep="\n", flush=True)
    return input("take part? [y/N] ").strip().lower() in ("y", "yes")


def join(
    invitation: str,
    data: str | Path | Dataset,
    *,
    name: str | None = None,
    agree: Callable[[Agreement], bool] = ask,
    state: str | Path | None = None,
    number: int | None = None,
    model: str | None = None,
    device_name: str | None = None,
    data_dir: str | Path | None = None,
    authority: str | Path | None = None,
    manners: Manners = PATIENT,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> str:
    """Train for a run on this machine, until it is over. The data stay here.

    Args:
        invitation: What the server printed.
        data: The samples: a path with options, as ``split`` takes them, a member's folder, a name or a data set.
        name: What to be called; the user's name when left out.
        agree: Shown what will be done; says whether to go on. It asks the user when left out.
        state: The folder for the key, the state and the log of what was sent; ``~/.fedloom/NAME`` when left out.
        number: The number among the clients to ask for; any that is free when left out.
        model: The function that makes the model, where the run needs code of yours.
        device_name: ``cpu`` or ``cuda``; a GPU when there is one.
        data_dir: Where data sets lie.
        authority: Whose certificates to trust (PEM), where the server has one that your organisation made.
        manners: How long to wait for the server.
        say: Told what the user should know, a line at a time.

    Returns:
        Why it ended, in the server's words.

    Raises:
        UsageError: The invitation is none, or the user does not agree.
        DataError: The samples are missing, or do not fit the run.
        NetworkError: The server cannot be reached, or refuses.
    """
    invited = Invitation.parse(invitation)
    device(device_name)
    name, folder = place_of(name, state)
    own = data if isinstance(data, Dataset) else load_training(data, data_dir)
    say(f"{own!r} is yours, and stays here")
    trusted = None if authority is None else _trusted(invited, Path(authority))
    with (
        stoppable(),
        alone(folder, f"{folder}: another 'fedloom join' runs with this folder: choose another --name"),
    ):
        keys = Keys.at(folder / KEY)
        with settled(), closing(_dialled(invited, keys, name, manners, trusted, say)) as channel:
            return Client(
                channel,
                name,
                own,
                folder,
                agree,
                code=model,
                number=number,
                where=device_name,
                manners=manners,
                keys=keys,
                say=say,
            ).run()


def place_of(name: str | None, state: str | Path | None) -> tuple[str, Path]:
    """Return what a client is called, and where it keeps its things.

    Raises:
        UsageError: The user has no name.
    """
    name = name or _user()
    return name, Path(state) if state is not None else _home() / _folder(name)


def _trusted(invited: Invitation, path: Path) -> bytes:
    if invited.pin != PUBLIC:
        raise UsageError(
            "--authority goes with a server that has a certificate of its own; this one's is in the invitation"
        )
    return given.authority(path)


def _dialled(
    invited: Invitation, keys: Keys, name: str, manners: Manners, authority: bytes | None, say: Callable[[str], None]
) -> Channel:
    since, told = time.monotonic(), False
    while True:
        try:
            return Aside(aside(partial(connect, invited, keys, name, authority=authority)))
        except Unreachable as error:
            if time.monotonic() - since > manners.patience:
                raise
            if not told:
                say(f"{error}; trying again (Ctrl-C ends this)")
                told = True
            time.sleep(min(1.0, manners.most))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise UsageError("this user has no name: choose one with --name") from error


def _home() -> Path:
    return Path(os.environ.get(HOME) or Path.home() / ".fedloom")


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
