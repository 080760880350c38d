"""A model as a list of steps, each value under its own number: what alignment looks at, and how it runs a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedloom.align.symmetry.torch_trace import record
from fedloom.errors import ModelError
from fedloom.models.graph import parse
from fedloom.models.keras_slow import KerasModule
from fedloom.models.lower import LoweredModel, lower
from fedloom.models.model import Model
from fedloom.models.plan import Step

__all__ = ["Step", "Trace", "run", "trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """How a model computes its logits.

    Attributes:
        steps: In order; the input is value 0, the last step gives the logits (or what they are made of).
        shapes: The shape of every value of one sample, without the batch.
        prefixes: The name in the layout of every module that has arrays, by the module's id.
        aliases: The layout's names of arrays that several modules share, by their other names.
    """

    steps: tuple[Step, ...]
    shapes: tuple[tuple[int, ...], ...]
    prefixes: Mapping[int, str]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def array(self, step: Step, attribute: str) -> str:
        """Return the layout's name of an array of the step's module."""
        prefix = self.prefixes[id(owner(step.run))]
        name = f"{prefix}.{attribute}" if prefix else attribute
        return self.aliases.get(name, name)

    def readers(self, value: int) -> list[int]:
        """Return the indices of the steps that take a value."""
        return [i for i, step in enumerate(self.steps) if value in step.sources]


def trace(model: Model) -> Trace:
    """Return a model's steps.

    Raises:
        ModelError: The model's steps are not known: bare arrays, a model that runs through Keras itself, or a PyTorch
            module that cannot be recorded.
    """
    module = model.module
    model.require_runnable("alignment")
    if isinstance(module, KerasModule):
        raise _through_keras(model)
    made = module if isinstance(module, LoweredModel) else record(module, model.input_shape)
    prefixes = {id(part): name for name, part in module.named_modules()}
    return Trace(tuple(made.steps), tuple(made.shapes), prefixes, _aliases(module))


def _through_keras(model: Model) -> ModelError:
    """Return the error for a model that runs through Keras, with the reason why it does."""
    try:
        lower(parse(dict(model.architecture.config)))
    except ModelError as error:
        return ModelError(f"alignment needs to see inside the model: {error}", **error.context)
    return ModelError("alignment needs to see inside the model, and this one runs through Keras itself")


def _aliases(module: nn.Module) -> dict[str, str]:
    """Return the layout's name of every array that stands under several."""
    names: dict[int, str] = {}
    every = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {name: first for name, array in every.items() if (first := names.setdefault(id(array), name)) != name}


def owner(run: Callable[..., Tensor]) -> nn.Module | None:
    """Return the module that a step runs; None for a plain function."""
    if isinstance(run, nn.Module):
        return run
    found = getattr(run, "__self__", None)
    return found if isinstance(found, nn.Module) else None


@torch.no_grad()
def run(
    traced: Trace, x: Tensor, ahead: Callable[[int, list[Tensor]], None] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Run a model step by step, in inference mode.

    Args:
        traced: The steps.
        x: Inputs (B, *input_shape).
        ahead: Called with the index of every step and its inputs before it is run: what it changes in the step's
            module takes effect.

    Yields:
        The index of each step and its result.
    """
    last = {source: i for i, step in enumerate(traced.steps) for source in step.sources}
    values = {0: x}
    for i, step in enumerate(traced.steps):
        taken = [values[source] for source in step.sources]
        if ahead is not None:
            ahead(i, taken)
        values[step.target] = step.run(*taken)
        yield i, values[step.target]
        for source in set(step.sources):
            if last[source] == i:
                del values[source]
