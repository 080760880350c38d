"""What is one merge worth when the members were trained apart, from different random starts?

Seven architectures on MNIST and Fashion-MNIST; six members each, on stratified disjoint parts of 10,000 images, five
epochs of Adam, every member from a random start of its own. Each set is merged three times by ``fedloom.align.fuse``:
without any data, with 1,000 unlabelled training images (effort quick), with 5,000 of them (effort best: distillation of
three epochs, too). Nothing is chosen by the test set: the candidates are judged by their agreement with the ensemble.

    OMP_NUM_THREADS=1 python benchmarks/apart.py --seed 1

Development used seed 0, the table in benchmarks/apart.md is of seed 1. Members and stages are kept under --out and found
there again. Targets are in the same file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from _common import machine, once, seconds
from _sets import ARCHITECTURES, NORMALISED, build, members

from fedloom import rng
from fedloom.align import fusion, matching
from fedloom.align.candidates import Fused
from fedloom.align.fuse import fuse
from fedloom.align.symmetry.graph import derive
from fedloom.data import load_pair
from fedloom.metrics import Counts
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.training.evaluate import evaluate, predict
from fedloom.training.shard import Shard

DATASETS = ("mnist", "fashion-mnist")
WAYS = {"no data": (0, "quick"), "1,000": (1000, "quick"), "5,000": (5000, "best")}


def measure(architecture: str, dataset: str, given: argparse.Namespace) -> dict[str, Any]:
    """Merge one set in every way; returns accuracies and seconds."""
    folder = given.out / dataset / architecture / f"seed{given.seed}"
    files = members(architecture, dataset, given.seed, given.members or given.out, given.data_dir)
    team = [io.load(path) for path in files]
    train, test_set = load_pair(dataset, given.data_dir)
    test = Shard.of(test_set, team[0])
    rows = [member.vector() for member in team]
    alone = once(folder / "members.json", lambda: on_their_own(team, test))
    found = {"members": alone["members"], "ensemble": alone["ensemble"]}
    for name, (count, effort) in WAYS.items():
        index = rng.stream(given.seed, "unlabelled").permutation(len(train))[:count]
        x = Shard.of(train.take(index), team[0]).inputs(slice(None)) if count else None
        key = name.replace(" ", "-").replace(",", "")
        found[name] = once(
            folder / f"{key}.json", lambda x=x, effort=effort: one_way(team[0], rows, x, effort, test, given.seed)
        )
    print(row(architecture, dataset, found), flush=True)
    return found


def on_their_own(team: list[Model], test: Shard) -> dict[str, Any]:
    """Evaluate the members and their ensemble."""
    logits = [predict(member, test) for member in team]
    together = torch.stack([z.softmax(1) for z in logits]).mean(0)
    accuracies = [Counts.of(z, test.y).accuracy for z in logits]
    return {"members": accuracies, "ensemble": Counts.of(together, test.y, probabilities=True).accuracy}


def one_way(
    model: Model, rows: list[torch.Tensor], x: torch.Tensor | None, effort: str, test: Shard, seed: int
) -> dict[str, Any]:
    """Fuse, and evaluate every candidate on the test set."""
    made: list[Fused] = []
    took = seconds(lambda: made.append(fuse(model, rows, x=x, effort=effort, seed=seed)))
    fused = made[0]
    tried = {
        c.name: {
            "kind": c.kind,
            "score": c.score,
            "distance": c.distance,
            "seconds": c.seconds,
            "accuracy": evaluate(model.load(c.vector), test).accuracy,
        }
        for c in fused.candidates
        if c.vector is not None
    }
    return {"chosen": fused.chosen, "tried": tried, "fuse_seconds": took, "matching_seconds": fused.seconds}


def row(architecture: str, dataset: str, found: dict[str, Any]) -> str:
    """Return a row of the table."""
    alone = found["members"]
    ways = [found[name] for name in WAYS]
    plain = ways[0]["tried"]["plain mean"]["accuracy"]
    head = next(t["accuracy"] for n, t in ways[2]["tried"].items() if n.endswith("new last layer"))
    merged = [way["tried"][way["chosen"]]["accuracy"] for way in ways]
    cells = [f"{dataset} {architecture}", f"{min(alone):.2%}-{max(alone):.2%}", f"{fmean(alone):.2%}", f"{plain:.2%}"]
    cells += [f"{value:.2%}" for value in (*merged, head, found["ensemble"])]
    return "| " + " | ".join([*cells, " / ".join(f"{way['fuse_seconds']:.0f}" for way in ways)]) + " |"


HEADINGS = (
    *("set", "members", "their mean", "plain mean", "no data", "1,000 unlabelled", "5,000 and distillation"),
    *("one member, new last layer", "ensemble", "seconds"),
)


def summary(results: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Say how far the targets are reached."""

    def reached(found: dict[str, Any], name: str) -> float:
        return float(found[name]["tried"][found[name]["chosen"]]["accuracy"])

    for kind, architectures in (("plain", set(ARCHITECTURES) - set(NORMALISED)), ("BatchNorm", set(NORMALISED))):
        sets = [found for (_, a), found in results.items() if a in architectures]
        for name in ("no data", "1,000"):
            away = [100 * (reached(f, name) - fmean(f["members"])) for f in sets]
            print(f"{kind}, {name}: merge less mean of the members, points: {', '.join(f'{d:+.2f}' for d in away)}")
    every = list(results.values())
    print(
        f"1,000: above the best member in {sum(reached(f, '1,000') > max(f['members']) for f in every)} of {len(every)}"
    )
    gaps = [100 * (f["ensemble"] - reached(f, "5,000")) for f in every]
    print(f"5,000: below the ensemble by {np.mean(gaps):.2f} points on average, at most {max(gaps):.2f}")
    heads = [next(t["accuracy"] for n, t in f["5,000"]["tried"].items() if n.endswith("new last layer")) for f in every]
    above = sum(reached(f, "5,000") > head for f, head in zip(every, heads, strict=True))
    print(f"5,000: above one member with a new last layer in {above} of {len(every)}")


