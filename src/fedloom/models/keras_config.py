"""Read a Keras model configuration into flat lists of layers and calls.

Sequential and Functional models, nested at will, in the dialects of Keras 2 (``batch_input_shape``, calls as nested
lists) and Keras 3 (``batch_shape``, calls as serialised tensors). Nested models are inlined: their layers get the path
``outer/inner``. The configuration is data that came from elsewhere: it is read, checked, and never executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedloom.errors import ModelError
from fedloom.models import fields
from fedloom.models.activations import Config

MODELS = ("Sequential", "Functional", "Model")
# Keras 3 writes `x + y` on two layers' outputs as an operation of this module, with the class name of the layer.
_OPERATORS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
_REASONS = {
    "Lambda": "it carries Python code, which is never run from a file",
    "TFOpLambda": "it is a bare TensorFlow operation",
    "SlicingOpLambda": "it is a bare TensorFlow operation",
    "RandomCrop": "it crops and resizes at inference too",
    "Masking": "masks are not followed",
}
_INSTEAD = "use built-in feed-forward layers in its place, or give the model as a PyTorch factory"


@dataclass(frozen=True)
class LayerSpec:
    """One layer.

    Attributes:
        path: The layer's name; ``outer/inner`` inside nested models.
        op: The Keras class name, for instance ``Conv2D``.
        config: The canonical configuration (``fields.canonical``) and ``trainable``; of an InputLayer, its ``shape``
            without the batch axis, None where a dimension is open.
    """

    path: str
    op: str
    config: Config


@dataclass(frozen=True)
class Node:
    """One call of a layer; a shared layer has several.

    Attributes:
        name: The layer's path; further calls get ``:1``, ``:2``, ...
        layer: The path of the layer that is called.
        inputs: The names of the nodes whose outputs it takes.
        training: False when the call fixes inference mode (``layer(x, training=False)``). That is followed in training
            too, as Keras 2 does and Keras' guides say; ``fit`` of Keras 3.15 overrides it.
    """

    name: str
    layer: str
    inputs: tuple[str, ...]
    training: bool | None = None


@dataclass(frozen=True)
class Call:
    """What a nested model inherits from the place where it is called."""

    prefix: str = ""
    trainable: bool = True
    training: bool | None = None


@dataclass
class Reader:
    """Collects layers and nodes while it walks through a configuration."""

    keras2: bool
    layers: dict[str, LayerSpec] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)

    def model(self, entry: Config, call: Call, inputs: Sequence[str] | None) -> tuple[list[str], list[str]]:
        """Read a model; returns the names of its input and output nodes.

        Args:
            entry: ``{"class_name": ..., "config": ...}``.
            call: Where it stands.
            inputs: The nodes that a nested model is called with; None for the outermost one.
        """
        config = entry["config"]
        if entry["class_name"] == "Sequential":
            return self._sequential(config, call, inputs)
        return self._functional(config, call, inputs)

    def _sequential(self, config: Any, call: Call, inputs: Sequence[str] | None) -> tuple[list[str], list[str]]:
        entries = config if isinstance(config, list) else config["layers"]
        if inputs is None:
            inputs = [self._input("input", input_shape(entries, config), call)]
        current = list(inputs)
        for entry in entries:
            if entry["class_name"] != "InputLayer":
                current = self._apply(entry, call, current, None)
        return list(inputs), current

    def _functional(self, config: Config, call: Call, inputs: Sequence[str] | None) -> tuple[list[str], list[str]]:
        entries = {_name(entry): entry for entry in config["layers"]}
        known: dict[tuple[str, int, int], str] = {}
        starts = list(_references(config["input_layers"]))
        if inputs is not None and len(inputs) != len(starts):
            raise ModelError(
                f"model '{call.prefix.rstrip('/')}' takes {len(starts)} inputs and is called with {len(inputs)}"
            )
        for i, start in enumerate(starts):
            shape = _shape_of(entries[start[0]]["config"])
            known[start] = self._input(start[0], shape, call) if inputs is None else inputs[i]
        pending = [
            (name, index, *_arguments(node, call.prefix + name))
            for name, entry in entries.items()
            for index, node in enumerate(entry.get("inbound_nodes") or [], self._first_call(entry))
            if entry["class_name"] != "InputLayer"
        ]
        while pending:
            waiting = []
            for name, index, references, training in pending:
                if all(reference in known for reference in references):
                    outputs = self._apply(entries[name], call, [known[r] for r in references], training)
                    known.update({(name, index, i): output for i, output in enumerate(outputs)})
                else:
                    waiting.append((name, index, references, training))
            if len(waiting) == len(pending):
                name, lacking = pending[0][0], next(r for r in pending[0][2] if r not in known)
                raise ModelError(f"layer '{name}' takes its input from '{lacking[0]}', which the file does not define")
            pending = waiting
        return [known[s] for s in starts], [known[r] for r in _references(config["output_layers"])]

    def _first_call(self, entry: Config) -> int:
        """Return the number of a layer's first call: Keras 2 counts a nested model's own construction as call 0."""
        if not self.keras2 or entry["class_name"] not in MODELS:
            return 0
        inner = entry["config"]
        layers = inner if isinstance(inner, list) else inner["layers"]
        return int(bool(layers) and layers[0]["class_name"] == "InputLayer")

    def _apply(self, entry: Config, call: Call, inputs: list[str], training: bool | None) -> list[str]:
        """Call a layer or a nested model on nodes; returns the names of the resulting nodes."""
        op, config, path = entry["class_name"], entry["config"], call.prefix + _name(entry)
        training = call.training if training is None else training
        trainable = call.trainable and (not isinstance(config, dict) or bool(config.get("trainable", True)))
        if op in MODELS:
            return self.model(entry, Call(path + "/", trainable, training), inputs)[1]
        if path not in self.layers:
            self._check(entry, op, path)
            canonical = fields.canonical(op, config, path, self.keras2)
            operator = {"operator": True} if _is_operator(entry) else {}
            self.layers[path] = LayerSpec(path, op, {**canonical, **operator, "trainable": trainable})
        return [self._node(path, tuple(inputs), training)]

    def _node(self, path: str, inputs: tuple[str, ...], training: bool | None = None) -> str:
        count = self.calls.get(path, 0)
        self.calls[path] = count + 1
        name = f"{path}:{count}" if count else path
        self.nodes.append(Node(name, path, inputs, training))
        return name

    def _input(self, name: str, shape: tuple[int | None, ...], call: Call) -> str:
        path = call.prefix + name
        self.layers[path] = LayerSpec(path, "InputLayer", {"shape": shape})
        return self._node(path, ())

    @staticmethod
    def _check(entry: Config, op: str, path: str) -> None:
        module = str(entry.get("module") or "")
        foreign = module.startswith(("keras.src.ops", "keras.ops")) and op not in _OPERATORS
        if op in fields.FIELDS and not foreign and (not module or module.startswith(("keras", "tf_keras"))):
            return
        reason = _REASONS.get(op, "it is not one of Keras' layers that fedloom knows")
        raise ModelError(f"layer '{path}' ({op}) cannot be lowered: {reason}; {_INSTEAD}", layer=path, found=op)


def input_shape(entries: Sequence[Config], config: Any) -> tuple[int | None, ...]:
    """Find the shape that a Sequential model takes, without the batch axis: its first layer's, or that of its build."""
    for entry in entries[:1]:
        inner = entry["config"]
        if entry["class_name"] == "Sequential":
            return input_shape(inner if isinstance(inner, list) else inner["layers"], inner)
        if entry["class_name"] in MODELS:
            first = next(_references(inner["input_layers"]))[0]
            return _shape_of(next(e["config"] for e in inner["layers"] if _name(e) == first))
        if "batch_shape" in inner or "batch_input_shape" in inner:
            return _shape_of(inner)
    built = config.get("build_input_shape") if isinstance(config, dict) else None
    if not isinstance(built, list | tuple):
        raise ModelError("the model has no input shape: build it (call it once, or add an Input) before saving it")
    return _shape_of({"batch_shape": built})


