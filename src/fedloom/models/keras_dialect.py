"""What a Keras configuration says of a model's layers and weights, and its translation into the dialect of Keras 3.

Nothing here imports Keras. The facts are those of ``Layer.get_config`` and ``from_config`` of Keras 2.14, 2.15 and
3.0 to 3.15; where the two dialects differ is listed at ``modern``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.errors import ModelError
from fedloom.models.keras_order import is_model, sort_layers

Config = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One layer of a configuration.

    Attributes:
        path: The layer's name, ``"outer/inner"`` inside nested models.
        kind: Its class name, ``"Conv2D"``.
        config: Its own configuration.
        children: The layers of a nested Sequential or Functional model, in Keras' order; None for a single layer.
    """

    path: str
    kind: str
    config: Config
    children: tuple[Entry, ...] | None = None

    def leaves(self) -> Iterator[Entry]:
        """Yield the single layers below this one, or the layer itself."""
        if self.children is None:
            yield self
        else:
            for child in self.children:
                yield from child.leaves()


def entries(config: Config, prefix: str = "") -> tuple[Entry, ...]:
    """Return the layers of a Sequential or Functional model, in the order of ``model.layers``.

    Args:
        config: The content of ``config.json``, either dialect.
        prefix: What to put before each path.

    Raises:
        ModelError: The configuration is that of another kind of model, or is damaged.
    """
    kind = config.get("class_name")
    if not is_model(kind):
        raise ModelError(f"it holds a model of the class {kind}: only Sequential and Functional models can be read")
    found = []
    for row in _rows(config):
        inner = row["config"]
        options = inner if isinstance(inner, dict) else {}
        path = prefix + str(row.get("name") or options.get("name"))
        children = entries(row, f"{path}/") if is_model(row["class_name"]) else None
        found.append(Entry(path, row["class_name"], options, children))
    if kind == "Sequential" and found and found[0].kind == "InputLayer":
        del found[0]
    return tuple(found)


def _rows(config: Config) -> list[Config]:
    """Return the rows of a model's layers; very old Sequential models had nothing else in their configuration."""
    inner = config.get("config")
    rows = inner if isinstance(inner, list) else inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(rows, list):
        raise ModelError("its configuration is damaged: a model without a list of layers")
    for row in rows:
        kind = row.get("class_name") if isinstance(row, dict) else None
        if not isinstance(kind, str) or not isinstance(row.get("config"), dict | list if is_model(kind) else dict):
            raise ModelError("its configuration is damaged: a layer without class_name or config")
    return rows


