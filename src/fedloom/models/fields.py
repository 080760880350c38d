"""What is read from a Keras layer's configuration: one literal table, layer class -> field -> (kind, default).

A layer that is not in ``FIELDS`` cannot be lowered. Reading gives a canonical configuration: numbers as numbers, sizes
as tuples, activations, initialisers and regularisers as small dictionaries, whatever dialect the file speaks. Nothing
in a configuration is ever executed. Defaults: the Keras 3 API reference (those of Keras 2 are the same).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from fedloom.errors import ModelError
from fedloom.models import activations
from fedloom.models.activations import Config

REQUIRED: Any = ...


class _Misfit(Exception):  # noqa: N818 - never leaves this file
    """A value that a field cannot take; the message says what is expected."""


Kind = Callable[[Any, str], Any]


def _count(value: Any, _op: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise _Misfit("a positive whole number")
    return int(value)


def _whole(value: Any, _op: str) -> int:
    if isinstance(value, list | tuple) and len(value) == 1:  # Keras 2.14 writes BatchNormalization's axis as [3]
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Misfit("a whole number")
    return value


def _wholes(value: Any, op: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    items = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(_whole(item, op) for item in items)


def _number(value: Any, _op: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Misfit("a number")
    return float(value)


def _flag(value: Any, _op: str) -> bool:
    if not isinstance(value, bool | int):
        raise _Misfit("true or false")
    return bool(value)


def _size(value: Any, op: str) -> tuple[int, ...]:
    rank = _rank(op)
    items = list(value) if isinstance(value, list | tuple) else [value] * rank
    if len(items) != rank:
        raise _Misfit(f"{rank} positive whole numbers")
    return tuple(_count(item, op) for item in items)


def _size_or_none(value: Any, op: str) -> tuple[int, ...] | None:
    return None if value is None else _size(value, op)


def _word(*words: str) -> Kind:
    def read(value: Any, _op: str) -> str:
        text = value.lower() if isinstance(value, str) else value
        if text not in words:
            raise _Misfit(" or ".join(words))
        return str(text)

    return read


_FORMATS = _word("channels_last", "channels_first")


def _data_format(value: Any, op: str) -> str:
    return str(_FORMATS("channels_last" if value is None else value, op))


def _margins(value: Any, op: str) -> tuple[tuple[int, int], ...]:
    rank = _rank(op)
    items = list(value) if isinstance(value, list | tuple) else [value] * rank
    if rank == 1 and len(items) == 2 and all(isinstance(item, int) for item in items):
        items = [items]
    if len(items) != rank:
        raise _Misfit(f"{rank} pairs of whole numbers")
    pairs = [tuple(item) if isinstance(item, list | tuple) else (item, item) for item in items]
    if any(len(pair) != 2 or not all(isinstance(n, int) and n >= 0 for n in pair) for pair in pairs):
        raise _Misfit(f"{rank} pairs of whole numbers")
    return tuple((int(pair[0]), int(pair[1])) for pair in pairs)


def _dims(value: Any, _op: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(n, int) for n in value):
        raise _Misfit("a list of whole numbers")
    return tuple(value)


def _open_shape(value: Any, _op: str) -> tuple[int | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(n is None or isinstance(n, int) for n in value):
        raise _Misfit("a list of whole numbers")
    return tuple(value)


def _values(value: Any, _op: str) -> Any:
    """A number, or nested lists of numbers; also as Keras 3 serialises a NumPy array or a tensor."""
    while isinstance(value, dict):
        value = value["config"] if "config" in value else value.get("value")
    if value is None or isinstance(value, int | float):
        return value
    try:
        return np.asarray(value, dtype=np.float64).tolist()
    except (TypeError, ValueError):
        raise _Misfit("a number or a list of numbers") from None


def _named(value: Any, _op: str) -> Config | None:
    """An initialiser or a regulariser: None, a name, or ``{"class_name": ..., "config": {...}}``."""
    if value is None:
        return None
    if isinstance(value, str):
        return {"name": _snake(value)}
    if isinstance(value, dict) and isinstance(value.get("class_name"), str):
        config = value.get("config")
        return {**(config if isinstance(config, dict) else {}), "name": _snake(value["class_name"])}
    raise _Misfit("a name or a configuration")


def _only(*accepted: Any) -> Kind:
    """A field whose unusual values change the arithmetic in a way that is not lowered."""

    def read(value: Any, _op: str) -> Any:
        if value not in accepted:
            raise _Misfit(" or ".join(str(a) for a in accepted))
        return value

    return read


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.split(">")[-1].split(".")[-1]).lower()


def _rank(op: str) -> int:
    return 1 if op.endswith("1D") else 2


Fields = dict[str, tuple[Kind, Any]]


def _weights(*roles: str) -> Fields:
    """The initialiser and the regulariser of each weight; only kernels differ from zeros by default."""
    defaults = {"bias": "zeros", "beta": "zeros", "gamma": "ones", "moving_mean": "zeros", "moving_variance": "ones"}
    defaults |= {"alpha": "zeros", "embeddings": "uniform"}
    start: Fields = {f"{r}_initializer": (_named, defaults.get(r, "glorot_uniform")) for r in roles}
    return start | {f"{r}_regularizer": (_named, None) for r in roles}


_ARRAYS: Fields = {
    "use_bias": (_flag, True),
    "lora_rank": (_only(None), None),
    "quantization_config": (_only(None), None),
}
_CONV: Fields = {
    "kernel_size": (_size, REQUIRED),
    "strides": (_size, 1),
    "padding": (_word("valid", "same"), "valid"),
    "data_format": (_data_format, None),
    "dilation_rate": (_size, 1),
}
_CAUSAL: Fields = {"padding": (_word("valid", "same", "causal"), "valid")}
_FULL: Fields = {"filters": (_count, REQUIRED), "groups": (_count, 1)}
_DEPTH: Fields = {"depth_multiplier": (_count, 1)}
_POOL: Fields = {
    "pool_size": (_size, 2),
    "strides": (_size_or_none, None),
    "padding": (_word("valid", "same"), "valid"),
    "data_format": (_data_format, None),
}
_GLOBAL: Fields = {"data_format": (_data_format, None), "keepdims": (_flag, False)}
_FORMAT: Fields = {"data_format": (_data_format, None)}
_NORM: Fields = {"epsilon": (_number, 1e-3), "center": (_flag, True), "scale": (_flag, True)}
_FULL_CONV: Fields = {**_FULL, **_CONV, **_ARRAYS, **_weights("kernel", "bias")}
_DEPTHWISE: Fields = {**_DEPTH, **_CONV, **_ARRAYS, **_weights("depthwise", "bias")}
_SEPARABLE: Fields = {
    **{"filters": (_count, REQUIRED)},
    **{**_DEPTH, **_CONV, **_ARRAYS, **_weights("depthwise", "pointwise", "bias")},
}
_RATE: Fields = {"rate": (_number, 0.0)}

FIELDS: dict[str, Fields] = {
    "Dense": {"units": (_count, REQUIRED), **_ARRAYS, **_weights("kernel", "bias")},
    "Conv1D": {**_FULL_CONV, **_CAUSAL},
    "Conv2D": _FULL_CONV,
    "DepthwiseConv1D": _DEPTHWISE,
    "DepthwiseConv2D": _DEPTHWISE,
    "SeparableConv1D": {**_SEPARABLE, **_CAUSAL},
    "SeparableConv2D": _SEPARABLE,
    "BatchNormalization": {
        "axis": (_whole, -1),
        "momentum": (_number, 0.99),
        **_NORM,
        "renorm": (_only(None, False), False),
        "virtual_batch_size": (_only(None), None),
        **_weights("gamma", "beta", "moving_mean", "moving_variance"),
    },
    "LayerNormalization": {
        "axis": (_wholes, -1),
        **_NORM,
        "rms_scaling": (_only(None, False), False),
        **_weights("gamma", "beta"),
    },
    "Normalization": {
        "axis": (_wholes, -1),
        "mean": (_values, None),
        "variance": (_values, None),
        "invert": (_flag, False),
    },
    "Rescaling": {"scale": (_values, REQUIRED), "offset": (_values, 0.0)},
    "Embedding": {
        "input_dim": (_count, REQUIRED),
        "output_dim": (_count, REQUIRED),
        "mask_zero": (_only(False, None), False),
        "lora_rank": (_only(None), None),
        "quantization_config": (_only(None), None),
        **_weights("embeddings"),
    },
    "PReLU": {"shared_axes": (_wholes, None), **_weights("alpha")},
    **{op: {} for op in activations.LAYERS},
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"), _POOL),
    **{f"Global{kind}Pooling{rank}D": _GLOBAL for kind in ("Max", "Average") for rank in (1, 2)},
    "Flatten": _FORMAT,
    "Reshape": {"target_shape": (_dims, REQUIRED)},
    "Permute": {"dims": (_dims, REQUIRED)},
    "ZeroPadding1D": {"padding": (_margins, 1), **_FORMAT},
    "ZeroPadding2D": {"padding": (_margins, 1), **_FORMAT},
    "Cropping1D": {"cropping": (_margins, 1)},
    "Cropping2D": {"cropping": (_margins, 0), **_FORMAT},
    "UpSampling1D": {"size": (_size, 2)},
    "UpSampling2D": {
        "size": (_size, 2),
        "interpolation": (_word("nearest", "bilinear"), "nearest"),
        **_FORMAT,
    },
    **{op: {} for op in ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")},
    "Concatenate": {"axis": (_whole, -1)},
    "Dropout": {**_RATE, "noise_shape": (_open_shape, None)},
    "SpatialDropout1D": _RATE,
    "SpatialDropout2D": {**_RATE, **_FORMAT},
    "GaussianDropout": _RATE,
    "AlphaDropout": {**_RATE, "noise_shape": (_only(None), None)},
    "GaussianNoise": {"stddev": (_number, 0.0)},
    "ActivityRegularization": {},
    "Identity": {},
    **{f"Random{what}": {} for what in ("Flip", "Rotation", "Zoom", "Translation", "Contrast", "Brightness")},
}

AUGMENTATIONS = tuple(op for op in FIELDS if op.startswith("Random"))
NOISE = ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianDropout", "AlphaDropout", "GaussianNoise")
# Layers that do nothing at inference: two models are of one architecture with or without them.
INACTIVE = frozenset({*AUGMENTATIONS, *NOISE, "ActivityRegularization", "Identity"})
# Fields that say how a model is trained, not what it computes.
TRAINING_ONLY = re.compile(r"_initializer$|_regularizer$|^momentum$|^trainable$|^ignored$|^activation$")
_WITH_ACTIVATION = frozenset(op for op in FIELDS if op == "Dense" or "Conv" in op)


def canonical(op: str, config: Config, layer: str, keras2: bool) -> Config:
    """Read one layer's configuration into the canonical form.

    Args:
        op: The layer's class name, a key of ``FIELDS``.
        config: The configuration as the file has it.
        layer: The layer's path, for errors.
        keras2: Whether the file speaks the dialect of Keras 2.

    Returns:
        The fields of ``FIELDS[op]``, ``activation`` where the layer has one, and ``ignored``: the names of settings
        that matter in training only and are not followed there (constraints, activity regularisers).

    Raises:
        ModelError: A value that is missing, malformed or cannot be lowered.
    """
    result: Config = {}
    for name, (kind, default) in FIELDS[op].items():
        value = config.get(name, default)
        if value is REQUIRED:
            raise ModelError(f"layer '{layer}' ({op}) has no '{name}': the file is damaged", layer=layer)
        try:
            result[name] = kind(value, op)
        except _Misfit as misfit:
            raise ModelError(
                f"layer '{layer}' ({op}) has {name} = {value!r}, which cannot be lowered: {misfit} is expected",
                layer=layer,
                found=value,
            ) from None
    if op in activations.LAYERS:
        result["activation"] = activations.from_layer(op, config, layer, keras2)
    elif op in _WITH_ACTIVATION:
        result["activation"] = activations.from_argument(config.get("activation"), layer, keras2)
    ignored = [n for n in config if n.endswith("_constraint") or n == "activity_regularizer"]
    result["ignored"] = tuple(n for n in ignored if config[n] is not None)
    return result
