"""A run that goes on from its checkpoints: a function, and a script for processes that are killed.

Command: ``python killable_run.py FOLDER``. It prints where it starts from, and a line after every round.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fedloom import algorithms, checkpoint, engines, rng, rounds
from fedloom.clients import ClientSide, Population
from fedloom.data.dataset import Dataset
from fedloom.models import io
from fedloom.schedule import Call
from fedloom.training.local import LocalConfig
from fedloom.training.shard import Shard

LAST = 24


class Some:
    clock = 0.0

    def call(self, number, load):
        self.clock += 0.1
        chosen = rng.stream(0, "cohort", number).choice(8, 3, replace=False)
        return Call(tuple(int(c) for c in chosen), (number,) * 3, asked=3, clock=self.clock)

    def replace(self, number, attempt, count, load):
        return Call((), ())

    def oldest(self):
        return None

    def state(self):
        return {"clock": self.clock}

    def resume(self, state):
        self.clock = state["clock"]


def lines(folder: Path) -> Iterator[str]:
    """Carry out the run, or the rest of it, with a checkpoint in every third round; its end is in end.pt."""
    chance = np.random.default_rng(0)  # the digits would load scikit-learn, in every process
    y = chance.integers(0, 10, 480)
    data = Dataset.of(chance.random((480, 8, 8)) + y[:, None, None], y, high=None)
    model, config = io.create("mlp", data, 0), LocalConfig(epochs=1, lr=0.1)
    algorithm = algorithms.make("scaffold", algorithms.Setting(model, config, 8))
    side = ClientSide(model, Population(Shard.of(data, model), np.array_split(np.arange(480), 8)), algorithm, config)
    if checkpoint.numbers(folder):
        begun, store = checkpoint.load(folder)
    else:
        store = checkpoint.begin(folder, keeps=True)
        begun = rounds.begin(algorithm, model.vector())
    federation = rounds.Federation(algorithm, engines.in_process(side, 1), Some(), lambda *_: None, store=store)
    yield f"from {begun.round}"
    for record, snapshot in rounds.run(federation, begun, LAST):
        yield f"{record.round} {record.clock.hex()}"
        if record.round % 3 == 0:
            checkpoint.save(folder, snapshot, store)
    kept = store.read(range(8))
    torch.save([dict(snapshot.state), {c: dict(k) for c, k in kept.items()}], folder / "end.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in lines(Path(sys.argv[1])):
        print(line, flush=True)
