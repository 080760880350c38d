"""How many bytes does an accuracy cost, codec by codec?

    python benchmarks/compression.py

(about a quarter of an hour on two cores; stopped, the same command goes on). MNIST divided by Dirichlet(0.5) among 10
clients, all of them in each of 40 rounds, 2NN (199,210 numbers), one epoch of B = 64, SGD with lr 0.05: the same run
once per codec. Bytes are the lengths of what clients really sent up; "points" is the difference to the run without a
codec. A public reproduction (MNIST, Dirichlet 0.5, a smaller accuracy: 93.14 %) reports 4-bit QSGD at 6.6 times fewer
bytes and -0.11 points, and top-k without error feedback at 11.35 % (5 % kept), 61.25 % (10 %) and 89.96 % (20 %).

Targets: 4 bits within 0.3 points at 6.5 times fewer bytes; top-k 1 % with error feedback above 90 %; a chain of 50 times
fewer bytes within one point.

Latest result: benchmarks/compression.md; the picture: docs/compression.svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _common import machine

from fedloom import events
from fedloom.config import Config
from fedloom.simulation.simulate import carry_out

ROWS = (
    ("", "auto"),
    ("float16", "auto"),
    ("int8", "auto"),
    ("int4", "auto"),
    ("qsgd:4:512:max", "auto"),
    ("int4 | zstd", "auto"),
    ("topk:0.05", "off"),
    ("topk:0.1", "off"),
    ("topk:0.2", "off"),
    ("topk:0.05", "on"),
    ("topk:0.01", "on"),
    ("topk:0.01", "off"),
    ("sign", "on"),
    ("powersgd:2", "on"),
    ("rotate | subsample:0.1 | int4", "auto"),
    ("topk:0.05 | int8 | zstd", "on"),
    ("topk:0.02 | int4 | zstd", "on"),
    ("topk:0.01 | int8 | zstd", "on"),
)
"""Codecs of updates, and whether clients send later what was lost."""


def run(up: str, feedback: str, out: Path, rounds: int) -> tuple[float, float, int]:
    """Run one codec, or read its run; returns the last accuracy, the best one, and the bytes sent up."""
    config = Config.of(
        data="mnist", scheme="dirichlet", alpha=0.5, clients=10, per_round=10, model="2nn", batch_size=64, lr=0.05,
        rounds=rounds, plan="loop", evaluate_every=2, compress=up or "none", error_feedback=feedback if up else "auto",
    )  # fmt: skip
    stem = (up or "none").replace(" ", "").replace("|", "+").replace(":", "_")
    folder = out / f"{stem}-{feedback}"
    print(f"{up or 'none'}, error feedback {feedback}", file=sys.stderr, flush=True)
    carry_out(config, None, folder, resume=True, progress=False)
    found = [record for record in events.rounds(events.read(folder).rows) if record.accuracy == record.accuracy]
    every = events.rounds(events.read(folder).rows)
    return found[-1].accuracy, max(r.accuracy for r in found), sum(r.bytes_up for r in every)


def picture(rows: list[tuple[str, str, float, int]], path: Path) -> None:
    """Draw accuracy against bytes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "fedloom"}):
        figure, axes = plt.subplots(figsize=(10, 6))
        near: list[tuple[float, float]] = []
        for up, feedback, accuracy, sent in sorted(rows, key=lambda row: row[3]):
            lost = up.startswith("topk") and feedback == "off"
            x, y = sent / 1e6, 100 * accuracy
            axes.plot(x, y, "x" if lost else "o", color="#b3402a" if lost else "#2a6fb3")
            crowd = sum(x < 3.5 * other and abs(y - height) < 0.13 for other, height in near)
            near.append((x, y))
            step = (5, (4, -13, 15, 4)[crowd % 4])
            axes.annotate(f"{up or 'none'}", (x, y), xytext=step, textcoords="offset points", fontsize=8)
        axes.plot([], [], "o", color="#2a6fb3", label="as it should be")
        axes.plot([], [], "x", color="#b3402a", label="top-k without error feedback")
        axes.legend(frameon=False, loc="lower right")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("sent up by all clients in the whole run, MB")
        axes.set_ylabel("accuracy on the test set, %")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    parser.add_argument("--picture", type=Path, default=Path(__file__).parents[1] / "docs" / "compression.svg")
    given = parser.parse_args()
    rows = [(up, feedback, *run(up, feedback, given.out, given.rounds)) for up, feedback in ROWS]
    plain, sent = rows[0][2], rows[0][4]
    print(f"{machine()}\n\n{given.rounds} rounds\n")
    print("| codec | error feedback | accuracy | points | best | MB up | times fewer |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for up, feedback, accuracy, best, size in rows:
        said = feedback if up.startswith(("topk", "sign", "powersgd")) else ""
        print(
            f"| {up.replace('|', '+') or 'none'} | {said} | {accuracy:.2%} | {100 * (accuracy - plain):+.2f} | {best:.2%} "
            f"| {size / 1e6:.2f} | {sent / size:.1f} |"
        )
    picture([(up, feedback, accuracy, size) for up, feedback, accuracy, _, size in rows], given.picture)


if __name__ == "__main__":
    main()
