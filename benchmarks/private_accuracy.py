"""How accurate is a model of MNIST that hides every one of its clients?

    python benchmarks/private_accuracy.py

(a quarter of an hour on two cores; stopped, the same command goes on). DP-FedAvg with a fixed clip, 2NN, epsilon 8 for
clients, noise found for it by ``--target-epsilon``, from the operating system. 1,000 clients divide the 60,000 images at
random (60 each), all of them in each of 20 rounds, delta 1e-5. 10,000 clients have 60 images each, drawn with
replacement, one in ten in each of 60 rounds by Poisson sampling, delta 1e-6, server momentum 0.9.

Beside it: R. C. Geyer, T. Klein, M. Nabi, "Differentially Private Federated Learning: A Client Level Perspective", 2017,
with 92 % (1,000 clients) and 96 % (10,000), at the same epsilon and deltas. Their clients have up to two classes
each, and 600 images; ours are drawn at random.

Target: those accuracies or better. Latest result: benchmarks/private_accuracy.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _common import machine

from fedloom import events
from fedloom.config import Config
from fedloom.simulation.simulate import carry_out

RUNS: dict[int, tuple[float, dict[str, Any]]] = {
    1_000: (0.92, {"sampling": "all", "delta": 1e-5, "rounds": 20, "epochs": 5, "clip": 2.0, "evaluate_every": 2}),
    10_000: (
        0.96,
        {
            "samples_per_client": 60, "sampling": "poisson", "per_round": 0.1, "delta": 1e-6, "rounds": 60, "epochs": 2,
            "clip": 0.5, "evaluate_every": 5, "algorithm": "fedavgm", "options": {"beta": 0.9},
        },
    ),
}  # fmt: skip
"""By number of clients: the published accuracy, and the run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("runs/private"))
    given = parser.parse_args()
    print(f"{machine()}\n\n| clients | epsilon | delta | noise multiplier | rounds | accuracy | best | published |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for clients in given.clients:
        published, keys = RUNS[clients]
        config = Config.of(
            data="mnist", clients=clients, model="2nn", batch_size=10, plan="compiled", lr=0.2, privacy="central",
            target_epsilon=given.epsilon, **keys,
        )  # fmt: skip
        folder = given.out / f"{clients}-{given.epsilon:g}"
        print(f"{clients:,} clients", file=sys.stderr, flush=True)
        carry_out(config, None, folder, resume=True)
        log = events.read(folder)
        promised = next(row for row in log.rows if row["event"] == "privacy")
        rounds = list(events.rounds(log.rows))
        tested = [record.accuracy for record in rounds if record.accuracy == record.accuracy]
        print(
            f"| {clients:,} | {rounds[-1].metrics['epsilon']:.2f} | {promised['delta']:g} | {promised['multiplier']:.3f} "
            f"| {len(rounds)} | {tested[-1]:.2%} | {max(tested):.2%} | {published:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
