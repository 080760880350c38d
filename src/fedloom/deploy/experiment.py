"""Experiment: what a client is told of a run, as plain facts and numbers; it makes its side of it from that.

Nothing here is code: a model is a Keras configuration, or the name of a function that the client must have, and must have
allowed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedloom.algorithms.protection import Protection
from fedloom.data.dataset import Dataset
from fedloom.deploy.protocol.messages import Welcome
from fedloom.engines.recipe import Blueprint, Recipe
from fedloom.errors import DataError, UsageError
from fedloom.models.architecture import Architecture
from fedloom.training.local import LocalConfig

T = TypeVar("T")

ALONE = ("ready", "tables")
"""What a client is told that is no part of the experiment."""
MOST_NUMBERS, MOST_AXES = 1 << 24, 16
"""Of one sample."""

COUNTER = "counter."
START = "start"


@dataclass(frozen=True)
class Samples:
    """What clients' samples must look like.

    Attributes:
        shape: Of one sample.
        class_names: The classes.
        high: The full scale of the inputs; None for features.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    high: float | None

    @classmethod
    def of(cls, data: Dataset) -> Samples:
        """Take down what a data set looks like."""
        return cls(tuple(data.input_shape), tuple(data.class_names), data.high)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {"shape": list(self.shape), "class_names": list(self.class_names), "high": self.high}

    @classmethod
    def from_json(cls, value: Any) -> Samples:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: A field is missing, or of another kind.
        """
        found = _dict(value, "samples")
        shape, names, high = found.get("shape"), found.get("class_names"), found.get("high")
        fine = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape) and 0 < len(shape) <= MOST_AXES
        fine = fine and math.prod(shape or ()) <= MOST_NUMBERS
        fine = fine and isinstance(names, list) and all(isinstance(n, str) for n in names) and bool(names)
        if not fine or not (high is None or (isinstance(high, int | float) and 0 < high < float("inf"))):
            raise DataError("the description of the samples is damaged")
        return cls(tuple(shape or ()), tuple(names or ()), None if high is None else float(high))

    def nothing(self, count: int, name: str) -> Dataset:
        """Return a data set that only looks like ``count`` samples: it takes no memory, and holds zeros."""
        kind = np.float32 if self.high is None else np.uint8
        x = np.broadcast_to(np.zeros((), kind), (count, *self.shape))
        return Dataset(x, np.broadcast_to(np.int64(0), (count,)), self.class_names, self.high, name)

    def fit(self, data: Dataset) -> Dataset:
        """Return a client's samples with the classes and the scale that all clients have.

        Raises:
            DataError: They are of another shape, or of other classes.
        """
        if tuple(data.input_shape) != self.shape:
            raise DataError(
                f"{data.name}: samples of shape {data.input_shape}, and the others in this run have {self.shape}"
            )
        place = {text: i for i, text in enumerate(self.class_names)}
        strange = [text for text in data.class_names if text not in place]
        if strange:
            known = ", ".join(self.class_names[:10])
            raise DataError(f"{data.name}: class '{strange[0]}' is none of those in this run ({known})")
        ids = np.array([place[text] for text in data.class_names], dtype=np.int64)[data.y]
        if self.high is not None and data.high != self.high and float(np.max(data.x)) > self.high:
            raise DataError(f"{data.name}: holds numbers above {self.high:g}, the full scale in this run")
        return replace(data, y=ids, class_names=self.class_names, high=self.high)


@dataclass(frozen=True)
class Experiment:
    """What a client needs to take part.

    Attributes:
        run: Names the run, so that what a client keeps is not taken for another's.
        recipe: How to make its side; the protection in it is final.
        samples: What its samples must look like.
        title: What is trained, in words.
    """

    run: str
    recipe: Recipe
    samples: Samples
    title: str = ""

    def facts(self) -> dict[str, Any]:
        """Return all but the model, JSON-able."""
        made = self.recipe
        return {
            "title": self.title,
            "samples": self.samples.to_json(),
            "algorithm": made.algorithm,
            "options": dict(made.options),
            "config": made.config.to_json(),
            "clients": made.n_clients,
            "seed": made.seed,
            "plan": made.plan,
            "protection": asdict(made.protection),
            "equal_weights": made.equal_weights,
            "unlabelled": made.unlabelled is not None,
        }

    def model(self) -> dict[str, Any]:
        """Return how to rebuild the model, without its numbers, JSON-able."""
        model = self.recipe.model
        return {
            "architecture": model.architecture.to_json(),
            "input_shape": list(model.input_shape),
            "n_classes": model.n_classes,
            "input_high": model.input_high,
            "output": model.output,
            "trainable": list(model.trainable),
            "digest": model.digest,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name: the start, and what a model's vector leaves out."""
        model = self.recipe.model
        counters = {f"{COUNTER}{name}": torch.from_numpy(array) for name, array in model.counters.items()}
        return {START: model.vector, **counters}

    def welcome(self) -> Welcome:
        """Return what all clients are told of it alike."""
        return Welcome(0, self.recipe.n_clients, self.run, self.facts(), self.model(), self.tensors())

    @classmethod
    def read(cls, welcome: Welcome) -> Experiment:
        """Read what the server says of the run.

        Raises:
            DataError: Something is missing, or of another kind.
        """
        value = welcome.experiment
        try:
            recipe, samples = _recipe(value, welcome.model, welcome.vectors), Samples.from_json(value["samples"])
            if value["unlabelled"]:  # the server's own inputs stay there, and no client looks at them
                stand_in = samples.nothing(1, "the server's own")
                stand_in = replace(stand_in, x=stand_in.x.copy(), y=stand_in.y.copy())
                recipe = replace(recipe, unlabelled=stand_in)
            return cls(welcome.run, recipe, samples, str(value.get("title", "")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"what the server says of the run is damaged ({type(error).__name__}: {error})") from error

    @property
    def code(self) -> str:
        """The function that makes the model; empty where no code is needed but fedloom's."""
        known = self.recipe.model.architecture
        return known.factory if known.kind == "torch" else ""

    def allowed(self, code: str | None) -> Experiment:
        """Return the experiment with the client's own name for the model's code.

        Raises:
            UsageError: Code is needed, and the client has not named it: a server chooses no code to run here.
        """
        if not self.code:
            return self
        if not code:
            raise UsageError(
                f"this run trains a model made by {self.code}, which must be on this machine: if you trust that code, "
                f"pass --model {self.code}" + _where(self.code)
            )
        model = self.recipe.model
        known = replace(model.architecture, factory=code, base=Path().resolve())
        return replace(self, recipe=replace(self.recipe, model=replace(model, architecture=known)))


def told(welcome: Welcome) -> str:
    """Return a run's name with the SHA-256 of all that its clients are told of it.

    Secure sums are named so: clients that were told to train in different ways are in no sum together.
    """
    facts = {key: value for key, value in welcome.experiment.items() if key not in ALONE}
    made = hashlib.sha256(json.dumps([facts, dict(welcome.model)], sort_keys=True).encode())
    for key, tensor in sorted(welcome.vectors.items()):
        made.update(f"\n{key}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        made.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().data)
    return f"{welcome.run}\n{made.hexdigest()}"


def _where(code: str) -> str:
    name = code.rpartition("/")[2]
    return f" (or where it lies here, such as --model folder/{name})" if ".py:" in name else ""


def _recipe(value: Mapping[str, Any], model: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Recipe:
    blueprint = Blueprint(
        Architecture.from_json(_dict(model["architecture"], "architecture")),
        tuple(int(n) for n in model["input_shape"]),
        int(model["n_classes"]),
        None if model["input_high"] is None else float(model["input_high"]),
        str(model["output"]),
        {},
        tensors[START].clone(),
        {key.removeprefix(COUNTER): t.clone().numpy() for key, t in tensors.items() if key.startswith(COUNTER)},
        tuple(str(name) for name in model["trainable"]),
        str(model["digest"]),
    )
    return Recipe(
        blueprint,
        str(value["algorithm"]),
        dict(_dict(value["options"], "options")),
        _fields(LocalConfig, value["config"]),
        int(value["clients"]),
        int(value["seed"]),
        str(value["plan"]),
        protection=_fields(Protection, value["protection"]),
        equal_weights=bool(value["equal_weights"]),
    )


def _fields(kind: type[T], value: Any) -> T:
    """Build a dataclass of plain values; each must be there, and of the kind of its default."""
    found, made = _dict(value, kind.__name__), {}
    for one in dataclasses.fields(kind):  # type: ignore[arg-type]
        given = found[one.name]
        default = type(one.default)
        if not (given is None or isinstance(given, default) or one.default is None or default is float):
            raise DataError(f"{kind.__name__}.{one.name} is {given!r:.40}")
        if not isinstance(given, str | int | float | bool | None):
            raise DataError(f"{kind.__name__}.{one.name} is {given!r:.40}")
        made[one.name] = given
    return kind(**made)


def _dict(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"the description of the {what} is damaged")
    return value
