"""Consent: what an organisation has said on its own machine of the runs that may use its samples.

A node's folder holds what a person writes once (``node.json``), what a run asks for (``asked.json``) and what was agreed to,
by the run's name (``agreed.json``). Nothing is trained for a run whose terms are not in the last one, word for word.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from fedloom import files
from fedloom.data.dataset import Dataset
from fedloom.data.sources import load_training
from fedloom.deploy.joining.agreement import Agreement
from fedloom.deploy.joining.join import KEY
from fedloom.deploy.trust.identity import Keys
from fedloom.errors import DataError, NetworkError, UsageError

NODE, ASKED, AGREED = "node.json", "asked.json", "agreed.json"
PAUSE = 0.5


@dataclass(frozen=True)
class Node:
    """What a node has, and what it is called.

    Attributes:
        data: Where its samples are.
        name: What it is called.
        number: The number among the clients that it asks for.
        model: The function that makes the model, where a run needs code of its own.
        device: ``cpu`` or ``cuda``; a GPU when there is one.
        data_dir: Where data sets lie.
        base: The folder that relative paths start from.
    """

    data: str
    name: str
    number: int | None = None
    model: str | None = None
    device: str | None = None
    data_dir: str | None = None
    base: str = "."

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Read a node's own description.

        Raises:
            UsageError: There is none.
            DataError: It is damaged.
        """
        path = folder / NODE
        if not path.is_file():
            raise UsageError(
                f"{folder} is no folder of a node yet: run 'fedloom join --engine flower --data DATA --state {folder}'"
            )
        try:
            return cls(**files.read_json(path))
        except TypeError as error:
            raise DataError(f"{path}: damaged ({error})", file=str(path)) from error

    def samples(self) -> Dataset:
        """Load its samples."""
        return load_training(self.data, self.data_dir)


def lines(found: Agreement) -> list[str]:
    """Return what will be done, in words; Flower sends code, which a run of fedloom's own network never does."""
    said = [text for text in found.lines() if not text.startswith("stays")]
    return [
        *said,
        "stays    your samples, and the run's logs in your folder",
        "code     Flower sends this run's app to your SuperNode, and would send any other that somebody starts there:",
        "         agree only if you trust those who may start runs on its SuperLink",
    ]


def ask(folder: Path, found: Agreement) -> bool:
    """Say whether a run's terms were agreed to; where they were not, write them down for a person to read."""
    terms = _terms(found)
    if _read(folder / AGREED).get(found.run) == terms:
        return True
    files.write_json(folder / ASKED, terms)
    return False


def agree(folder: Path, found: Agreement) -> None:
    """Write down that a run's terms were agreed to."""
    files.write_json(folder / AGREED, {**_read(folder / AGREED), found.run: _terms(found)})
    (folder / ASKED).unlink(missing_ok=True)


def asked(folder: Path) -> Agreement | None:
    """Return what a run asks for; None where none does.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / ASKED
    if not path.is_file():
        return None
    try:
        return Agreement(**files.read_json(path))
    except TypeError as error:
        raise DataError(f"{path}: damaged ({error})", file=str(path)) from error


def enrol(
    folder: Path,
    node: Node,
    yes: Callable[[Agreement], bool],
    *,
    patience: float = float("inf"),
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> str:
    """Prepare a node's folder, wait for a run to ask, and write down what its owner says to it.

    Args:
        folder: The node's folder, which its SuperNode is told.
        node: What it has.
        yes: Shown what will be done; says whether to take part.
        patience: So many seconds without a run end this.
        say: Told what the user should know.

    Returns:
        What was done.

    Raises:
        UsageError: The user does not agree.
        NetworkError: No run asked.
        DataError: The samples are missing.
    """
    folder = folder.resolve()
    say(f"{node.samples()!r} is yours, and stays here")
    folder.mkdir(parents=True, exist_ok=True)
    Keys.at(folder / KEY)
    files.write_json(folder / NODE, asdict(node))
    say("this machine's SuperNode is started with:")
    say(f"  flower-supernode --superlink HOST:PORT --node-config 'fedloom-state=\"{folder}\"'")
    say("waiting for a run that asks (Ctrl-C ends this)")
    ends = time.monotonic() + patience
    while (found := asked(folder)) is None:
        if time.monotonic() > ends:
            raise NetworkError(f"no run has asked within {patience:g} s: is the SuperNode there, and the run started?")
        time.sleep(PAUSE)
    if not yes(found):
        (folder / ASKED).unlink(missing_ok=True)
        raise UsageError("you did not agree: nothing was sent but the number and the shape of your samples")
    agree(folder, found)
    return f"you agreed to {found.run}; the SuperNode trains for it, and {AGREED} keeps what was agreed to"


def _terms(found: Agreement) -> dict[str, Any]:
    terms: dict[str, Any] = json.loads(files.canonical(asdict(found)))
    return terms


def _read(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}
