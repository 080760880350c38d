"""TensorBoard: a run's figures in the folder ``tensorboard`` beside its log; ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fedloom import files
from fedloom.config import Config
from fedloom.simulation.writers import Figures

FOLDER: Final = "tensorboard"


class TensorBoard:
    """Writes event files."""

    def begin(self, path: Path, config: Config, before: Sequence[Figures]) -> None:
        """Begin a file with the rounds that are over; it takes the place of those that an earlier start left.

        Raises:
            StorageError: The folder cannot be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        folder = path / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._to: Any = SummaryWriter(str(folder), max_queue=1)
            self._to.add_text("config", "".join(f"    {line}\n" for line in config.to_toml().splitlines()))
            for figures in before:
                self._add(figures)
            self._to.flush()
        except OSError as error:
            raise files.storage_error(folder, error) from error

    def write(self, figures: Figures) -> None:
        """See there."""
        self._add(figures)
        self._to.flush()

    def end(self, how: str) -> None:  # noqa: ARG002 - a file ends the same way
        """See there."""
        self._to.close()

    def _add(self, figures: Figures) -> None:
        number, when, found = figures
        for name, value in found.items():
            self._to.add_scalar(name, value, number, walltime=when)


def make() -> TensorBoard:
    """Return a writer."""
    return TensorBoard()
