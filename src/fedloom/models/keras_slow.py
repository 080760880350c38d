"""The slow path: a Keras model that cannot be lowered (an LSTM, say) as a PyTorch module that runs Keras itself.

The arrays belong to the module, and Keras is called without state on them (``stateless_call``), so the module trains,
copies and moves like any other. Needs Keras on its torch backend. Lambda layers, which hold code, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fedloom.errors import ArchitectureError, ModelError
from fedloom.models.isolation import isolated
from fedloom.models.keras_backend import import_keras

_TINY = float(np.finfo(np.float32).tiny)
# What a configuration may name. Keras decides for itself what a name means, and several versions of it could be led by
# a file to run code or open other files, in safe mode too (CVE-2025-1550 was the first).
_MODULES = tuple(
    f"{root}.{part}"
    for root in ("keras", "keras.src")
    for part in ("layers", "models", "initializers", "regularizers", "constraints", "dtype_policies", "ops")
)
_VALUES = frozenset({"__keras_tensor__", "__tensor__", "__numpy__", "__ellipsis__", "__slice__"})
_REFUSED = frozenset(
    {"Lambda", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer"}
    | {"StringLookup", "IntegerLookup", "TextVectorization"}
)


class KerasModule(nn.Module):
    """Runs a Keras model with one input and one output.

    Parameters are named by position, ``<layer index>_<class>.<array index>_<name>``, so two files whose layers have
    other names share ``Layout.digest``.

    Attributes:
        input_shape: The shape of one sample; an axis of any length is None in Keras and 0 here.
        n_classes: The number of logits.
        logits: Whether the Keras model gives logits itself, not probabilities.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if len(model.inputs or ()) != 1 or len(model.outputs or ()) != 1:
            raise ModelError(f"Keras model '{model.name}' needs exactly one input and one output")
        self._shared = _Shared(model)
        self.input_shape = tuple(int(n or 0) for n in model.inputs[0].shape[1:])
        units = tuple(model.outputs[0].shape[1:])
        if len(units) != 1 or not units[0]:
            raise ModelError(f"Keras model '{model.name}' gives {units} per sample where a score per class is expected")
        self.logits = not _gives_probabilities(model)
        self.n_classes = max(2, int(units[0]))
        self._names: dict[int, str] = {}
        for name, variable in _named_weights(model):
            self._register(name, variable)

    def _register(self, name: str, variable: Any) -> None:
        layer, array = name.split(".")
        if layer not in self._modules:
            self.add_module(layer, nn.Module())
        holder = self.get_submodule(layer)
        value = variable.value.detach().cpu().clone()
        if variable.trainable:
            holder.register_parameter(array, nn.Parameter(value))
        else:
            holder.register_buffer(array, value)
        self._names[id(variable)] = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, n_classes) of inputs (B, *input_shape).

        Probabilities become their logarithm; one sigmoid unit p becomes [0, log(p / (1 - p))].
        """
        y = self.output(x).float()
        if self.logits:
            return torch.cat([torch.zeros_like(y), y], 1) if y.shape[1] == 1 else y
        log = y.clamp_min(_TINY).log()
        if y.shape[1] > 1:
            return log
        return torch.cat([torch.zeros_like(y), log - (1 - y).clamp_min(_TINY).log()], 1)

    def output(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the Keras model gives for inputs (B, *input_shape), in the module's mode (training or not)."""
        model, arrays = self._shared.model, self._arrays()
        keras = import_keras()
        with keras.device(str(x.device)):
            frozen = [self._state(variable, arrays, x.device) for variable in model.non_trainable_variables]
            trained = [arrays[self._names[id(variable)]] for variable in model.trainable_variables]
            y, after = model.stateless_call(trained, frozen, x, training=self.training)
        if self.training:
            with torch.no_grad():
                for variable, value in zip(model.non_trainable_variables, after, strict=True):
                    if id(variable) in self._names:
                        arrays[self._names[id(variable)]].copy_(value)
        result: torch.Tensor = y
        return result

    def _arrays(self) -> dict[str, torch.Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def _state(self, variable: Any, arrays: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
        """The array of a variable; the seeds of Dropout are drawn from PyTorch's generator instead of counted."""
        name = self._names.get(id(variable))
        if name is not None:
            return arrays[name]
        value: torch.Tensor = variable.value.detach().to(device)
        if self.training and not value.is_floating_point():
            value = torch.randint(2**31 - 1, value.shape).to(value)
        return value

    def regularization(self) -> torch.Tensor | None:
        """Return the penalties that the configuration puts on the weights, a scalar; None when there are none."""
        arrays = self._arrays()
        pairs = [
            (variable.regularizer, arrays[self._names[id(variable)]])
            for variable in self._shared.model.trainable_variables
            if variable.regularizer is not None
        ]
        if not pairs:
            return None
        with import_keras().device(str(pairs[0][1].device)):
            terms = [regularizer(array) for regularizer, array in pairs]
        return torch.stack(terms).sum()

    def weights(self) -> list[np.ndarray]:
        """Return copies of all arrays in the order of Keras' ``model.weights``."""
        arrays = self._arrays()
        return [_numpy(arrays[self._names[id(variable)]]) for variable in self._shared.model.weights]

    def load_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Copy arrays in the order of ``weights`` into the module.

        Raises:
            ArchitectureError: The number of arrays or a shape differs.
        """
        names = [self._names[id(variable)] for variable in self._shared.model.weights]
        self._copy(names, weights, "the model")

    def initialize(self, seed: int) -> None:
        """Draw fresh weights, in place, as the configuration's initialisers say; 0 <= seed < 2^63."""
        keras = import_keras()
        with isolated(seed), keras.device("cpu"):
            fresh = keras.models.clone_model(self._shared.model)
        self.load_weights([_numpy(variable.value) for variable in fresh.weights])

    def to_keras(self) -> dict[str, list[np.ndarray]]:
        """Return the arrays by layer path (``outer/inner`` in nested models), each in ``layer.weights`` order."""
        arrays = self._arrays()
        return {
            path: [_numpy(arrays[self._names[id(v)]]) for v in layer.weights]
            for path, layer in _leaves(self._shared.model)
            if layer.weights
        }

    def load_keras(self, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Copy what ``to_keras`` gives, or a file's arrays, into the module.

        Raises:
            ArchitectureError: A layer or array is missing, or a shape differs.
        """
        for path, layer in _leaves(self._shared.model):
            if layer.weights:
                if path not in weights:
                    raise ArchitectureError(f"the weights of layer '{path}' are missing", array=path)
                self._copy([self._names[id(v)] for v in layer.weights], weights[path], f"layer '{path}'")

    def _copy(self, names: Sequence[str], weights: Sequence[np.ndarray], where: str) -> None:
        if len(names) != len(weights):
            raise ArchitectureError(f"{where} has {len(names)} arrays, {len(weights)} are given")
        arrays = self._arrays()
        for name, value in zip(names, weights, strict=True):
            expected, found = tuple(arrays[name].shape), tuple(np.shape(value))
            if expected != found:
                message = f"{where}: array '{name}' has shape {found} where {expected} is expected"
                raise ArchitectureError(message, array=name, expected=expected, found=found)
        with torch.no_grad():
            for name, value in zip(names, weights, strict=True):
                arrays[name].copy_(torch.from_numpy(np.array(value)))


class _Shared:
    """Holds the Keras model, whose own arrays are not used: copies of the module share it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def from_config(config: Mapping[str, Any]) -> KerasModule:
    """Build the module of a Keras configuration, with fresh weights.

    Args:
        config: The content of a ``config.json``: ``{"class_name": ..., "config": {...}}``.

    Raises:
        ModelError: Keras cannot rebuild it: a Lambda layer, a class that is not Keras' own, a damaged configuration.
    """
    keras = import_keras()
    complete = _with_modules(config, "keras")
    _refuse_code(complete)
    try:
        with isolated(0), keras.device("cpu"):
            model = keras.saving.deserialize_keras_object(complete, safe_mode=True)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"Keras cannot rebuild the model: {_reason(error)}") from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"the configuration describes a {type(model).__name__}, not a model")
    return KerasModule(model)


def _refuse_code(config: Any) -> None:
    """Refuse a configuration that names anything but Keras' own layers and what belongs to them.

    Raises:
        ModelError: The class is named.
    """
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            if "class_name" in value and not _is_harmless(value):
                kind, module = value["class_name"], value.get("module")
                name = f"function {value.get('config')}" if kind == "function" else kind
                raise ModelError(
                    f"{name} of the module {module} is none of Keras' own layers, and is never run from a file"
                )
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)


