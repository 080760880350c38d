"""Turn a graph into a list of steps: which function runs on which values, and where its result goes.

Every value is kept in the order of axes in which it was made: images with their channels on axis 1, over memory in
which the channels are the fastest axis, so that the turns that Keras' order asks for (Flatten, Dense) are views without
a copy.
Shapes come from running each step once on one sample of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedloom.errors import ModelError
from fedloom.models import activations
from fedloom.models.graph import Graph, LayerSpec, Node
from fedloom.models.layers import BUILDERS, Layer, Piece
from fedloom.models.layers.base import Order, Shape
from fedloom.models.layers.convolution import Conv, SeparableConv
from fedloom.models.layers.normalisation import BatchNorm
from fedloom.models.layers.weighted import Dense

OPEN = 256  # the size that an open dimension gets while shapes are worked out
_PROBABILITIES = frozenset({"softmax", "sigmoid", "hard_sigmoid", "hard_sigmoid_keras2"})
# Operations that leave probabilities what they are.
_KEEPING = frozenset(
    {"Flatten", "Reshape", "Permute", "Average", "Concatenate", "AveragePooling1D", "AveragePooling2D"}
    | {"GlobalAveragePooling1D", "GlobalAveragePooling2D", "Dropout", "Identity", "ActivityRegularization"}
)
# Modules whose results nobody else holds, so that what follows may overwrite them.
_FRESH = (Dense, Conv, SeparableConv, BatchNorm)


@dataclass(frozen=True)
class Step:
    """``values[target] = run(*(values[s] for s in sources))``.

    Attributes:
        run: A module or a function.
        sources: The numbers of the values that it takes.
        target: The number of the value that it gives.
        layer: The path of the layer that it belongs to.
        op: The layer's class, ``Activation`` for its activation, ``Turn`` for a change of the order of axes.
    """

    run: Callable[..., Tensor]
    sources: tuple[int, ...]
    target: int
    layer: str = ""
    op: str = ""


@dataclass
class _Value:
    sample: Tensor
    order: Order
    probability: bool = False


@dataclass
class Plan:
    """The steps of a model.

    Attributes:
        steps: All of them, in order; a value's number is a register that is used again once the value is not needed.
        single: The same steps before registers were assigned: every value has a number of its own, nothing is
            overwritten, and the input has number 0.
        shapes: The shape of every such value of one sample, without the batch, by number.
        registers: How many registers there are; the input stands in register 0.
        layers: The modules by layer path, each once.
        output: The register of what Keras' model returns.
        output_shape: Its shape, without the batch.
        trunk: How many steps, and which register, give the values that the logits are made of.
        ending: What those values are: ``logits`` or ``probabilities``.
    """

    steps: list[Step]
    single: tuple[Step, ...]
    shapes: tuple[Shape, ...]
    registers: int
    layers: dict[str, nn.Module]
    output: int
    output_shape: Shape
    trunk: tuple[int, int]
    ending: str


@dataclass
class _Planner:
    graph: Graph
    steps: list[Step] = field(default_factory=list)
    values: list[_Value] = field(default_factory=list)
    turned: dict[tuple[int, Order], int] = field(default_factory=dict)
    pieces: dict[str, Piece] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)

    def run(self) -> Plan:
        for node in self.graph.nodes:
            spec = self.graph.layers[node.layer]
            if spec.op == "InputLayer":
                shape = [OPEN if n is None else n for n in spec.config["shape"]]
                self.held[node.name] = self._value(torch.zeros(1, *shape), "keras")
            else:
                self.held[node.name] = self._call(node, spec)
        output = self._in_order(self.held[self.graph.outputs[0]], "keras")
        return self._finish(output)

    def _call(self, node: Node, spec: LayerSpec) -> int:
        numbers = [self.held[name] for name in node.inputs]
        shapes = [tuple(self.values[self._in_order(n, "keras")].sample.shape[1:]) for n in numbers]
        try:
            number = self._apply(node, spec, numbers, shapes)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0]
            given = ", ".join(map(str, shapes))
            raise ModelError(
                f"layer '{spec.path}' ({spec.op}) does not fit an input of shape {given}: {reason}",
                layer=spec.path,
                found=shapes,
            ) from error
        activation = spec.config.get("activation", activations.LINEAR)
        return number if activation["name"] == "linear" else self._activate(number, activation, spec.path)

    def _apply(self, node: Node, spec: LayerSpec, numbers: list[int], shapes: list[Shape]) -> int:
        piece = self.pieces.get(spec.path)
        if piece is None:
            piece = BUILDERS[spec.op](spec.config, shapes)
            self.pieces[spec.path] = piece
            if isinstance(piece.run, nn.Module):
                piece.run.eval()
        run = piece.inference if node.training is False and piece.inference is not None else piece.run
        if run is activations.linear:
            return numbers[0]
        order = piece.order
        if order == "any":
            order = "first" if any(self.values[n].order == "first" for n in numbers) else "keras"
        sources = [self._in_order(n, order) for n in numbers]
        likely = spec.op in _KEEPING and all(self.values[n].probability for n in numbers)
        return self._step(run, sources, "keras" if piece.gives_keras else order, likely, (spec.path, spec.op))

    def _activate(self, number: int, activation: activations.Config, path: str) -> int:
        run = activations.function(activation)
        if activation["name"] in activations.ALONG_AXIS:
            number = self._in_order(number, "keras")
        likely, order = activation["name"] in _PROBABILITIES, self.values[number].order
        return self._step(run, [number], order, likely, (path, "Activation"))

    def _step(
        self,
        run: Callable[..., Tensor],
        sources: list[int],
        order: Order,
        probability: bool,
        label: tuple[str, str],
    ) -> int:
        with torch.no_grad():
            sample = run(*(self.values[s].sample for s in sources))
        if not all(sample.shape):
            raise ValueError(f"nothing is left of it: the result has the shape {tuple(sample.shape[1:])}")
        number = self._value(sample, order, probability)
        self.steps.append(Step(run, tuple(sources), number, *label))
        return number

    def _value(self, sample: Tensor, order: Order, probability: bool = False) -> int:
        self.values.append(_Value(sample, order if sample.dim() > 2 else "keras", probability))
        return len(self.values) - 1

    def _in_order(self, number: int, order: Order) -> int:
        """Return the number of a value in the given order of axes, turning it where needed."""
        value = self.values[number]
        if value.order == order or value.sample.dim() <= 2:
            return number
        if (number, order) not in self.turned:
            rank = value.sample.dim()
            if order == "first":
                run: Callable[..., Tensor] = _Turn((0, rank - 1, *range(1, rank - 1)))
            else:
                run = _Turn((0, *range(2, rank), 1))
            turned = self._step(run, [number], order, value.probability, ("", "Turn"))
            self.turned[number, order] = turned
            self.turned[turned, value.order] = number
        return self.turned[number, order]

    def _finish(self, output: int) -> Plan:
        shape = tuple(self.values[output].sample.shape[1:])
        needed = self._needed(output)
        maker = next((s for s in reversed(needed) if s.target == output), None)
        trunk, ending = output, "probabilities" if self.values[output].probability else "logits"
        if maker is not None and ending == "probabilities" and _is_stripped(maker.run, shape):
            trunk, ending = maker.sources[0], "logits"
        steps, registers, where = _allocate(_overwrite(needed, trunk), output, trunk)
        layers = {path: piece.run for path, piece in self.pieces.items() if isinstance(piece.run, nn.Module)}
        shapes = tuple(tuple(value.sample.shape[1:]) for value in self.values)
        single, n_trunk = tuple(needed), len(steps) - (1 if trunk != output else 0)
        return Plan(steps, single, shapes, registers, layers, where[output], shape, (n_trunk, where[trunk]), ending)

    def _needed(self, output: int) -> list[Step]:
        """Drop the steps that the output does not need: turns that were made to learn a shape."""
        wanted, kept = {output}, []
        for step in reversed(self.steps):
            if step.target in wanted:
                wanted.update(step.sources)
                kept.append(step)
        return kept[::-1]


@dataclass(frozen=True)
class _Turn:
    axes: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def _is_stripped(run: Callable[..., Tensor], shape: Shape) -> bool:
    """Whether the last activation is one whose inputs are logits: softmax on the last axis, or a single sigmoid."""
    if len(shape) == 1 and shape[0] == 1:
        return run is torch.sigmoid
    return run is activations.softmax


def _overwrite(steps: list[Step], trunk: int) -> list[Step]:
    """Let ReLU and batch normalisation overwrite their input where nothing else reads it: half the memory traffic."""
    readers: dict[int, int] = {trunk: 1}
    for step in steps:
        for source in step.sources:
            readers[source] = readers.get(source, 0) + 1
    makers = {step.target: step.run for step in steps}

    def overwritten(step: Step) -> Step:
        source = step.sources[0] if step.sources else -1
        maker = makers.get(source)
        if readers.get(source) != 1 or not (maker is torch.relu or isinstance(_owner(maker), _FRESH)):
            return step
        if step.run is torch.relu:
            return replace(step, run=torch.relu_)
        return replace(step, run=step.run.overwriting) if isinstance(step.run, BatchNorm) else step

    return [overwritten(step) for step in steps]


def _owner(run: Callable[..., Tensor] | None) -> object:
    return run if isinstance(run, Layer) else getattr(run, "__self__", None)


def _allocate(steps: list[Step], output: int, trunk: int) -> tuple[list[Step], int, dict[int, int]]:
    """Number the values by registers, each free again after its value's last use."""
    last = {source: i for i, step in enumerate(steps) for source in step.sources}
    last[output] = last[trunk] = len(steps)
    where, count = {0: 0}, 1
    free: list[int] = []
    result: list[Step] = []
    for i, step in enumerate(steps):
        sources = tuple(where[s] for s in step.sources)
        free.extend(where[s] for s in dict.fromkeys(step.sources) if last[s] == i)
        if free:
            register = free.pop()
        else:
            register, count = count, count + 1
        where[step.target] = register
        result.append(replace(step, sources=sources, target=register))
    return result, count, where


def plan(graph: Graph) -> Plan:
    """Work out the steps of a graph.

    Raises:
        ModelError: The model has several inputs or outputs, or a layer does not fit its input.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"the model has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: one of each can be lowered"
        )
    return _Planner(graph).run()
