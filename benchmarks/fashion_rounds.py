"""How good is the federated model beside the clients alone and central training, on Fashion-MNIST?

Six clients of 10,000 images (stratified), Adam, 50 rounds of --epochs local epochs and FedAvg; "alone" trains each
client for as many epochs on its own images, "central" the same model on all 60,000. The last model counts: nothing is
chosen by the test set. Every stage is kept under --out and found there again, so that a stopped run goes on.

    python benchmarks/fashion_rounds.py --model mlp --epochs 3
    python benchmarks/fashion_rounds.py --model cnn --precision bfloat16

The latest result stands in benchmarks/fashion_rounds.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _common import alone, federated, machine, once

from fedloom import partition
from fedloom.data import load_pair
from fedloom.models import io
from fedloom.training.local import LocalConfig
from fedloom.training.shard import Shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs per round")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("fashion-rounds"))
    given = parser.parse_args()
    train, test = load_pair("fashion-mnist", given.data_dir)
    model = io.create(given.model, train, given.seed)
    start = model.vector()
    parts = partition.partition("stratified", train.y, 6, given.seed)
    shards = [Shard.of(train.take(part), model, f"client {i + 1}") for i, part in enumerate(parts)]
    held_out = Shard.of(test, model)
    config = LocalConfig(given.epochs, given.batch_size, "adam", given.lr, precision=given.precision)
    everything = Shard.of(train, model, "central")
    stages = {"federated": lambda: federated(model, start, shards, held_out, config, given.rounds)}
    for shard in [*shards, everything]:
        stages[shard.name] = lambda s=shard: alone(model, start, s, held_out, config, given.rounds * given.epochs)
    folder = given.out / given.model
    results = {name: once(folder / f"{name.replace(' ', '-')}.json", stage) for name, stage in stages.items()}
    clients = [r["accuracy"] for name, r in results.items() if name.startswith("client")]
    print(machine())
    print(f"model {given.model}, {config}, {given.rounds} rounds")
    print(f"clients alone {min(clients):.2%} to {max(clients):.2%}")
    print(f"federated     {results['federated']['accuracy']:.2%}")
    print(f"central       {results['central']['accuracy']:.2%}")


if __name__ == "__main__":
    main()
