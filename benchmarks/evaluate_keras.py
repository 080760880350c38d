"""How much faster than Keras' ``model.predict`` is a lowered Keras CNN, on 10,000 MNIST images, with equal predictions?

Keras 3 on its PyTorch backend writes the ``.keras`` files; Keras and fedloom load the same file. Keras runs at its best
batch sizes: 32 to 2048 are tried first, the best two then run in turn with fedloom, and the better of the two counts in
every repeat. Loading is not counted, the conversion of 8-bit images to 0-1 is (on fedloom's side: Keras gets floats).
``elapsed`` is wall-clock time; ``processor`` is processor time, which other programs on the machine disturb less.

    python benchmarks/evaluate_keras.py

Target: at least 2.5 times faster. Latest result: benchmarks/evaluate_keras.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import machine, median_ratio

from fedloom.data import load_pair
from fedloom.models import io
from fedloom.models.keras_backend import import_keras
from fedloom.training.evaluate import predict
from fedloom.training.shard import Shard

SIZES = (32, 64, 128, 256, 512, 1024, 2048)


def small(layers: Any) -> list[Any]:
    body = []
    for filters in (32, 64):
        body += [layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
    return [*body, layers.Flatten(), layers.Dense(100, activation="relu")]


def deep(layers: Any) -> list[Any]:
    body = []
    for filters in (32, 64):
        for _ in range(2):
            convolution = layers.Conv2D(filters, 3, padding="same", activation="relu")
            body += [convolution, layers.BatchNormalization()]
        body += [layers.MaxPooling2D(), layers.Dropout(0.25)]
    return [*body, layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dropout(0.5)]


def strided(layers: Any) -> list[Any]:
    body = []
    for filters in (32, 64):
        for size, options in ((3, {}), (3, {}), (5, {"strides": 2, "padding": "same"})):
            body += [layers.Conv2D(filters, size, activation="relu", **options), layers.BatchNormalization()]
        body.append(layers.Dropout(0.4))
    return [*body, layers.Flatten(), layers.Dense(128, activation="relu"), layers.BatchNormalization()]


MODELS: dict[str, Callable[[Any], list[Any]]] = {"small": small, "deep": deep, "strided": strided}
TITLES = {
    "small": "two 3x3 convolutions, max pooling, 100 units",
    "deep": "four 3x3 convolutions with BatchNormalization, max pooling, 256 units",
    "strided": "six convolutions (3x3, 5x5 in steps of 2) with BatchNormalization, 128 units",
}


def write(name: str, path: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Write a Keras file, trained a little so that the predictions are no ties."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    body = MODELS[name](keras.layers)
    model = keras.Sequential([keras.Input(x.shape[1:]), *body, keras.layers.Dense(10, activation="softmax")])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=1, verbose=0)
    model.save(path)


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, path: Path, test: Any, x: np.ndarray, repeats: int) -> str:
    theirs, ours = import_keras().saving.load_model(path), io.load(path)
    shard = Shard.of(test, ours)
    expected, found = theirs.predict(x, batch_size=256, verbose=0), predict(ours, shard).softmax(1).numpy()
    different = int((expected.argmax(1) != found.argmax(1)).sum())
    largest = float(np.abs(expected - found).max())

    def keras_at(size: int) -> tuple[float, float]:
        return timed(lambda: theirs.predict(x, batch_size=size, verbose=0))

    best = sorted(SIZES, key=lambda size: keras_at(size)[0])[:2]
    keras_times, our_times = [], []
    for _ in range(repeats):
        runs = [keras_at(size) for size in best]
        keras_times.append((min(r[0] for r in runs), min(r[1] for r in runs)))
        our_times.append(timed(lambda: predict(ours, shard)))
    cells = []
    for theirs_, ours_ in zip(zip(*keras_times, strict=True), zip(*our_times, strict=True), strict=True):
        ratio = median_ratio(theirs_, ours_)
        cells.append(f"{statistics.median(theirs_):.2f} s / {statistics.median(ours_):.2f} s = **{ratio:.1f}**")
    batches = " or ".join(map(str, best))
    return f"| {name} | {torch.get_num_threads()} | {batches} | {' | '.join(cells)} | {different} | {largest:.0e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    keras = import_keras()
    train, test = load_pair("mnist", given.data_dir)
    x = (test.x.astype(np.float32) / 255).reshape(-1, 28, 28, 1)
    few = (train.x[:3200].astype(np.float32) / 255).reshape(-1, 28, 28, 1)
    print(machine(f"Keras {keras.__version__}"))
    print(
        "| model | threads | Keras' best batch | elapsed: Keras / fedloom | processor | predictions that differ | Δp |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            path = Path(folder) / f"{name}.keras"
            torch.set_num_threads(1)
            write(name, path, few, train.y[:3200])
            for threads in given.threads:
                torch.set_num_threads(threads)
                print(compare(name, path, test, x, given.repeats), flush=True)


if __name__ == "__main__":
    main()
