"""Does the share of units that match their own index tell a shared start from different ones?

Two members train on disjoint parts of MNIST (stratified, Dirichlet(0.1), shards of two classes), from one start and from two,
for up to 20 epochs. After 1, 2, 5, 10 and 20 epochs the same-index share is measured in every hidden layer, beside the
cosine of the trainable weights before and after weight matching. Required: 0.9 and more (pooled over the hidden layers) for a
shared start, below 0.15 in every layer for different starts.

    python benchmarks/shared_start.py

The latest result stands in benchmarks/shared_start.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from _common import machine
from _sets import build

from fedloom import partition, rng
from fedloom.align import matching
from fedloom.align.diagnose import hidden_arrays, same_index_share, shared_start
from fedloom.align.symmetry.graph import derive
from fedloom.data import load_pair
from fedloom.data.dataset import Dataset
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard

EPOCHS = (1, 2, 5, 10, 20)
SCHEMES = {"stratified": {}, "dirichlet": {"alpha": 0.1}, "shards": {"per_client": 2}}
COLUMNS = ("share", "lowest layer", "cosine", "cosine matched")


def train(model: Model, data: Dataset, start: str, config: LocalConfig, seed: int) -> Iterator[torch.Tensor]:
    """Yield the vector after each of ``EPOCHS``."""
    io.initialize(model, rng.derive(seed, start), "start")
    trainer = Trainer(model, model.vector(), Shard.of(data, model, start), config, seed=seed)
    for epoch in range(1, max(EPOCHS) + 1):
        trainer.run_epoch()
        if epoch in EPOCHS:
            yield trainer.vector()


def compare(model: Model, a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Return the numbers of ``COLUMNS`` for a pair of vectors."""
    layout, head = model.layout, model.layout.trainable
    verdict = shared_start([a, b], layout)
    views = [layout.unpack(v) for v in (a, b)]
    layers = [same_index_share(*(view[name] for view in views)) for name in hidden_arrays(layout)]
    symmetry = derive(model)
    generator = torch.Generator().manual_seed(0)
    orders = matching.by_weights(symmetry, [a, b], generator, reference=0).orders[1]
    raw, matched = (
        float(torch.nn.functional.cosine_similarity(a[:head], other[:head], 0))
        for other in (b, symmetry.apply(b, orders))
    )
    extreme = min(layers) if verdict.shared else max(layers)
    return [verdict.share, extreme, raw, matched]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="2nn,mlp,cnn-small")
    parser.add_argument("--parts", default=",".join(SCHEMES))
    parser.add_argument("--samples", type=int, default=2000, help="per member")
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    whole, _ = load_pair("mnist", given.data_dir)
    data = whole.take(rng.stream(given.seed, "samples").permutation(len(whole))[: 2 * given.samples])
    config, began = LocalConfig(max(EPOCHS), 64, "adam", given.lr), time.perf_counter()
    print("| model | parts | epochs | start | " + " | ".join(COLUMNS) + " |")
    for name in given.models.split(","):
        model = build(name)
        for scheme in given.parts.split(","):
            parts = partition.partition(scheme, data.y, 2, given.seed, options=SCHEMES[scheme])
            mine, theirs = (data.take(part) for part in parts)
            one = list(train(model, mine, "a", config, given.seed))
            for start, seconds in (("shared", "a"), ("different", "b")):
                others = list(train(model, theirs, seconds, config, given.seed))
                for epochs, a, b in zip(EPOCHS, one, others, strict=True):
                    row = " | ".join(f"{value:.3f}" for value in compare(model, a, b))
                    print(f"| {name} | {scheme} | {epochs} | {start} | {row} |", flush=True)
    print(f"{time.perf_counter() - began:.0f} s; {config}; {machine()}")


if __name__ == "__main__":
    main()
