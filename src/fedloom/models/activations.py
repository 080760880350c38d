"""Keras' activation functions, as layers and as arguments, in one canonical form.

An activation is a small dictionary ``{"name": "leaky_relu", "negative_slope": 0.2}``, so that an argument
``activation="relu"``, ``Activation("relu")`` and ``ReLU()`` are the same thing inside. Formulas: the Keras 3 API
reference, keras.activations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedloom.errors import ModelError

Config = dict[str, Any]
LINEAR: Config = {"name": "linear"}


def relu(x: Tensor, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0) -> Tensor:
    """Return x above ``threshold``, ``negative_slope * (x - threshold)`` below it, at most ``max_value``."""
    if threshold == 0.0 and max_value is None:
        return functional.leaky_relu(x, negative_slope) if negative_slope else torch.relu(x)
    y = torch.where(x > threshold, x, negative_slope * (x - threshold))
    return y if max_value is None else y.clamp(max=max_value)


def hard_sigmoid_keras2(x: Tensor) -> Tensor:
    """Keras 2's hard sigmoid, ``clip(0.2 x + 0.5, 0, 1)``; Keras 3 changed it to ``relu6(x + 3) / 6``."""
    return (0.2 * x + 0.5).clamp(0.0, 1.0)


def squareplus(x: Tensor, b: float = 4.0) -> Tensor:
    """``(x + sqrt(x^2 + b)) / 2`` (Barron 2021)."""
    return (x + torch.sqrt(x * x + b)) / 2


def linear(x: Tensor) -> Tensor:
    """Return the input as it is."""
    return x


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax along ``axis``."""
    return torch.softmax(x, axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Logarithm of the softmax along ``axis``."""
    return torch.log_softmax(x, axis)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "relu": relu,
    "relu6": functional.relu6,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": torch.selu,
    "celu": functional.celu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": functional.hardsigmoid,
    "hard_sigmoid_keras2": hard_sigmoid_keras2,
    "hard_silu": functional.hardswish,
    "hard_tanh": functional.hardtanh,
    "hard_shrink": functional.hardshrink,
    "soft_shrink": functional.softshrink,
    "tanh_shrink": functional.tanhshrink,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "squareplus": squareplus,
    "exponential": torch.exp,
    "log_sigmoid": functional.logsigmoid,
    "softmax": softmax,
    "log_softmax": log_softmax,
}
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu", "softmax_v2": "softmax", "swish_v2": "silu"}
# An activation named by a string: Keras' defaults of its arguments.
_STRING_DEFAULTS: dict[str, Config] = {"leaky_relu": {"negative_slope": 0.2}}
# Those that look along an axis need Keras' order of the axes; all the others work element by element.
ALONG_AXIS = frozenset({"softmax", "log_softmax"})


def function(activation: Config) -> Callable[[Tensor], Tensor]:
    """Return the function of a canonical activation."""
    arguments = {key: value for key, value in activation.items() if key != "name"}
    chosen = FUNCTIONS[activation["name"]]
    if activation == {"name": "relu"}:
        return torch.relu
    return partial(chosen, **arguments) if arguments else chosen


def from_argument(value: object, layer: str, keras2: bool) -> Config:
    """Read the ``activation`` argument of a Keras layer.

    Args:
        value: None, a name, or the configuration of an activation layer.
        layer: The layer's name, for the error.
        keras2: Whether the file speaks the dialect of Keras 2.

    Raises:
        ModelError: The activation is not one of Keras' own.
    """
    if value is None:
        return dict(LINEAR)
    if isinstance(value, str):
        name = _ALIASES.get(value.lower(), value.lower())
        if name == "hard_sigmoid" and keras2:
            name = "hard_sigmoid_keras2"
        if name in FUNCTIONS:
            return {"name": name, **_STRING_DEFAULTS.get(name, {})}
    elif isinstance(value, dict):
        inner = value.get("config")
        if value.get("class_name") in LAYERS and isinstance(inner, dict):
            return from_layer(value["class_name"], inner, layer, keras2)
        if value.get("module") in ("builtins", "keras.activations") and isinstance(inner, str):
            return from_argument(inner, layer, keras2)
        value = inner if isinstance(inner, str) else value.get("class_name")
    raise ModelError(
        f"layer '{layer}' has the activation '{value}', which cannot be lowered: "
        f"use one of Keras' own ({', '.join(FUNCTIONS)})",
        layer=layer,
    )


LAYERS = ("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax")


def from_layer(op: str, config: Config, layer: str, keras2: bool) -> Config:
    """Read an activation layer, one of ``LAYERS``, into the canonical form.

    Raises:
        ModelError: The layer's arguments cannot be lowered.
    """
    if op == "Activation":
        return from_argument(config.get("activation"), layer, keras2)
    if op == "LeakyReLU":
        slope = config.get("negative_slope", config.get("alpha", 0.3))
        return {"name": "leaky_relu", "negative_slope": _number(slope, layer)}
    if op == "ELU":
        return {"name": "elu", "alpha": _number(config.get("alpha", 1.0), layer)}
    if op == "Softmax":
        axis = config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
        if not isinstance(axis, int):
            raise ModelError(
                f"layer '{layer}' (Softmax) has axis {axis}: only a single axis can be lowered", layer=layer
            )
        return {"name": "softmax"} if axis == -1 else {"name": "softmax", "axis": axis}
    top = config.get("max_value")
    given = {
        "max_value": None if top is None else _number(top, layer),
        "negative_slope": _number(config.get("negative_slope") or 0.0, layer),
        "threshold": _number(config.get("threshold") or 0.0, layer),
    }
    if given == {"max_value": 6.0, "negative_slope": 0.0, "threshold": 0.0}:
        return {"name": "relu6"}
    return {
        "name": "relu",
        **{key: value for key, value in given.items() if value or (key == "max_value" and top is not None)},
    }


def _number(value: object, layer: str) -> float:
    if isinstance(value, dict):  # Keras 2 wrote some numbers as serialised 0-d arrays
        value = (value.get("config") or {}).get("value") if "config" in value else value.get("value")
    if isinstance(value, int | float):
        return float(value)
    raise ModelError(f"layer '{layer}' has {value!r} where a number is expected", layer=layer)