def speed(given: argparse.Namespace) -> None:
    """Time the parts for six models of 0.33 million parameters (cnn-small on MNIST)."""
    files = members("cnn-small", "mnist", given.seed, given.members or given.out, given.data_dir)
    team = [io.load(path) for path in files]
    rows = [member.vector() for member in team]
    train, _ = load_pair("mnist", given.data_dir)
    x = Shard.of(train.take(np.arange(1000)), team[0]).inputs(slice(None))
    symmetry = derive(team[0])
    runs: dict[str, Callable[[], object]] = {
        "matching by weights": lambda: matching.by_weights(symmetry, rows, torch.Generator().manual_seed(0)),
        "matching and data-free fusion, all candidates": lambda: fuse(team[0], rows, seed=given.seed),
        "the same with 1,000 images": lambda: fuse(team[0], rows, x=x, seed=given.seed),
    }
    for name, call in runs.items():
        times = sorted(seconds(call) for _ in range(3))
        print(f"{name}: {times[1]:.1f} s (median of 3; {build('cnn-small').layout.size:,} parameters)", flush=True)
    fused = fuse(team[0], rows, x=x, seed=given.seed)
    alone = next(c.seconds for c in fused.candidates if c.name == "least squares")
    print(f"least squares with 1,000 images alone: {alone:.1f} s; ridge {fusion.RIDGE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="sets such as mnist/2nn,fashion-mnist/resnet; all when left out")
    parser.add_argument("--data-dir")
    parser.add_argument("--members", type=Path, help="where the members lie; --out when left out")
    parser.add_argument("--out", type=Path, default=Path("apart"))
    parser.add_argument("--speed", action="store_true", help="time the parts instead")
    given = parser.parse_args()
    if given.speed:
        speed(given)
    else:
        chosen = given.only.split(",") if given.only else [f"{d}/{a}" for a in ARCHITECTURES for d in DATASETS]
        print("| " + " | ".join(HEADINGS) + " |\n|" + " --- |" * len(HEADINGS))
        results = {}
        for name in chosen:
            dataset, architecture = name.split("/")
            results[dataset, architecture] = measure(architecture, dataset, given)
        summary(results)
    print(machine())


if __name__ == "__main__":
    main()
