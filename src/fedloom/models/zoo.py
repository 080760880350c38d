"""A small zoo, each model as the Keras configuration that it is built, saved and loaded from.

- ``2nn``: two hidden layers of 200 units (McMahan et al. 2017, section 3: "2NN", 199,210 parameters on MNIST)
- ``mlp``: hidden layers of 512 and 256 units with BatchNorm and dropout
- ``cnn``: two 5x5 convolutions of 32 and 64 channels, 512 units (McMahan et al. 2017: "CNN", 1,663,370 parameters)
- ``cnn-small``: two 3x3 convolutions of 32 and 64 channels, 100 units (333,526 parameters on MNIST)
- ``lenet``: two 5x5 convolutions of 6 and 16 channels, 120 and 84 units (after LeCun et al. 1998, with ReLU and max
  pooling, as the benchmark of Li et al. 2022 has it)
- ``cnn-deep``: four 3x3 convolutions with dropout, 256 units
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedloom.errors import ModelError, unknown

TITLES = {
    "2nn": "two hidden layers of 200 units (McMahan et al. 2017)",
    "mlp": "hidden layers of 512 and 256 units with BatchNorm and dropout",
    "cnn": "two 5x5 convolutions, 512 units (McMahan et al. 2017)",
    "cnn-small": "two 3x3 convolutions, 100 units",
    "lenet": "LeNet with ReLU and max pooling (Li et al. 2022)",
    "cnn-deep": "four 3x3 convolutions with dropout, 256 units",
}

Layer = tuple[str, dict[str, Any]]


def config(
    name: str,
    input_shape: Sequence[int],
    n_classes: int,
    standardise: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Build the Keras configuration of a zoo model.

    Args:
        name: One of ``TITLES``.
        input_shape: The shape of one sample: ``(features,)``, ``(height, width)`` or ``(height, width, channels)``.
        n_classes: The number of classes, at least 2.
        standardise: Mean and variance, each of ``input_shape``, for a Normalization layer in front (feature tables,
            so that the scaling travels with the model).

    Returns:
        What a ``.keras`` file holds as ``config.json``.

    Raises:
        UsageError: An unknown name.
        ModelError: The model does not fit the input shape.

    Example:
        >>> [layer["class_name"] for layer in config("2nn", (28, 28), 10)["config"]["layers"]]
        ['InputLayer', 'Flatten', 'Dense', 'Dense', 'Dense']
    """
    if name not in TITLES:
        raise unknown("model", name, TITLES)
    shape = tuple(int(n) for n in input_shape)
    convolutional = name in {"cnn", "cnn-small", "lenet", "cnn-deep"}
    if convolutional:
        if len(shape) == 2:
            shape = (*shape, 1)
        if len(shape) != 3 or min(shape[:2]) < 8:
            raise ModelError(
                f"model '{name}' needs images of at least 8 x 8, the data's samples have the shape {tuple(input_shape)}: "
                "choose '2nn' or 'mlp'"
            )
    layers = list(_BODIES[name](shape) if convolutional else _BODIES[name]((len(shape),)))
    if standardise is not None:
        mean, variance = (np.asarray(a, dtype=np.float64).reshape(shape).tolist() for a in standardise)
        layers.insert(
            0, ("Normalization", {"axis": list(range(1, len(shape) + 1)), "mean": mean, "variance": variance})
        )
    layers.append(("Dense", {"units": int(n_classes), "activation": "softmax"}))
    return _sequential(name, shape, layers)


def _dense(units: int) -> Layer:
    return "Dense", {"units": units, "activation": "relu"}


def _conv(filters: int, size: int, padding: str = "same") -> Layer:
    return "Conv2D", {"filters": filters, "kernel_size": [size, size], "padding": padding, "activation": "relu"}


def _pool() -> Layer:
    return "MaxPooling2D", {"pool_size": [2, 2], "strides": [2, 2]}


def _dropout(rate: float) -> Layer:
    return "Dropout", {"rate": rate}


def _normalised(units: int) -> list[Layer]:
    # Clients take few steps: with Keras' momentum of 0.99 the running statistics would still be those of the start.
    normalised = ("BatchNormalization", {"momentum": 0.9})
    return [("Dense", {"units": units}), normalised, ("Activation", {"activation": "relu"}), _dropout(0.3)]


def _flatten(shape: tuple[int, ...]) -> list[Layer]:
    return [("Flatten", {})] if shape != (1,) else []


def _lenet(shape: tuple[int, ...]) -> list[Layer]:
    padding = "valid" if min(shape[:2]) >= 20 else "same"
    convolutions = [_conv(6, 5, padding), _pool(), _conv(16, 5, padding), _pool()]
    return [*convolutions, ("Flatten", {}), _dense(120), _dense(84)]


_BODIES: dict[str, Callable[[tuple[int, ...]], list[Layer]]] = {
    "2nn": lambda rank: [*_flatten(rank), _dense(200), _dense(200)],
    "mlp": lambda rank: [*_flatten(rank), *_normalised(512), *_normalised(256)],
    "cnn": lambda _: [_conv(32, 5), _pool(), _conv(64, 5), _pool(), ("Flatten", {}), _dense(512)],
    "cnn-small": lambda _: [_conv(32, 3), _pool(), _conv(64, 3), _pool(), ("Flatten", {}), _dense(100)],
    "lenet": _lenet,
    "cnn-deep": lambda _: [
        *(_conv(32, 3), _conv(32, 3), _pool(), _dropout(0.25)),
        *(_conv(64, 3), _conv(64, 3), _pool(), _dropout(0.25)),
        *(("Flatten", {}), _dense(256), _dropout(0.5)),
    ],
}


def _sequential(name: str, shape: tuple[int, ...], layers: list[Layer]) -> dict[str, Any]:
    rows: list[Layer] = [("InputLayer", {"batch_shape": [None, *shape]}), *layers]
    seen: dict[str, int] = {}
    described = []
    for class_name, options in rows:
        base = class_name.lower()
        count = seen.get(base, 0)
        seen[base] = count + 1
        named = {"name": f"{base}_{count}" if count else base, "dtype": "float32", **options}
        described.append({"module": "keras.layers", "class_name": class_name, "config": named, "registered_name": None})
    outer = {"name": name.replace("-", "_"), "trainable": True, "dtype": "float32", "layers": described}
    return {"module": "keras", "class_name": "Sequential", "config": outer, "registered_name": None}
