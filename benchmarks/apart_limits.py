"""Where does one merge of members that were trained apart not work?

Six members on MNIST, three epochs of Adam, from different random starts, merged without data and with 1,000 unlabelled
images: hidden layers of ten units, two and six of them; one epoch of few, large steps; parts of two classes each.

    OMP_NUM_THREADS=1 python benchmarks/apart_limits.py

Latest result: benchmarks/apart_limits.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

import torch
from _common import machine
from _sets import MEMBERS

from fedloom import partition, rng
from fedloom.align.fuse import fuse
from fedloom.data import load_pair
from fedloom.metrics import Counts
from fedloom.models import io, zoo
from fedloom.models.keras_backend import import_keras
from fedloom.models.model import Model
from fedloom.offline import verdicts
from fedloom.training.evaluate import evaluate, predict
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard


def narrow(depth: int) -> Model:
    """Build a network of hidden layers of ten units."""
    layers = import_keras().layers
    body = [layers.Input((28, 28)), layers.Flatten(), *(layers.Dense(10, "relu") for _ in range(depth))]
    model = import_keras().Sequential([*body, layers.Dense(10, "softmax")])
    return io.from_config(json.loads(model.to_json()))


def small() -> Model:
    """Build the zoo's cnn-small."""
    return io.from_config(zoo.config("cnn-small", (28, 28, 1), 10))


def wide() -> Model:
    """Build the zoo's 2nn."""
    return io.from_config(zoo.config("2nn", (28, 28), 10))


ADAM = LocalConfig(3, 64, "adam", 1e-3)
CASES: dict[str, tuple[Callable[[], Model], str, dict[str, int], LocalConfig]] = {
    "for comparison: 2nn, 200 units, equal parts": (wide, "stratified", {}, ADAM),
    "two layers of ten units, equal parts": (partial(narrow, 2), "stratified", {}, ADAM),
    "six layers of ten units, equal parts": (partial(narrow, 6), "stratified", {}, ADAM),
    "2nn, one epoch, SGD with rate 0.5": (wide, "stratified", {}, LocalConfig(1, 256, "sgd", 0.5)),
    "cnn-small, two classes each": (small, "labels", {"per_client": 2}, ADAM),
}


def case(name: str, seed: int, data_dir: str | None) -> str:
    """Train, merge and evaluate one case; returns a row of the table."""
    make, scheme, options, config = CASES[name]
    train, test_set = load_pair("mnist", data_dir)
    model = make()
    model.input_high = 1.0
    test = Shard.of(test_set, model)
    parts = partition.partition(scheme, train.y, MEMBERS, seed, options=options)
    rows = []
    for i, part in enumerate(parts):
        io.initialize(model, rng.derive(seed, i), "start")
        trainer = Trainer(model, model.vector(), Shard.of(train.take(part[:10_000]), model), config, seed=i)
        for _ in range(config.epochs):
            trainer.run_epoch()
        rows.append(trainer.vector())
    logits = [predict(model.load(row), test) for row in rows]
    alone = [Counts.of(z, test.y).accuracy for z in logits]
    together = Counts.of(torch.stack([z.softmax(1) for z in logits]).mean(0), test.y, probabilities=True).accuracy
    index = rng.stream(seed, "unlabelled").permutation(len(train))[:1000]
    x = Shard.of(train.take(index), model).inputs(slice(None))
    merged, said = [], []
    for inputs in (None, x):
        fused = fuse(model, rows, x=inputs, seed=seed)
        merged.append(evaluate(model.load(fused.vector), test).accuracy)
        said = [f.title for f in verdicts.about(fused) if f.level == "warning"]
    cells = [
        name,
        f"{min(alone):.1%}-{max(alone):.1%}",
        f"{fmean(alone):.1%}",
        *(f"{m:.1%}" for m in (*merged, together)),
    ]
    return "| " + " | ".join([*cells, "; ".join(said) or "-"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    headings: Sequence[str] = (
        "case",
        "members",
        "their mean",
        "no data",
        "1,000 unlabelled",
        "what the output warns of",
    )
    print("| " + " | ".join(headings) + " |\n|" + " --- |" * len(headings))
    for name in CASES:
        print(case(name, given.seed, given.data_dir), flush=True)
    print(machine())


if __name__ == "__main__":
    main()
