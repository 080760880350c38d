"""What is one merge of five models worth on MNIST, from a shared start and from different starts; and ten rounds?

Five stratified parts of 12,000 images, the zoo's ``cnn-small``, Adam (lr 1e-3), batches of 32. One-shot: three local
epochs, then one merge, by several methods. Rounds: FedAvg after every local epoch. The last model counts: nothing is
chosen by the test set. Every stage is kept under --out and found there again, so that a stopped run goes on.

    OMP_NUM_THREADS=1 python benchmarks/mnist_one_shot.py

Targets: FedAvg of the shared start >= 98 %, rounds >= 99 % within 10. Latest result: benchmarks/mnist_one_shot.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from _common import alone, federated, machine, once, score

from fedloom import partition
from fedloom.data import load_pair
from fedloom.merging import Entry, merge_vectors
from fedloom.metrics import Counts
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.training.evaluate import evaluate, predict
from fedloom.training.local import LocalConfig, cohort
from fedloom.training.shard import Shard

METHODS = ("fedavg", "median", "trimmed-mean", "geometric-median", "fednova")


def one_shot(
    model: Model, starts: list[torch.Tensor], shards: list[Shard], test: Shard, config: LocalConfig
) -> dict[str, Any]:
    """Train every shard from its start, and merge once by every method."""
    vectors, entries, chances = [], [], []
    members = {}
    for start, shard in zip(starts, shards, strict=True):
        update = next(iter(cohort(model, start, [shard], config)))
        vectors.append(start + update.delta)
        entries.append(Entry(shard.name, len(shard), update.steps, config.to_json()))
        logits = predict(model.load(vectors[-1]), test)
        chances.append(logits.softmax(1))
        members[shard.name] = score(Counts.of(logits, test.y))
        print(f"{shard.name}: accuracy {members[shard.name]['accuracy']:.4f}", flush=True)
    methods = {}
    for method in METHODS:
        merged = merge_vectors(method, entries, vectors, layout=model.layout).vector
        methods[method] = score(evaluate(model.load(merged), test))
        print(f"{method}: accuracy {methods[method]['accuracy']:.4f}", flush=True)
    methods["ensemble"] = score(Counts.of(torch.stack(chances).mean(0), test.y, probabilities=True))
    return {"members": members, "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cnn-small")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3, help="local epochs before the one merge")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-epochs", type=int, default=1, help="local epochs per round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("mnist-one-shot"))
    given = parser.parse_args()
    train, test_set = load_pair("mnist", given.data_dir)
    model = io.create(given.model, train, given.seed)
    start = model.vector()
    parts = partition.partition("stratified", train.y, given.clients, given.seed)
    shards = [Shard.of(train.take(part), model, f"client {i + 1}") for i, part in enumerate(parts)]
    test, everything = Shard.of(test_set, model), Shard.of(train, model, "central")
    config = LocalConfig(given.epochs, 32, "adam", 1e-3)
    per_round = LocalConfig(given.round_epochs, 32, "adam", 1e-3)
    different = []
    for i in range(given.clients):
        io.initialize(model, given.seed, "other", i)
        different.append(model.vector())
    stages = {
        "shared": lambda: one_shot(model, [start] * given.clients, shards, test, config),
        "rounds": lambda: federated(model, start, shards, test, per_round, given.rounds),
        "different": lambda: one_shot(model, different, shards, test, config),
        "central": lambda: alone(model, start, everything, test, config, given.epochs),
    }
    result = {name: once(given.out / f"{name}.json", stage) for name, stage in stages.items()}
    show(result)
    print(machine())


def show(result: dict[str, Any]) -> None:
    shared, different = result["shared"], result["different"]
    print("| | shared start | different starts |\n| --- | --- | --- |")
    for group in ("members", "methods"):
        for name in shared[group]:
            print(f"| {name} | " + " | ".join(f"{r[group][name]['accuracy']:.2%}" for r in (shared, different)) + " |")
    print(f"| central | {result['central']['accuracy']:.2%} | |")
    line = ", ".join(f"{record['accuracy']:.2%}" for record in result["rounds"]["rounds"])
    print(f"rounds: {line}")
    print("seconds: " + ", ".join(f"{name} {stage['seconds']:.0f}" for name, stage in result.items()))


if __name__ == "__main__":
    main()