def _is_harmless(row: Mapping[str, Any]) -> bool:
    keras = import_keras()
    kind, module, registered = row["class_name"], row.get("module"), row.get("registered_name")
    if not isinstance(kind, str) or not isinstance(module, str | None):
        return False
    if kind == "function":
        name = row.get("config")
        known = isinstance(name, str) and (hasattr(keras.activations, name) or _is_registered(name))
        return known and module in (None, "builtins", "keras.activations")
    if kind.startswith("__"):
        return kind in _VALUES
    if _is_registered(registered):  # by code of the user's own that runs in this process
        return True
    inside = module in (None, "keras") or f"{module}.".startswith(tuple(f"{m}." for m in _MODULES))
    return inside and kind not in _REFUSED


def _is_registered(name: Any) -> bool:
    return isinstance(name, str) and import_keras().saving.get_registered_object(name) is not None


def _leaves(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, layer)`` of a model's layers without the inputs; of a nested model, the layers in it."""
    keras = import_keras()
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if isinstance(layer, keras.Model) and hasattr(layer, "inputs"):
            yield from _leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def _named_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(positional name, variable)``, each variable once."""
    seen: set[int] = set()
    for i, (_, layer) in enumerate(_leaves(model)):
        for j, variable in enumerate(layer.weights):
            if id(variable) not in seen:
                seen.add(id(variable))
                yield f"{i}_{type(layer).__name__.lower()}.{j}_{variable.name}", variable
    if any(id(variable) not in seen for variable in model.weights):
        raise ModelError(f"Keras model '{model.name}' has weights outside its layers")


def _gives_probabilities(model: Any) -> bool:
    """Look at the last layer's activation; where it has none (an Average, a Reshape), at the values of some outputs."""
    last = model.outputs[0]._keras_history.operation
    if hasattr(last, "outputs") and hasattr(last, "layers"):
        return _gives_probabilities(last)
    if type(last).__name__ == "Softmax":
        return True
    if hasattr(last, "activation"):
        return getattr(last.activation, "__name__", "") in ("softmax", "sigmoid", "hard_sigmoid")
    shape = [int(n or 4) for n in model.inputs[0].shape[1:]]
    where = str(model.weights[0].value.device) if model.weights else "cpu"
    with torch.no_grad(), import_keras().device(where):
        y = model(torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))).cpu()
    return bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all())


def _numpy(array: torch.Tensor) -> np.ndarray:
    return array.detach().cpu().numpy().copy()


def _with_modules(row: Mapping[str, Any], module: str) -> dict[str, Any]:
    """Add the ``module`` that older files leave out, to a model and its layers; how it was compiled is left out."""
    row = {"module": module, "registered_name": None, **{k: v for k, v in row.items() if k != "compile_config"}}
    config = row.get("config")
    if isinstance(config, Mapping) and isinstance(config.get("layers"), list):
        layers = [_with_modules(layer, "keras" if _nested(layer) else "keras.layers") for layer in config["layers"]]
        row["config"] = {**config, "layers": layers}
    return row


def _nested(row: Mapping[str, Any]) -> bool:
    return row.get("class_name") in ("Sequential", "Functional", "Model")


def _reason(error: BaseException) -> str:
    """The first sentence of what Keras says; it likes to append the whole configuration."""
    text = " ".join(str(error).split()).split(". ")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
