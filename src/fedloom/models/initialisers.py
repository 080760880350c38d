"""Keras' weight initialisers, drawn from a named stream of chance.

Formulas: Glorot and Bengio 2010; He et al. 2015; LeCun et al. 1998; Saxe et al. 2014 (orthogonal); defaults and the
fans of convolution kernels as in the Keras 3 API reference. A ``seed`` in the configuration is not used: ours decides.
"""

from __future__ import annotations

import math

import numpy as np

from fedloom.errors import ModelError
from fedloom.models.activations import Config

_ALIASES = {
    "zero": "zeros",
    "one": "ones",
    "normal": "random_normal",
    "uniform": "random_uniform",
    "orthogonal_initializer": "orthogonal",
    "identity_initializer": "identity",
}
# name -> (scale, mode, distribution) of VarianceScaling
_SCALINGS = {
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "glorot_normal": (1.0, "fan_avg", "truncated_normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "he_normal": (2.0, "fan_in", "truncated_normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),
}
_TRUNCATED_DEVIATION = 0.87962566103423978  # of a standard normal cut at two deviations


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return Keras' (fan in, fan out) of a weight in Keras' shape.

    Example:
        >>> fans((3, 3, 16, 32))
        (144, 288)
    """
    if len(shape) == 0:
        return 1, 1
    if len(shape) == 1:
        return shape[0], shape[0]
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def draw(initializer: Config, shape: tuple[int, ...], chance: np.random.Generator, layer: str) -> np.ndarray:
    """Draw one weight.

    Args:
        initializer: The canonical initialiser: its ``name`` and Keras' arguments.
        shape: The weight's shape in Keras.
        chance: The stream to draw from.
        layer: The layer's path, for the error.

    Returns:
        A float32 array of ``shape``.

    Raises:
        ModelError: An initialiser that is not one of Keras' own, or that does not fit the shape.
    """
    name = _ALIASES.get(initializer["name"], initializer["name"])
    if name in _SCALINGS:
        return _scaled(*_SCALINGS[name], shape, chance)
    if name == "variance_scaling":
        scale, mode = initializer.get("scale", 1.0), initializer.get("mode", "fan_in")
        return _scaled(scale, mode, initializer.get("distribution", "truncated_normal"), shape, chance)
    if name in ("zeros", "ones"):
        return np.full(shape, float(name == "ones"), np.float32)
    if name == "constant" and np.ndim(initializer.get("value", 0.0)) == 0:
        return np.full(shape, initializer.get("value", 0.0), np.float32)
    if name == "random_uniform":
        low, high = initializer.get("minval", -0.05), initializer.get("maxval", 0.05)
        return np.asarray(chance.uniform(low, high, shape), np.float32)
    if name in ("random_normal", "truncated_normal"):
        drawn = _truncated(shape, chance) if name == "truncated_normal" else chance.standard_normal(shape)
        return np.asarray(initializer.get("mean", 0.0) + initializer.get("stddev", 0.05) * drawn, np.float32)
    if name == "orthogonal" and len(shape) >= 2:
        return float(initializer.get("gain", 1.0)) * _orthogonal(shape, chance)
    if name == "identity" and len(shape) == 2:
        return np.asarray(initializer.get("gain", 1.0) * np.eye(*shape), np.float32)
    raise ModelError(
        f"layer '{layer}': the initialiser '{name}' cannot draw a weight of shape {shape}: choose one of Keras' own",
        layer=layer,
    )


def _scaled(
    scale: float, mode: str, distribution: str, shape: tuple[int, ...], chance: np.random.Generator
) -> np.ndarray:
    fan_in, fan_out = fans(shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out}.get(mode, (fan_in + fan_out) / 2)
    variance = scale / max(1.0, fan)
    if distribution == "uniform":
        limit = math.sqrt(3.0 * variance)
        return chance.uniform(-limit, limit, shape).astype(np.float32)
    if distribution == "untruncated_normal":
        return (math.sqrt(variance) * chance.standard_normal(shape)).astype(np.float32)
    return (math.sqrt(variance) / _TRUNCATED_DEVIATION * _truncated(shape, chance)).astype(np.float32)


def _truncated(shape: tuple[int, ...], chance: np.random.Generator) -> np.ndarray:
    """A standard normal cut at two deviations: what falls outside is drawn again."""
    drawn = chance.standard_normal(shape)
    outside = np.abs(drawn) > 2.0
    while outside.any():
        drawn[outside] = chance.standard_normal(int(outside.sum()))
        outside = np.abs(drawn) > 2.0
    return drawn


def _orthogonal(shape: tuple[int, ...], chance: np.random.Generator) -> np.ndarray:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    drawn = chance.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q = q * np.sign(np.diag(r))
    return (q if rows >= columns else q.T).reshape(shape).astype(np.float32)
