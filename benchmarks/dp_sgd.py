"""What does DP-SGD with true per-example gradients cost beside plain local SGD?

    OMP_NUM_THREADS=1 python benchmarks/dp_sgd.py --peer /path/to/an/environment/with/opacus/bin/python

(about two minutes). One client with 600 images of MNIST trains one epoch of McMahan's 2NN, with expected batches of
10 and of 64; clip 1, noise multiplier 1, noise from the operating system on our side. The reference is the plain
loop (``training.local.Trainer``). Opacus (with Poisson sampling, its hooks, and its "ghost" mode) runs in a process of
its own, which waits while the others are timed: all take turns, and medians of the turns are shown, with a first one
that does not count. Target: at most 2 times the plain loop.

Without ``--peer`` only ours are timed. Opacus draws its noise from PyTorch's Mersenne twister (``secure_mode`` off):
faster than, and not as good as, the operating system's.

Latest result: benchmarks/dp_sgd.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _common import machine, median_ratio, seconds

from fedloom.data import load_data
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.private import ExamplePrivacy, PrivateTrainer
from fedloom.training.shard import Shard

PEER = Path(__file__).parent / "peers" / "opacus_2nn.py"
TARGET = 2.0


def calls(model: Model, shard: Shard, size: int) -> dict[str, Callable[[], float]]:
    """Return what is timed of ours, by name: each trains one epoch and returns its seconds."""
    start, config = model.vector(), LocalConfig(1, size, "sgd", 0.05)
    makes = {
        "plain loop": Trainer,
        "DP-SGD": partial(PrivateTrainer, privacy=ExamplePrivacy(1.0, 1.0)),
        "DP-SGD, clipping alone": partial(PrivateTrainer, privacy=ExamplePrivacy(1.0, 0.0)),
    }

    def epoch(make: Callable[..., Trainer]) -> float:
        trainer = make(model, start, shard, config)
        return seconds(trainer.run_epoch)

    return {name: partial(epoch, make) for name, make in makes.items()}


class Peer:
    """Opacus in another process, asked for one epoch at a time."""

    def __init__(self, python: str, shard: Shard) -> None:
        images = shard.inputs(slice(None)).numpy().reshape(len(shard), -1)
        self._process = subprocess.Popen([python, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._write({"images": images.tolist(), "labels": shard.y.tolist()})
        self.version = self._read()

    def epoch(self, mode: str, size: int) -> float:
        """Train one epoch; returns its seconds."""
        self._write({"mode": mode, "size": size})
        return float(self._read())

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _write(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a python with opacus")
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("mnist").take(np.arange(600))
    model = io.create("2nn", data)
    shard = Shard.of(data, model, "ana")
    peer = Peer(given.peer, shard) if given.peer else None
    print(f"{machine(f'Opacus {peer.version}' if peer else 'no Opacus')}\n")
    print("| B | training | milliseconds per epoch | lowest-highest | times plain | target |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in (10, 64):
        turns = calls(model, shard, size)
        if peer is not None:
            for mode in ("plain PyTorch", "Opacus", "Opacus, ghost"):
                turns[mode] = partial(peer.epoch, mode, size)
        times: dict[str, list[float]] = {name: [] for name in turns}
        for turn in range(given.turns + 1):
            for name, call in turns.items():
                taken = call()
                if turn:
                    times[name].append(taken)
        for name, values in times.items():
            middle, spread = 1e3 * statistics.median(values), f"{1e3 * min(values):.0f}-{1e3 * max(values):.0f}"
            ratio = median_ratio(values, times["plain loop"])
            goal = f"<= {TARGET:g}" if name == "DP-SGD" else ""
            print(f"| {size} | {name} | {middle:.1f} | {spread} | {ratio:.2f} | {goal} |")
    if peer is not None:
        peer.close()


if __name__ == "__main__":
    main()
