"""How fast are the codecs, and how many bytes do they leave, on an update of 1,663,370 numbers (McMahan's CNN)?

    OMP_NUM_THREADS=1 python benchmarks/codecs.py

(about half a minute; needs zstandard). Every codec encodes and decodes the same update in turn, on one thread; the figures
are medians of CPU time, so that what else the machine does counts as little as it can. The update is normal with another
size per array, 4 bytes per number before. A squared error is the one of a draw, as a share of the update's squared norm,
beside what the codec states as its bound (expected over chance).
Target: 200 MB/s of float32 and more for each, both ways.

Latest result: benchmarks/codecs.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field

import torch
from _common import machine

from fedloom.compress import Codec, parse
from fedloom.layout import Layout
from fedloom.rng import stream

SHAPES = ((32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (512, 3136), (512,), (10, 512), (10,))
LAYOUT = Layout(tuple(f"array {i}" for i in range(len(SHAPES))), SHAPES, len(SHAPES))
TARGET = 200.0
CHAINS = (
    *("float32", "float16", "bfloat16", *(f"int{bits}" for bits in range(1, 9))),
    *("qsgd:2", "qsgd:4", "qsgd:4:norm=max", "qsgd:8", "sign", "topk:0.001", "topk:0.01", "topk:0.1"),
    *("randomk:0.01", "mask:0.1", "subsample:0.1", "rotate", "lowrank:4", "powersgd:2", "powersgd:4", "zstd"),
    *("int4 | zstd", "int8 | zstd", "rotate | int4", "rotate | subsample:0.1 | int2", "qsgd:4 | zstd"),
    *("topk:0.01 | int8 | zstd", "topk:0.1 | int4 | zstd", "powersgd:4 | int8 | zstd"),
)


@dataclass
class Times:
    """CPU seconds of every turn."""

    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def speeds(self) -> tuple[float, float]:
        """Return MB of float32 per second, encoding and decoding."""
        return (
            4e-6 * LAYOUT.size / statistics.median(self.encode),
            4e-6 * LAYOUT.size / statistics.median(self.decode),
        )


def update() -> torch.Tensor:
    """Make an update: normal numbers, as large in each array as in a step of training from random weights."""
    vector = torch.from_numpy(stream(0, "update").standard_normal(LAYOUT.size).astype("float32"))
    for name, where, shape in LAYOUT.slices():
        vector[where] *= 0.01 * float(stream(1, name).lognormal(0, 1)) / max(shape[-1], 1) ** 0.5
    return vector


def turn(codec: Codec, vector: torch.Tensor, times: Times, number: int) -> tuple[int, float]:
    """Encode and decode once; returns the bytes and the squared error."""
    start = time.thread_time()
    data = codec.encode(vector, stream(2, number))
    middle = time.thread_time()
    found = codec.decode(data, size=LAYOUT.size)
    end = time.thread_time()
    times.encode.append(middle - start)
    times.decode.append(end - middle)
    return len(data), float((found.double() - vector).square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(1)
    vector, codecs = update(), {text: parse(text, LAYOUT) for text in CHAINS}
    energy = float(vector.double().square().sum())
    for text in CHAINS:
        turn(codecs[text], vector, Times(), 0)
    times = {text: Times() for text in CHAINS}
    found = {}
    for number in range(given.turns):
        for text in CHAINS:
            found[text] = turn(codecs[text], vector, times[text], number)
    print(f"{machine()}\n\n{LAYOUT.size:,} numbers, {4 * LAYOUT.size:,} bytes; {given.turns} turns\n")
    print("| codec | encode MB/s | decode MB/s | bytes | times fewer | squared error | its bound | unbiased |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    slow = []
    for text in CHAINS:
        speeds, (size, error), codec = times[text].speeds(), found[text], codecs[text]
        ratio, share, bound = 4 * LAYOUT.size / size, error / energy, codec.bound(vector) / energy
        row = (f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", f"{size:,}", f"{ratio:.1f}", f"{share:.2g}", f"{bound:.2g}")
        print(f"| `{text.replace('|', chr(92) + '|')}` | {' | '.join(row)} | {'yes' if codec.unbiased else 'no'} |")
        slow += [text] if min(speeds) < TARGET else []
    print(f"\nBelow {TARGET:g} MB/s: {', '.join(slow) or 'none'}.")


if __name__ == "__main__":
    main()
