"""Ensemble: one model that holds all members and averages their probabilities, an upper reference for every merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedloom.errors import MergeError
from fedloom.models import graph
from fedloom.models.architecture import Architecture
from fedloom.models.lower import LoweredModel, lower
from fedloom.models.model import Model


class EnsembleModule(nn.Module):
    """Runs every member and returns the logarithm of their mean probabilities, which are logits of the mean."""

    def __init__(self, members: Sequence[nn.Module], outputs: Sequence[str]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._outputs = tuple(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, C) log-probabilities of inputs (B, ...)."""
        # Each gets inputs of its own: a user's module may write into them.
        results = [member(x.clone()).float() for member in self.members]
        pairs = zip(results, self._outputs, strict=True)
        probabilities = [y.softmax(1) if output == "logits" else y for y, output in pairs]
        return torch.stack(probabilities).mean(0).clamp_min(1e-12).log()


def ensemble(members: Sequence[Model]) -> Model:
    """Build the ensemble of members that take the same inputs and know the same classes.

    Args:
        members: At least one; of Keras models, also of different architectures.

    Returns:
        A model in the format of the members: a Functional Keras model with the members nested, or a PyTorch module.

    Raises:
        MergeError: Members that take other inputs or have other classes, or that cannot be run.
    """
    if not members:
        raise MergeError("there is nothing to combine: at least one model is needed")
    first = members[0]
    for member in members:
        member.require_runnable("an ensemble")
        if (member.input_shape, member.n_classes) != (first.input_shape, first.n_classes):
            raise MergeError(
                f"an ensemble's members must take the same inputs: {member.input_shape} with {member.n_classes} classes "
                f"stands against {first.input_shape} with {first.n_classes}"
            )
        if None not in (member.input_high, first.input_high) and member.input_high != first.input_high:
            raise MergeError(
                f"an ensemble's members must take inputs of one scale: 0 to {member.input_high:g} "
                f"stands against 0 to {first.input_high:g}"
            )
    if len(members) == 1:
        return first
    lowered = [m.module for m in members if isinstance(m.module, LoweredModel)]
    if len(lowered) == len(members):
        return _keras(members, lowered)
    module = EnsembleModule([m.module for m in members], [m.output for m in members])
    arguments = {**first.architecture.arguments, "members": len(members)}
    return Model(
        module.eval(),
        replace(first.architecture, arguments=arguments),
        first.input_shape,
        first.n_classes,
        first.input_high,
    )


def _keras(members: Sequence[Model], lowered: Sequence[LoweredModel]) -> Model:
    first = members[0]
    config = _config(
        [(m.architecture.config, module.squashing) for m, module in zip(members, lowered, strict=True)],
        first.input_shape,
    )
    weights = {}
    for i, member in enumerate(lowered):
        weights.update({f"member_{i}/{path}": arrays for path, arrays in member.to_keras().items()})
    module = lower(graph.parse(config))
    module.load_keras(weights)
    described = Architecture("keras", config=config)
    return Model(module.eval(), described, first.input_shape, first.n_classes, first.input_high)


def _config(members: Sequence[tuple[Mapping[str, Any], str | None]], input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Nest the members' configurations in one Functional model whose output is the mean of their probabilities.

    Args:
        members: Each one's configuration, and the activation that makes probabilities of its output, if one is needed.
        input_shape: The shape of one sample.
    """
    source = {"batch_shape": [None, *input_shape], "dtype": "float32", "name": "input"}
    layers: list[dict[str, Any]] = [_layer("InputLayer", source, [])]
    outputs = []
    for i, (config, squashing) in enumerate(members):
        name = f"member_{i}"
        nested = {**config, "config": {**config["config"], "name": name}, "name": name}
        layers.append({**nested, "inbound_nodes": [_call([_tensor("input", input_shape)])]})
        if squashing is not None:
            squash = {"name": f"probabilities_{i}", "dtype": "float32", "activation": squashing}
            layers.append(_layer("Activation", squash, [_call([_tensor(name, ())])]))
            name = squash["name"]
        outputs.append(_tensor(name, ()))
    layers.append(_layer("Average", {"name": "average", "dtype": "float32"}, [_call([outputs])]))
    whole = {
        "name": "ensemble",
        "trainable": True,
        "layers": layers,
        "input_layers": ["input", 0, 0],
        "output_layers": ["average", 0, 0],
    }
    return {"module": "keras", "class_name": "Functional", "config": whole, "registered_name": "Functional"}


def _layer(class_name: str, config: dict[str, Any], inbound: list[Any]) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": config,
        "registered_name": None,
        "name": config["name"],
        "inbound_nodes": inbound,
    }


def _tensor(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    history = {"shape": [None, *shape], "dtype": "float32", "keras_history": [name, 0, 0]}
    return {"class_name": "__keras_tensor__", "config": history}


def _call(arguments: list[Any]) -> dict[str, Any]:
    return {"args": arguments, "kwargs": {}}
