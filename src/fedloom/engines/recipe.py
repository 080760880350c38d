"""Recipe: how a worker makes a client side of its own. It can be sent to another process or machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from fedloom import algorithms
from fedloom.algorithms.base import Setting
from fedloom.algorithms.protection import Protection
from fedloom.clients import ClientSide, Population
from fedloom.data.dataset import Dataset
from fedloom.errors import ModelError
from fedloom.models import io
from fedloom.models.architecture import Architecture
from fedloom.models.model import Model
from fedloom.training.local import LocalConfig


@dataclass(frozen=True)
class Blueprint:
    """A model without its module: how to rebuild it, and what the module holds.

    Attributes:
        architecture: How to rebuild the module; user code is named, and run again.
        input_shape: As in :class:`Model`, and so are the four after it.
        n_classes: See there.
        input_high: See there.
        output: See there.
        dtypes: See there.
        vector: The model's numbers, float32 (P,).
        counters: What the vector leaves out: the module's whole numbers, by name.
        trainable: Which of its parameters are trained.
        digest: Of the layout, to check the module that was rebuilt.
    """

    architecture: Architecture
    input_shape: tuple[int, ...]
    n_classes: int
    input_high: float | None
    output: str
    dtypes: Mapping[str, torch.dtype]
    vector: torch.Tensor
    counters: Mapping[str, np.ndarray]
    trainable: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, model: Model) -> Self:
        """Take down a model that can be run.

        Raises:
            ModelError: The model is bare arrays.
        """
        model.require_runnable("training in another process")
        known = model.architecture
        if known.kind == "torch":
            known = replace(known, base=(known.base or Path()).resolve())
        return cls(
            known,
            tuple(model.input_shape),
            model.n_classes,
            model.input_high,
            model.output,
            dict(model.dtypes),
            model.vector().cpu(),
            {n: a.cpu().numpy().copy() for n, a in model.module.state_dict().items() if not a.is_floating_point()},
            tuple(name for name, parameter in model.module.named_parameters() if parameter.requires_grad),
            model.layout.digest,
        )

    def build(self) -> Model:
        """Rebuild the model.

        Raises:
            ModelError: The code gave another model than it did before.
        """
        module = io.rebuild(self.architecture, self.n_classes).module
        counters = {name: torch.from_numpy(array.copy()) for name, array in self.counters.items()}
        module.load_state_dict({**module.state_dict(), **counters})
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        module.eval()
        model = Model(
            module,
            self.architecture,
            self.input_shape,
            self.n_classes,
            self.input_high,
            self.output,
            self.dtypes,
        )
        if model.layout.digest != self.digest:
            raise ModelError(f"{self.architecture.factory or 'the model'} gave another model in a worker than before")
        return model.load(self.vector)


@dataclass(frozen=True)
class Recipe:
    """How to make a client side.

    Attributes:
        model: The model.
        algorithm: The name of the algorithm, in :data:`fedloom.algorithms.ALGORITHMS`.
        options: Its options.
        config: What clients do locally, before ``algorithm.local``.
        n_clients: The size of the population.
        seed: The run's.
        plan: The execution plan.
        unlabelled: See :class:`Setting`.
        protection: What is done with updates on their way.
        equal_weights: See :class:`ClientSide`.
    """

    model: Blueprint
    algorithm: str
    options: Mapping[str, float | str | None] = field(default_factory=dict)
    config: LocalConfig = field(default_factory=LocalConfig)
    n_clients: int = 1
    seed: int = 0
    plan: str = "loop"
    unlabelled: Dataset | None = None
    protection: Protection = field(default_factory=Protection)
    equal_weights: bool = False

    def make(self, population: Population) -> ClientSide:
        """Make the client side of a population."""
        model = self.model.build()
        setting = Setting(model, self.config, self.n_clients, self.seed, self.unlabelled)
        algorithm = self.protection.around(algorithms.make(self.algorithm, setting, self.options), model)
        config = algorithm.local(self.config)
        examples = self.protection.examples()
        return ClientSide(model, population, algorithm, config, self.seed, self.plan, self.equal_weights, examples)