def leaves(layers: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the single layers of a model, those of nested models included."""
    for entry in layers:
        yield from entry.leaves()


_KERNEL = ("kernel", "bias?use_bias")
_AFFINE = ("gamma?scale", "beta?center")
_RECURRENT = ("LSTM", "GRU", "SimpleRNN")
_VARIABLES: dict[str, tuple[str, ...]] = {
    "Dense": _KERNEL,
    **{f"Conv{n}D": _KERNEL for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _KERNEL for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _KERNEL for n in (1, 2)},
    **{f"SeparableConv{n}D": ("depthwise_kernel", "pointwise_kernel", "bias?use_bias") for n in (1, 2)},
    "BatchNormalization": (*_AFFINE, "moving_mean", "moving_variance"),
    "LayerNormalization": _AFFINE,
    "GroupNormalization": _AFFINE,
    "Embedding": ("embeddings",),
    "PReLU": ("alpha",),
    **dict.fromkeys(_RECURRENT, ("kernel", "recurrent_kernel", "bias?use_bias")),
}
_STATISTICS = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count"})


def variables(entry: Entry) -> tuple[str, ...] | None:
    """Return the names of a single layer's variables, in the order of ``layer.weights``; None when not known here.

    Example:
        >>> variables(Entry("bn", "BatchNormalization", {"scale": False}))
        ('beta', 'moving_mean', 'moving_variance')
    """
    if entry.kind == "Normalization":
        return ("mean", "variance", "count") if entry.config.get("mean") is None else ()
    if entry.kind == "Bidirectional" and (wrapped := _wrapped(entry)):
        names = variables(wrapped) or ()
        return tuple(f"{way}_{name}" for way in ("forward", "backward") for name in names)
    rows = _VARIABLES.get(entry.kind)
    if rows is None or entry.config.get("rms_scaling"):
        return None
    pairs = (row.partition("?") for row in rows)
    return tuple(name for name, _, switch in pairs if not switch or entry.config.get(switch, True))


def holders(entry: Entry) -> tuple[str, ...]:
    """Return where below a single layer its variables are kept: "" for itself, the cell of a recurrent layer.

    Example:
        >>> holders(Entry("lstm", "LSTM", {})), holders(Entry("fc", "Dense", {}))
        (('cell',), ('',))
    """
    if entry.kind in _RECURRENT:
        return ("cell",)
    if entry.kind == "Bidirectional" and _wrapped(entry):
        return ("forward_layer/cell", "backward_layer/cell")
    return ("",)


def _wrapped(entry: Entry) -> Entry | None:
    """Return the recurrent layer inside a Bidirectional one; None where it is of another class."""
    inner = entry.config.get("layer")
    if (
        not isinstance(inner, dict)
        or inner.get("class_name") not in _RECURRENT
        or not isinstance(inner["config"], dict)
    ):
        return None
    return Entry(entry.path, inner["class_name"], inner["config"])


def trainable(name: str) -> bool:
    """Whether Keras creates the variable ``name`` as a trainable one (batch statistics are not)."""
    return name not in _STATISTICS


def check(entry: Entry, found: int) -> None:
    """Refuse a layer that has another number of arrays than its class.

    Raises:
        ModelError: The layer is named; the caller adds the file.
    """
    names = variables(entry)
    if names is None or found == len(names) or (names[:1] == ("mean",) and found == 2):
        return
    layer = f"layer '{entry.path}' ({entry.kind})"
    if found == 0:
        raise ModelError(f"the weights of {layer} are missing", array=entry.path)
    expected = f"{len(names)} are expected" + (f" ({', '.join(names)})" if names else "")
    raise ModelError(f"{layer} has {found} arrays of weights, {expected}", array=entry.path)


def check_all(layers: Sequence[Entry], weights: Mapping[str, Sequence[Any]]) -> None:
    """Refuse ``weights`` that lack one of the layers, or hold one that is not among them.

    Raises:
        ModelError: The first such layer is named.
    """
    known = {leaf.path: leaf for leaf in leaves(layers)}
    for path, leaf in known.items():
        check(leaf, len(weights.get(path, ())))
    for path in weights:
        if path not in known:
            raise ModelError(f"there are weights for '{path}', which is no layer of the model", array=path)


def modern(config: Config) -> Config:
    """Translate a configuration into the dialect of Keras 3; one that is in it already stays as it is.

    What differs in Keras 2 (2.14 and 2.15 where not said otherwise): an input layer's ``batch_input_shape``, which
    other layers may carry as well; the modules ``keras.src.engine...``; ``axis`` of BatchNormalization in a list;
    ``groups`` and the kernel's initialiser of depthwise and separable convolutions; ``alpha`` of LeakyReLU;
    dtype policies; ``time_major`` of recurrent layers; inbound nodes as nested lists, with a nested model's calls
    counted from 1; a single output in a list; no module at all in ``.h5``. How the model was compiled is left out,
    as the optimiser's state is: a compiled configuration without that state makes Keras warn. The layers of a
    functional graph are put into the order that Keras gives them, on which the names inside the weights file depend.

    Raises:
        ModelError: The configuration is damaged.
    """
    try:
        result = _model({key: value for key, value in copy.deepcopy(config).items() if key != "compile_config"})
        _renumber(result, {})
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(f"its configuration is damaged ({type(error).__name__}: {error})") from error
    return result


def _model(data: Config) -> Config:
    rows = _rows(data)
    old = _is_old(rows)
    inner = data["config"] if isinstance(data["config"], dict) else {}
    layers = [_layer(row, old) for row in rows]
    result = {key: value for key, value in data.items() if key != "build_config" or not old}
    if data["class_name"] == "Sequential":
        inner = {"name": "sequential", **inner, "layers": _with_input(rows, layers)}
        return {**result, "module": "keras", "config": inner, "registered_name": None}
    inner = {**inner, "layers": layers}
    sort_layers(inner)
    named = {"module": "keras.src.models.functional", "class_name": "Functional", "registered_name": "Functional"}
    return {**result, **named, "config": inner}


def _is_old(rows: list[Config]) -> bool:
    """Whether Keras 2 described the layers: with nodes in lists, or with ``batch_input_shape``."""
    return any(
        "batch_input_shape" in row["config"] or any(isinstance(node, list) for node in row.get("inbound_nodes") or ())
        for row in rows
    )


def _layer(data: Config, old: bool) -> Config:
    if is_model(data["class_name"]):
        return _model(data)
    result = {key: value for key, value in data.items() if key != "build_config" or not old}
    if str(data.get("module") or "tf_keras").startswith(("tf_keras", "keras.src.engine", "keras.engine")):
        result = {**result, "module": "keras.layers", "registered_name": result.get("registered_name")}
    result["config"] = _options(data["class_name"], dict(data["config"]))
    for key in ("layer", "backward_layer") if data["class_name"] == "Bidirectional" else ():
        if isinstance(result["config"].get(key), dict):
            result["config"][key] = _layer(result["config"][key], old)
    return result


_SEPARABLE = ("groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
_DROPPED: dict[str, tuple[str, ...]] = {
    **{f"DepthwiseConv{n}D": ("groups",) for n in (1, 2)},
    **{f"SeparableConv{n}D": _SEPARABLE for n in (1, 2)},
    **{f"Conv{n}DTranspose": ("groups",) for n in (1, 2, 3)},
    "BatchNormalization": ("fused", "virtual_batch_size", "adjustment"),
    "Embedding": ("input_length", "sparse"),
    **dict.fromkeys(_RECURRENT, ("time_major", "implementation")),
}


def _options(kind: str, options: Config) -> Config:
    shape = options.pop("batch_input_shape", None)
    if kind == "InputLayer" and shape is not None:
        options = {"batch_shape": shape, **{key: value for key, value in options.items() if key != "ragged" or value}}
    for key in _DROPPED.get(kind, ()):
        options.pop(key, None)
    axis = options.get("axis")
    if kind == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        options["axis"] = axis[0]
    if kind == "LeakyReLU" and "alpha" in options:
        options["negative_slope"] = options.pop("alpha")
    dtype = options.get("dtype")
    if isinstance(dtype, dict) and dtype.get("class_name") == "Policy":
        options["dtype"] = dtype["config"]["name"]
    for key, value in options.items():
        if key.endswith("_initializer") and isinstance(value, dict) and isinstance(value.get("config"), dict):
            value["config"].pop("dtype", None)
    return options


def _with_input(before: list[Config], layers: list[Config]) -> list[Config]:
    """Put an input layer in front of a Sequential model whose first layer carries the input's shape."""
    shape = before[0]["config"].get("batch_input_shape") if before and isinstance(before[0]["config"], dict) else None
    if shape is None or layers[0]["class_name"] == "InputLayer":
        return layers
    options = {"batch_shape": shape, "dtype": "float32", "name": f"{layers[0]['config'].get('name', 'layer')}_input"}
    first = {"module": "keras.layers", "class_name": "InputLayer", "config": options, "registered_name": None}
    return [first, *layers]


def _renumber(value: Any, numbers: dict[Any, int]) -> None:
    """Number shared objects by their first appearance: Keras takes memory addresses, which differ from run to run."""
    if isinstance(value, dict):
        if "shared_object_id" in value:
            value["shared_object_id"] = numbers.setdefault(value["shared_object_id"], len(numbers) + 1)
        for item in value.values():
            _renumber(item, numbers)
    elif isinstance(value, list):
        for item in value:
            _renumber(item, numbers)