def _shape_of(config: Config) -> tuple[int | None, ...]:
    shape = config.get("batch_shape", config.get("batch_input_shape"))
    if not isinstance(shape, list | tuple) or not all(n is None or isinstance(n, int) for n in shape) or not shape:
        raise ModelError(f"the input layer has the shape {shape!r}: the file is damaged or lacks an input shape")
    return tuple(shape[1:])


def _name(entry: Config) -> str:
    config = entry["config"]
    name = entry.get("name") or (config.get("name") if isinstance(config, dict) else None)
    return str(name or entry["class_name"].lower())


def _is_operator(entry: Config) -> bool:
    return str(entry.get("module") or "").startswith(("keras.src.ops", "keras.ops"))


def _references(value: Any) -> Iterator[tuple[str, int, int]]:
    """Yield ``(layer, call, output)`` of ``["a", 0, 0]``, of lists of such, and of dictionaries (in sorted order)."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if len(value) >= 3 and isinstance(value[0], str) and all(isinstance(n, int) for n in value[1:3]):
        yield value[0], value[1], value[2]
        return
    for item in value:
        yield from _references(item)


def _arguments(node: Any, layer: str) -> tuple[list[tuple[str, int, int]], bool | None]:
    """Read one inbound node, in either dialect: the tensors that it is called with, and ``training``."""
    if isinstance(node, dict):
        references = list(_tensors(node.get("args", []), layer))
        return references, _training(node.get("kwargs") or {}, layer)
    references, training = [], None
    rows = [node] if isinstance(node[0], str) else node
    for row in rows:
        references.extend(_references(row[:3]))
        if len(row) > 3 and row[3]:
            training = _training(row[3], layer)
    return references, training


def _tensors(value: Any, layer: str) -> Iterator[tuple[str, int, int]]:
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        yield from _references(value["config"]["keras_history"])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, layer)
    elif value is not None:
        raise ModelError(f"layer '{layer}' is called with the constant {value!r}, which cannot be lowered", layer=layer)


def _training(kwargs: Config, layer: str) -> bool | None:
    odd = [key for key, value in kwargs.items() if not _is_none(value) and (key, value) != ("training", False)]
    if odd:
        raise ModelError(
            f"layer '{layer}' is called with {odd[0]} = {kwargs[odd[0]]!r}, which cannot be lowered", layer=layer
        )
    return kwargs.get("training")


def _is_none(value: Any) -> bool:
    return all(map(_is_none, value)) if isinstance(value, list | tuple) else value is None
