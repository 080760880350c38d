"""A user's PyTorch module as the same steps that a lowered Keras model has.

The module's ``forward`` is recorded by ``torch.fx`` and run once, which tells the shapes; every recorded call becomes a
step under the name that Keras has for the layer. What is not known is refused by its name. At the end the steps are
compared with the module itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fedloom.align.symmetry.torch_steps import PARTING, Bound, Call, Slot, draft, name_of, refused
from fedloom.errors import ModelError
from fedloom.models import activations
from fedloom.models.plan import Step

__all__ = ["Recording", "record"]

_BATCH = 3
_TOLERANCE = 1e-4


@dataclass(eq=False)
class Recording:
    """The steps of a module.

    Attributes:
        module: The module.
        steps: In order; the input is value 0.
        shapes: The shape of every value of one sample.
        held: What every recorded node gave.
        numbers: The number of the value that a node gave.
        parts: The nodes that gave several values at once.
    """

    module: nn.Module
    steps: list[Step] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    held: dict[fx.Node, Any] = field(default_factory=dict)
    numbers: dict[fx.Node, int] = field(default_factory=dict)
    parts: dict[fx.Node, tuple[Bound, fx.Node]] = field(default_factory=dict)

    def follow(self, node: fx.Node, x: Tensor) -> None:
        """Run a node and note its step."""
        if node.op == "placeholder":
            self._input(node, x)
        elif node.op == "get_attr":
            holder, _, name = str(node.target).rpartition(".")
            self.held[node] = getattr(self.module.get_submodule(holder), name)
        else:
            self._called(node)

    def _input(self, node: fx.Node, x: Tensor) -> None:
        if not self.shapes:
            self.held[node], self.numbers[node] = x, 0
            self.shapes.append(tuple(x.shape[1:]))
        elif node.args:
            self.held[node] = node.args[0]
        else:
            raise ModelError(f"alignment needs a model of one input: '{node.target}' is another one")

    def _called(self, node: fx.Node) -> None:
        taken = [n for n in node.all_input_nodes if n in self.numbers]
        bound = self._bound(node, taken)
        inputs = [self.held[n].clone() for n in taken]
        versions = [t._version for t in inputs]
        result: Any = bound(*inputs)
        self.held[node] = result
        several = isinstance(result, tuple | list) and all(isinstance(r, Tensor) for r in result)
        if not taken and not any(n in self.parts for n in node.all_input_nodes):
            return
        if not taken:
            bound, taken = self._part(node)
            inputs = [self.held[n] for n in taken]
        if several and name_of(bound.function) in PARTING:
            self.parts[node] = bound, taken[0]
            return
        layer = str(node.target) if node.op == "call_module" else node.name
        if not isinstance(result, Tensor) and (several or node.op == "call_module"):
            raise refused(layer, name_of(bound.function))
        if not isinstance(result, Tensor):
            return  # a size or a type
        if versions != [t._version for t in inputs][: len(versions)]:
            bound = Bound(bound.function, bound.args, bound.named, overwrites=True)
        constants = [self.held[n] for n in node.all_input_nodes if n not in self.numbers]
        call = Call(layer, bound, inputs, result, [c for c in constants if isinstance(c, Tensor)])
        if result.dim() == 0 or len(result) != _BATCH:
            raise refused(layer, call.name, "it mixes the samples of a batch")
        self._append(call, taken)
        self.numbers[node] = len(self.shapes) - 1
        if bound.overwrites:  # what else reads the overwritten value sees the result
            self.numbers[taken[0]], self.held[taken[0]] = self.numbers[node], result

    def _append(self, call: Call, taken: list[fx.Node]) -> None:
        made, sources = draft(call), tuple(self.numbers[n] for n in taken)
        if made.turn is not None:
            self.shapes.append(tuple(call.inputs[0].permute(made.turn).shape[1:]))
            self.steps.append(Step(partial(torch.permute, dims=made.turn), sources, len(self.shapes) - 1, "", "Turn"))
            sources = (len(self.shapes) - 1,)
        self.shapes.append(tuple(call.result.shape[1:]))
        run = made.run
        if len(sources) > 1 and call.name in ("cat", "concat", "stack"):
            run = call.bound
        self.steps.append(Step(run, sources, len(self.shapes) - 1, call.layer, made.op))

    def _bound(self, node: fx.Node, taken: list[fx.Node]) -> Bound:
        def held(n: fx.Node) -> Any:
            return Slot(taken.index(n)) if n in taken else self.held[n]

        args, named = fx.node.map_arg(node.args, held), fx.node.map_arg(dict(node.kwargs), held)
        if node.op == "call_module":
            return Bound(self.module.get_submodule(str(node.target)), args, named)
        function = getattr(Tensor, str(node.target)) if node.op == "call_method" else node.target
        return Bound(function, args, named)  # type: ignore[arg-type]

    def _part(self, node: fx.Node) -> tuple[Bound, list[fx.Node]]:
        """Return the call that gives one of several values."""
        whole, source = self.parts[next(n for n in node.all_input_nodes if n in self.parts)]
        index = node.args[1] if len(node.args) > 1 else None
        if not isinstance(index, int):
            raise refused(node.name, "getitem", "it takes several values at once")
        return Bound(whole.function, whole.args, whole.named, part=index), [source]

    def strip(self, value: int) -> int:
        """Drop what the logits do not need: a final softmax, and steps that lead nowhere."""
        last = next((s for s in self.steps if s.target == value), None)
        if (
            last is not None
            and isinstance(last.run, partial)
            and last.op == "Activation"
            and len(self.shapes[value]) == 1
        ):
            softmax = last.run.func in (activations.softmax, activations.log_softmax)
            value = last.sources[0] if softmax else value
        wanted, kept = {value}, []
        for step in reversed(self.steps):
            if step.target in wanted:
                wanted.update(step.sources)
                kept.append(step)
        self.steps = kept[::-1]
        return value


def record(module: nn.Module, input_shape: tuple[int, ...]) -> Recording:
    """Record what a module does with inputs of one shape.

    Raises:
        ModelError: The module cannot be recorded (its path depends on the values), it mixes samples, a layer is not
            known (the message names it), or the steps do not give what the module gives.
    """
    with _inference(module), torch.no_grad():
        graph, recording = _graph(module), Recording(module)
        where = next((p.device for p in module.parameters()), torch.device("cpu"))
        x = torch.rand(_BATCH, *input_shape, generator=torch.Generator().manual_seed(0)).to(where)
        expected = _given(module, x)
        for node in graph.nodes:
            if node.op == "output":
                break
            recording.follow(node, x)
        last = node.args[0]
        if not isinstance(last, fx.Node) or last not in recording.numbers:
            raise ModelError("alignment needs a model that gives one tensor of scores")
        _compare(recording, recording.numbers[last], x, expected)
        recording.strip(recording.numbers[last])
    return recording


def _graph(module: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(module)
    except Exception as error:  # the user's code: anything can come
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"alignment needs to see inside the model, and the path through {type(module).__name__} cannot be recorded "
            f"(it must not depend on the values): {reason}"
        ) from error


def _given(module: nn.Module, x: Tensor) -> Tensor:
    try:
        made = module(x.clone())
    except Exception as error:  # the user's code: anything can come
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"{type(module).__name__} does not take inputs of shape {tuple(x.shape[1:])}: {reason}"
        ) from error
    if not isinstance(made, Tensor):
        raise ModelError(f"alignment needs a model that gives one tensor of scores, not a {type(made).__name__}")
    return made


def _compare(recording: Recording, value: int, x: Tensor, expected: Tensor) -> None:
    """Raise unless the steps give what the module gives."""
    values = {0: x}
    for step in recording.steps:
        values[step.target] = step.run(*(values[s] for s in step.sources))
    found = values[value]
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=0, atol=_TOLERANCE * scale, equal_nan=True
    ):
        raise ModelError(
            f"alignment needs to see inside the model, and {type(recording.module).__name__} does more than what its "
            "recorded calls do (values are overwritten, or chance is used)"
        )


@contextmanager
def _inference(module: nn.Module) -> Iterator[None]:
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode
