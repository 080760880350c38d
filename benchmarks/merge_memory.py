"""Does the peak memory of ``fedloom merge`` with ``fedavg`` grow with the number of files?

Members of some 10 million parameters (40 MB each) are written to a temporary folder; each merge runs in a process of
its own, whose peak resident memory is read from the operating system. Linux and macOS.

    python benchmarks/merge_memory.py

Target: no growth from 2 to 32 files. Latest result: benchmarks/merge_memory.md
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _common import machine

from fedloom.models import io

# 784 -> 3072 -> 2048 -> 512 -> 10: 9,759,242 parameters.
WIDTHS = (3072, 2048, 512)
# ru_maxrss is in KiB on Linux and in bytes on macOS.
UNIT = 1 if sys.platform == "darwin" else 1024


def config() -> dict[str, object]:
    layers: list[dict[str, object]] = [
        {"class_name": "InputLayer", "config": {"name": "input", "batch_shape": [None, 784], "dtype": "float32"}}
    ]
    for i, units in enumerate((*WIDTHS, 10)):
        activation = "softmax" if units == 10 else "relu"
        named = {"name": f"dense_{i}", "units": units, "activation": activation, "dtype": "float32"}
        layers.append({"class_name": "Dense", "config": named})
    return {"class_name": "Sequential", "config": {"name": "big", "layers": layers}}


def make(folder: Path, n: int, suffix: str) -> list[Path]:
    """Write n files of one architecture that share most of their weights, as trained members do."""
    model = io.from_config(config())
    io.initialize(model, 0)
    start = model.vector()
    paths = []
    for i in range(n):
        noise = torch.randn(len(start), generator=torch.Generator().manual_seed(i))
        path = folder / f"member_{i:02d}{suffix}"
        io.save(model.load(start + 1e-3 * noise), path)
        paths.append(path)
    print(f"{suffix}: {len(start):,} parameters, {paths[0].stat().st_size / 1e6:.1f} MB each", flush=True)
    return paths


def merge(paths: list[Path], out: Path, method: str) -> tuple[float, float]:
    """Merge in a new process: its peak resident memory in MB, and seconds."""
    command = [sys.executable, "-m", "fedloom", "merge", *map(str, paths), "--method", method, "--out", str(out)]
    # A second process in between: RUSAGE_CHILDREN is the maximum over all children so far.
    watch = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    watch += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", watch, *command], check=True, capture_output=True, text=True)
    return int(done.stdout) * UNIT / 1e6, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--suffixes", nargs="+", default=[".keras", ".safetensors"])
    parser.add_argument("--method", default="fedavg")
    given = parser.parse_args()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / 1e6
    print(f"{machine()}\nfedloom loaded, nothing done: {own:.0f} MB")
    for suffix in given.suffixes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            paths = make(folder, max(given.files), suffix)
            print("| files | peak memory | seconds |\n| --- | --- | --- |")
            for n in given.files:
                peak, seconds = merge(paths[:n], folder / f"global{suffix}", given.method)
                print(f"| {n} | {peak:.0f} MB | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
