"""The internal description of a Keras model: layers, their calls, and what makes two architectures equal."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedloom.errors import ModelError
from fedloom.models.activations import LAYERS as ACTIVATION_LAYERS
from fedloom.models.fields import INACTIVE, TRAINING_ONLY
from fedloom.models.keras_config import MODELS, Call, LayerSpec, Node, Reader

__all__ = ["Graph", "LayerSpec", "Node", "first_difference", "parse"]


@dataclass(frozen=True)
class _Line:
    """One thing that an architecture computes, with no name in it but those for messages."""

    op: str
    fields: dict[str, Any]
    inputs: tuple[int, ...]
    same_as: int | None
    path: str

    def __str__(self) -> str:
        fields = ", ".join(f"{key}={value}" for key, value in self.fields.items())
        shared = "" if self.same_as is None else f" weights of {self.same_as}"
        return f"{self.op}({fields}){shared} <- {', '.join(map(str, self.inputs))}"


@dataclass(frozen=True)
class Graph:
    """A model as a graph of calls.

    Attributes:
        layers: The layers by path, in the order of their first call.
        nodes: The calls, in a topological order that depends on the structure alone, not on names.
        inputs: The names of the input nodes.
        outputs: The names of the output nodes.
    """

    layers: Mapping[str, LayerSpec]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def signature(self) -> list[str]:
        r"""Describe the architecture, one line per step, without names: two models are mergeable when theirs are equal.

        Activations stand on lines of their own; layers that do nothing at inference (dropout, augmentation) and
        settings of the training alone (initialisers, regularisers, momentum) are left out.

        Example:
            >>> dense = {"class_name": "Dense", "config": {"name": "d", "units": 3, "activation": "relu",
            ...          "batch_input_shape": [None, 2]}}
            >>> print("\n".join(parse({"class_name": "Sequential", "config": {"layers": [dense]}}).signature()))
            InputLayer(shape=(2,)) <-
            Dense(units=3, use_bias=True) <- 0
            activation relu() <- 1
            output() <- 2
        """
        return [str(line).rstrip() for line in self._lines()]

    def _lines(self) -> list[_Line]:
        lines: list[_Line] = []
        position: dict[str, int] = {}
        first: dict[str, int] = {}
        for node in self.nodes:
            spec = self.layers[node.layer]
            inputs = tuple(position[name] for name in node.inputs)
            at = inputs[0] if inputs else -1
            if spec.op not in INACTIVE and spec.op not in ACTIVATION_LAYERS:
                fields = {k: v for k, v in spec.config.items() if not TRAINING_ONLY.search(k) and v is not None}
                lines.append(_Line(spec.op, fields, inputs, first.get(spec.path), spec.path))
                at = len(lines) - 1
                first.setdefault(spec.path, at)
            activation = spec.config.get("activation")
            if activation is not None and activation["name"] != "linear":
                arguments = {key: value for key, value in activation.items() if key != "name"}
                lines.append(_Line(f"activation {activation['name']}", arguments, (at,), None, spec.path))
                at = len(lines) - 1
            position[node.name] = at
        lines.append(_Line("output", {}, tuple(position[name] for name in self.outputs), None, "output"))
        return lines


def parse(config: Mapping[str, Any]) -> Graph:
    """Read a Keras model configuration (the content of ``config.json``, or ``model_config`` of an HDF5 file).

    Args:
        config: ``{"class_name": "Sequential" | "Functional" | "Model", "config": {...}}``, of Keras 2 or 3.

    Returns:
        The graph; nested models are inlined, and calls that no output needs are left out.

    Raises:
        ModelError: A layer that cannot be lowered (the message names it and its class), or a damaged configuration.
    """
    kind = config.get("class_name")
    if kind not in MODELS:
        raise ModelError(
            f"a model of class '{kind}' is built by its own Python code, which the file does not hold: "
            "save a Sequential or Functional model, or give a PyTorch factory",
            found=kind,
        )
    reader = Reader(keras2="batch_input_shape" in json.dumps(config, default=str))
    try:
        inputs, outputs = reader.model(dict(config), Call(), None)
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise ModelError(f"the model's configuration is damaged: {type(error).__name__} {error}") from error
    nodes = _ordered({node.name: node for node in reader.nodes}, [*inputs, *outputs])
    layers = {node.layer: reader.layers[node.layer] for node in nodes}
    return Graph(layers, nodes, tuple(inputs), tuple(outputs))


def first_difference(a: Graph, b: Graph) -> str | None:
    """Name the first difference between two architectures, with the layers' names in both; None when they are equal."""
    mine, theirs = a._lines(), b._lines()
    for x, y in zip(mine, theirs, strict=False):
        if x.op != y.op:
            return f"layer '{x.path}' has {_what(x)} where layer '{y.path}' has {_what(y)}"
        for key in sorted({*x.fields, *y.fields}):
            here, there = x.fields.get(key), y.fields.get(key)
            if here != there:
                return (
                    f"layer '{x.path}' ({x.op}) has {key} {reprlib.repr(here)} "
                    f"where layer '{y.path}' has {reprlib.repr(there)}"
                )
        if x.same_as != y.same_as:
            return f"layers '{x.path}' and '{y.path}' ({x.op}) do not share their weights with the same layers"
        if x.inputs != y.inputs:
            sources = [", ".join(f"'{lines[i].path}'" for i in line.inputs) for line, lines in ((x, mine), (y, theirs))]
            return f"layer '{x.path}' ({x.op}) takes its input from {sources[0]} where '{y.path}' has {sources[1]}"
    if len(mine) != len(theirs):
        longer = max(mine, theirs, key=len)[min(len(mine), len(theirs))]
        return f"layer '{longer.path}' ({longer.op}) has no counterpart"
    return None


def _what(line: _Line) -> str:
    return line.op if line.op.startswith("activation") else f"the class {line.op}"


def _ordered(nodes: Mapping[str, Node], roots: list[str]) -> tuple[Node, ...]:
    """Return what ``roots`` need, each node after its inputs, in the order of a depth-first walk."""
    done: dict[str, Node] = {}
    stack = [(name, False) for name in reversed(roots)]
    while stack:
        name, expanded = stack.pop()
        if name in done:
            continue
        if expanded:
            done[name] = nodes[name]
            continue
        stack.append((name, True))
        stack.extend((source, False) for source in reversed(nodes[name].inputs))
    return tuple(done.values())
