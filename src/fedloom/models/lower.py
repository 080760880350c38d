"""Lower a Keras model to the equivalent PyTorch module, and carry weights both ways.

Nothing here imports Keras. Arrays are stored as PyTorch has them, under names that come from their layer's position and
class alone (``0_conv2d.weight``), so that files with other layer names have the same ``Layout``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedloom import rng
from fedloom.errors import ModelError
from fedloom.models import initialisers
from fedloom.models.activations import Config
from fedloom.models.fields import AUGMENTATIONS
from fedloom.models.graph import Graph
from fedloom.models.layers import Layer
from fedloom.models.plan import plan

_LEAST = 1e-7  # Keras' epsilon: the least probability that its cross-entropy takes the logarithm of


class LoweredModel(nn.Module):
    """A Keras model as a PyTorch module.

    Attributes:
        graph: What it was lowered from.
        input_shape: The shape of one sample, as Keras has it; -1 where a dimension is open.
        n_classes: The number of logits: the outputs, or 2 for a single output.
        by_path: The submodule of each layer that has one, by the layer's path.
        names: The canonical name of each layer that has weights, by its path, in canonical order.
        notes: What training does not follow of this configuration, one sentence each.
        steps: The steps up to the logits, each value under a number of its own; the input is value 0.
        shapes: The shapes of the values by number, without the batch.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        planned = plan(graph)
        self.graph = graph
        self.input_shape: tuple[int, ...] = tuple(
            -1 if n is None else n for n in graph.layers[graph.inputs[0]].config["shape"]
        )
        self._single = planned.output_shape == (1,)
        self.n_classes = 2 if self._single else (planned.output_shape or (1,))[-1]
        self.by_path = planned.layers
        self.names: dict[str, str] = {}
        for i, (path, module) in enumerate(planned.layers.items()):
            op = graph.layers[path].op.lower()
            if isinstance(module, Layer) and module.weights:
                self.names[path] = f"{len(self.names)}_{op}"
            self.add_module(self.names.get(path, f"free{i}_{op}"), module)
        self._steps, self._registers = planned.steps, planned.registers
        self._output = planned.output
        self.shapes = planned.shapes
        self.steps = planned.single[: planned.trunk[0]]
        self._trunk, self._ending = planned.trunk, planned.ending
        self.notes = tuple(_notes(graph))
        self._penalties = list(self._read_penalties())
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, n_classes) of inputs (B, *input_shape), float32.

        A final softmax is left out. A single output z, or one sigmoid unit of input z, gives the logits [0, z]. Of
        other probabilities (several sigmoid units, an average of softmaxes) it is the logarithm, which is what Keras'
        cross-entropy makes of them.
        """
        count, register = self._trunk
        y = self._run(x, count, register)
        if self._ending == "probabilities":
            if self._single:
                return torch.cat([1.0 - y, y], -1).clamp_min(_LEAST).log()
            return y.clamp_min(_LEAST).log()
        return torch.cat([torch.zeros_like(y), y], -1) if self._single else y

    def output(self, x: Tensor) -> Tensor:
        """Return what Keras' ``model(x)`` returns, for inputs (B, *input_shape)."""
        return self._run(x, len(self._steps), self._output)

    @property
    def squashing(self) -> str | None:
        """The activation that makes probabilities of ``output``; None when it gives probabilities already."""
        if self._ending == "probabilities" or self._trunk[0] < len(self._steps):
            return None
        return "sigmoid" if self._single else "softmax"

    def _run(self, x: Tensor, count: int, register: int) -> Tensor:
        values: list[Tensor] = [x] * self._registers
        for step in self._steps[:count]:
            values[step.target] = step.run(*[values[s] for s in step.sources])
        return values[register]

    def regularization(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor | None:
        """Return the sum of the configuration's L1 and L2 penalties, a scalar; None when there are none.

        Each trainable weight w adds ``l1 * sum(|w|) + l2 * sum(w^2)`` (Keras 3, keras.regularizers).

        Args:
            parameters: Values by parameter name to use instead of the module's own.
        """
        if not self._penalties:
            return None
        own = dict(self.named_parameters()) if parameters is None else parameters
        total = next(iter(own.values())).new_zeros(())
        for name, l1, l2 in self._penalties:
            if l1:
                total = total + l1 * own[name].abs().sum()
            if l2:
                total = total + l2 * own[name].square().sum()
        return total

    def load_keras(self, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Take over a file's weights.

        Args:
            weights: Per layer path the arrays in the order and shapes of Keras' ``layer.weights``. Entries of layers
                that have no weights (the random state of a dropout) are ignored.

        Raises:
            ModelError: A layer is missing, or an array does not fit; the message names it and both shapes.
        """
        for path in weights:
            if path not in self.graph.layers:
                raise ModelError(f"the file has weights for '{path}', which the model does not contain", layer=path)
        pairs = [(path, self._checked(path, weights.get(path))) for path in self.names]
        for path, arrays in pairs:
            layer = self._layer(path)
            if len(arrays) < len(layer.weights):
                layer.weights.pop()  # a Normalization without its count
            for weight, array in zip(layer.weights, arrays, strict=True):
                layer.write(weight, array)

    def _checked(self, path: str, arrays: Sequence[np.ndarray] | None) -> list[np.ndarray]:
        expected = self._layer(path).weights
        where = f"layer '{path}' ({self.graph.layers[path].op})"
        if arrays is None:
            raise ModelError(f"{where} has no weights in the file", layer=path)
        optional = expected[-1].role == "count"
        if len(arrays) not in (len(expected), len(expected) - optional):
            names = ", ".join(w.role for w in expected)
            raise ModelError(f"{where} has {len(arrays)} arrays in the file where {names} are expected", layer=path)
        for weight, array in zip(expected, arrays, strict=False):
            if tuple(np.shape(array)) != weight.shape:
                raise ModelError(
                    f"{where}: {weight.role} has the shape {tuple(np.shape(array))} in the file "
                    f"where the configuration asks for {weight.shape}",
                    layer=path,
                    array=weight.role,
                    expected=weight.shape,
                    found=tuple(np.shape(array)),
                )
        return [np.asarray(array) for array in arrays]

    def to_keras(self) -> dict[str, list[np.ndarray]]:
        """Return copies of the weights by layer path, in the order and shapes of Keras' ``layer.weights``."""
        return {path: [self._layer(path).read(w) for w in self._layer(path).weights] for path in self.names}

    def initialize(self, seed: int) -> None:
        """Draw fresh weights as the configuration's initialisers say; statistics taken from data are kept.

        Raises:
            ModelError: A custom initialiser.
        """
        for path, name in self.names.items():
            layer = self._layer(path)
            for weight in layer.weights:
                if weight.initializer is not None:
                    chance = rng.stream(seed, "initialise", name, weight.role)
                    layer.write(weight, initialisers.draw(weight.initializer, weight.shape, chance, path))

    def _layer(self, path: str) -> Layer:
        layer = self.by_path[path]
        if not isinstance(layer, Layer):
            raise TypeError(f"layer '{path}' has no weights")
        return layer

    def _read_penalties(self) -> list[tuple[str, float, float]]:
        found = []
        for path, name in self.names.items():
            for weight in self._layer(path).weights:
                l1, l2 = penalty(weight.regularizer)
                if (l1 or l2) and getattr(self._layer(path), weight.attribute).requires_grad:
                    found.append((f"{name}.{weight.attribute}", l1, l2))
        return found


def lower(graph: Graph) -> LoweredModel:
    """Build the PyTorch module of a graph; its weights are zeros until they are loaded or drawn.

    Raises:
        ModelError: The model cannot be lowered; the message names the layer.

    Example:
        >>> from fedloom.models.graph import parse
        >>> dense = {"class_name": "Dense", "config": {"name": "d", "units": 3, "batch_input_shape": [None, 2]}}
        >>> model = lower(parse({"class_name": "Sequential", "config": {"layers": [dense]}}))
        >>> {name: tuple(p.shape) for name, p in model.named_parameters()}
        {'0_dense.weight': (3, 2), '0_dense.bias': (3,)}
    """
    return LoweredModel(graph)


def penalty(regularizer: Config | None) -> tuple[float, float]:
    """Return the factors (L1, L2) of a canonical regulariser; (0, 0) of one that is not of this kind."""
    if regularizer is None or regularizer["name"] not in ("l1", "l2", "l1_l2", "l1l2"):
        return 0.0, 0.0
    name = regularizer["name"]
    factors = [regularizer.get(key, 0.01 if name == key else 0.0) for key in ("l1", "l2")]
    l1, l2 = (float(f) if isinstance(f, int | float) else 0.0 for f in factors)
    return l1, l2


def _notes(graph: Graph) -> list[str]:
    notes = []
    for path, spec in graph.layers.items():
        notes += [
            f"layer '{path}': {setting} is not followed in training" for setting in spec.config.get("ignored", ())
        ]
        for key, value in spec.config.items():
            if key.endswith("_regularizer") and value and value["name"] not in ("l1", "l2", "l1_l2", "l1l2"):
                notes.append(f"layer '{path}': {key} {value['name']} is not followed in training")
        if spec.op in AUGMENTATIONS:
            notes.append(f"layer '{path}' ({spec.op}) does not augment in training: images pass through it unchanged")
    return notes
