"""Sets of members that were trained apart, from different random starts, as teams do it: seven architectures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fedloom import partition, rng
from fedloom.data import load_pair
from fedloom.data.dataset import Dataset
from fedloom.models import io, zoo
from fedloom.models.keras_backend import import_keras
from fedloom.models.model import Model
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard

MEMBERS = 6
SHAPE = (28, 28, 1)


def _conv_bn(keras: Any, filters: int, l2: float = 0.0, strides: int = 1) -> list[Any]:
    layers = keras.layers
    penalty = keras.regularizers.L2(l2) if l2 else None
    convolution = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, kernel_regularizer=penalty)
    return [convolution, layers.BatchNormalization(), layers.ReLU()]


def cnn_bn_l2(keras: Any) -> Any:
    """Build three convolutions with BatchNorm and L2 penalties, Flatten, 128 units with BatchNorm."""
    layers = keras.layers
    penalty = keras.regularizers.L2(1e-4)
    body = [*_conv_bn(keras, 16, 1e-4), layers.MaxPooling2D(), *_conv_bn(keras, 32, 1e-4), layers.MaxPooling2D()]
    body += [*_conv_bn(keras, 64, 1e-4), layers.Flatten(), layers.Dense(128, kernel_regularizer=penalty)]
    head = [layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.3), layers.Dense(10, activation="softmax")]
    return keras.Sequential([layers.Input(SHAPE), *body, *head])


def cnn_bn_gap(keras: Any) -> Any:
    """Build four convolutions with BatchNorm, and global average pooling."""
    layers = keras.layers
    body = [
        *_conv_bn(keras, 32),
        *_conv_bn(keras, 32, strides=2),
        *_conv_bn(keras, 64),
        *_conv_bn(keras, 64, strides=2),
    ]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax")]
    return keras.Sequential([layers.Input(SHAPE), *body, *head])


def resnet(keras: Any) -> Any:
    """Build a residual network: a stem, three blocks of two convolutions (16, 32, 64 channels), global pooling."""
    layers = keras.layers

    def block(x: Any, filters: int, strides: int) -> Any:
        y = x
        for layer in _conv_bn(keras, filters, strides=strides):
            y = layer(y)
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        if strides > 1:
            x = layers.Conv2D(filters, 1, strides=strides, use_bias=False)(x)
            x = layers.BatchNormalization()(x)
        return layers.ReLU()(layers.Add()([x, y]))

    inputs = layers.Input(SHAPE)
    x = inputs
    for layer in _conv_bn(keras, 16):
        x = layer(x)
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        x = block(x, filters, strides)
    outputs = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


BUILT: dict[str, Callable[[Any], Any]] = {"cnn-bn-l2": cnn_bn_l2, "cnn-bn-gap": cnn_bn_gap, "resnet": resnet}
PLAIN = ("2nn", "cnn-small", "cnn-deep")
NORMALISED = ("mlp", *BUILT)
ARCHITECTURES = (*PLAIN, *NORMALISED)


def build(architecture: str) -> Model:
    """Build one of the seven architectures, its weights still undefined; inputs from 0 to 1."""
    if architecture in BUILT:
        model = BUILT[architecture](import_keras())
        config = json.loads(model.to_json())
    else:
        config = zoo.config(architecture, (28, 28) if architecture in ("2nn", "mlp") else SHAPE, 10)
    made = io.from_config(config)
    made.input_high = 1.0
    return made


def members(
    architecture: str,
    dataset: str,
    seed: int,
    folder: Path,
    data_dir: str | None = None,
    config: LocalConfig | None = None,
) -> list[Path]:
    """Train six members on stratified disjoint parts, each from its own random start; return their files.

    A file that is there already is kept.
    """
    config = config or LocalConfig(epochs=5, batch_size=64, optimizer="adam", lr=1e-3)
    where = folder / dataset / architecture / f"seed{seed}"
    paths = [where / f"member_{i + 1}.keras" for i in range(MEMBERS)]
    if all(path.is_file() for path in paths):
        return paths
    where.mkdir(parents=True, exist_ok=True)
    train, _ = load_pair(dataset, data_dir)
    parts = partition.partition("stratified", train.y, MEMBERS, seed)
    for i, (path, part) in enumerate(zip(paths, parts, strict=True)):
        if not path.is_file():
            train_one(build(architecture), train.take(part), config, rng.derive(seed, i), path)
    return paths


def train_one(model: Model, data: Dataset, config: LocalConfig, seed: int, path: Path) -> None:
    """Train one member from a random start of its own and write its file."""
    io.initialize(model, seed, "start")
    trainer = Trainer(model, model.vector(), Shard.of(data, model, path.stem, torch.device("cpu")), config, seed=seed)
    for _ in range(config.epochs):
        said = trainer.run_epoch()
    io.save(model.load(trainer.vector()), path)
    print(f"{path}: training accuracy {said['accuracy']:.4f}", flush=True)
