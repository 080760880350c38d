"""What every layer does with the numbers of hidden units: one rule per kind of layer, and the walk through a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedloom.align.symmetry.kinds import CONVOLUTIONS, KEEPING, MERGING, MOVING, SPATIAL, per_channel, softmax_axis
from fedloom.align.symmetry.trace import Step, Trace, owner
from fedloom.align.symmetry.units import FIXED, Event, Numbers, Place, Role
from fedloom.errors import ModelError

__all__ = ["number", "spread", "widened"]

_Rows = tuple[int, int] | None


def number(traced: Trace) -> Numbers:
    """Follow the units through a model.

    Raises:
        ModelError: A layer that mixes units in a way that is not known; the message names it.
    """
    walker = _Walker(traced, Numbers())
    values = {0: torch.full((1, *traced.shapes[0]), FIXED)}
    for i, step in enumerate(traced.steps):
        walker.at = i
        values[step.target] = walker.follow(step, [values[s] for s in step.sources])
    if traced.steps:
        walker.numbers.fix(values[traced.steps[-1].target])
    return walker.numbers


@dataclass(eq=False)
class _Walker:
    traced: Trace
    numbers: Numbers
    at: int = 0

    def follow(self, step: Step, units: list[Tensor]) -> Tensor:
        """Return the units of a step's result, (1, *shape)."""
        rule = _RULES.get(step.op)
        if rule is None:
            raise ModelError(
                f"layer '{step.layer}' ({step.op}): how it mixes hidden units is not known, so models with it "
                "cannot be aligned",
                layer=step.layer,
            )
        made = rule(self, step, units)
        shape = self.traced.shapes[step.target]
        if tuple(made.shape[1:]) != shape:
            raise self.refused(step, f"its result has the shape {shape}, its units {tuple(made.shape[1:])}")
        return made

    def refused(self, step: Step, why: str) -> ModelError:
        return ModelError(
            f"layer '{step.layer}' ({step.op}) cannot be aligned: {why}; members with it can only be averaged as they are",
            layer=step.layer,
        )

    def along(self, step: Step, units: Tensor, axis: int) -> Tensor:
        """Return the units along one axis of a value; those that stand at one position of it become one.

        A dense layer's units that are arranged as an image for a convolution thus become blocks, one per channel.
        """
        others = [a for a in range(1, units.dim()) if a != axis and self.numbers.varies(units, a)]
        if others and units.shape[axis] > 1 and not self.numbers.varies(units, axis):
            raise self.refused(step, "hidden units stand on an axis that it mixes")
        for other in others:
            self.numbers.level(units, other)
        return units.movedim(axis, 0).flatten(1)[:, 0]

    def place(
        self,
        step: Step,
        attribute: str,
        axis: int,
        units: Tensor,
        role: Role = "kept",
        rows: _Rows = None,
        block: tuple[int, int] = (0, 1),
    ) -> None:
        """Tie units to an axis of an array, and to those that stand there already."""
        if getattr(owner(step.run), attribute, None) is None:
            return
        name = self.traced.array(step, attribute)
        for i, known in enumerate(self.numbers.places):
            if (known.array, known.axis, known.rows) == (name, axis, rows):
                self.numbers.join(known.units, units)
                self.numbers.events.append(Event(i, self.at, block))
                return
        self.numbers.events.append(Event(len(self.numbers.places), self.at, block))
        self.numbers.places.append(Place(name, axis, units, step.layer, self.at, rows, role))

    def makes(self, step: Step, attribute: str, count: int, axis: int = 0) -> Tensor:
        """Return a layer's own units: new ones, or those of before when its weights are used again."""
        name = self.traced.array(step, attribute)
        found = [p for p in self.numbers.places if p.array == name and p.axis == axis]
        made = torch.cat([p.units for p in found]) if found else self.numbers.fresh(count)
        self.numbers.made[step.target] = made
        return made


def _dense(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    axis = units[0].dim() - 1
    inputs = walker.along(step, units[0], axis)
    made = walker.makes(step, "weight", len(_weight(step, "weight")))
    walker.place(step, "weight", 0, made, "made")
    walker.place(step, "weight", 1, inputs, "read")
    walker.place(step, "bias", 0, made, "made")
    return _shown(walker, step, made, axis)


def _conv(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    weight, inputs = _weight(step, "weight"), walker.along(step, units[0], 1)
    groups, size = len(inputs) // weight.shape[1], len(weight) // (len(inputs) // weight.shape[1])
    if weight.shape[1] == 1 and groups > 1 and bool((walker.numbers.roots(inputs) != FIXED).any()):
        made = inputs.repeat_interleave(size)
        walker.numbers.made[step.target] = made
        walker.place(step, "weight", 0, made, "passed")
    else:
        made = walker.makes(step, "weight", len(weight))
        for g, (outgoing, incoming) in enumerate(zip(made.chunk(groups), inputs.chunk(groups), strict=True)):
            rows = None if groups == 1 else (g * size, (g + 1) * size)
            walker.place(step, "weight", 0, outgoing, "made", rows, (g, groups))
            walker.place(step, "weight", 1, incoming, "read", rows, (g, groups))
    walker.place(step, "bias", 0, made, "made")
    return _shown(walker, step, made, 1)


def _separable(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    inputs = walker.along(step, units[0], 1)
    depthwise, pointwise = _weight(step, "depthwise"), _weight(step, "pointwise")
    middle = inputs.repeat_interleave(len(depthwise) // len(inputs))
    made = walker.makes(step, "pointwise", len(pointwise))
    walker.place(step, "depthwise", 0, middle)
    walker.place(step, "pointwise", 0, made, "made")
    walker.place(step, "pointwise", 1, middle, "read")
    walker.place(step, "bias", 0, made, "made")
    return _shown(walker, step, made, 1)


def _embedding(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    walker.numbers.fix(units[0])
    made = walker.makes(step, "weight", _weight(step, "weight").shape[1], axis=1)
    walker.place(step, "weight", 1, made, "made")
    return _shown(walker, step, made, units[0].dim())


def _batch_norm(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    channels = _standing(walker, step, units[0], 1)
    walker.numbers.made[step.target] = channels
    for attribute in ("weight", "bias", "running_mean", "running_var"):
        walker.place(step, attribute, 0, channels, "scaled" if attribute in ("weight", "bias") else "kept")
    return units[0]


def _standing(walker: _Walker, step: Step, units: Tensor, axis: int) -> Tensor:
    """Return the units along one axis; where they do not differ along it, its positions never move."""
    if walker.numbers.varies(units, axis):
        return walker.along(step, units, axis)
    return torch.full((units.shape[axis],), FIXED)


def _layer_norm(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    module, rank = owner(step.run), units[0].dim()
    sizes = getattr(module, "normalized_shape", ())
    axes = getattr(module, "axes", None) or tuple(range(rank - len(sizes), rank))
    _within(walker, units[0], axes)
    return _per_element(walker, step, units[0], axes, ("weight", "bias"))


def _prelu(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    if isinstance(owner(step.run), nn.PReLU):
        return _per_element(walker, step, units[0], (1,), ("weight",))
    return _per_element(walker, step, units[0], range(1, units[0].dim()), ("alpha",))


def _per_element(walker: _Walker, step: Step, units: Tensor, axes: Sequence[int], names: tuple[str, ...]) -> Tensor:
    """Tie arrays that have one number per element of some axes."""
    arrays = [a for a in (getattr(owner(step.run), name, None) for name in names) if isinstance(a, Tensor)]
    for own, axis in reversed(list(enumerate(axes))):
        if arrays and arrays[0].shape[own] > 1:
            for name in names:
                walker.place(step, name, own, _standing(walker, step, units, axis))
    return units


def _activation(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    axis = softmax_axis(step)
    if axis is not None:
        _within(walker, units[0], (axis % units[0].dim(),))
    return units[0]


def _within(walker: _Walker, units: Tensor, axes: Sequence[int]) -> None:
    """Let units move only within the elements that a normalisation looks at together, and in all of those alike."""
    if any(walker.numbers.varies(units, axis) for axis in axes):
        for other in range(1, units.dim()):
            if other not in axes:
                walker.numbers.level(units, other)


def _rescaling(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    return _constant(walker, step, units) if per_channel(step) else units[0]


def _constant(walker: _Walker, _step: Step, units: list[Tensor]) -> Tensor:
    """Let units stay where a constant per feature meets them."""
    walker.numbers.fix(units[0])
    return units[0]


def _foreign(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    """Refuse weights that belong to no layer where hidden units meet them."""
    if bool((walker.numbers.roots(units[0]) != FIXED).any()):
        raise walker.refused(step, "it takes weights that belong to no layer")
    return units[0].expand(1, *walker.traced.shapes[step.target])


def _same(_walker: _Walker, _step: Step, units: list[Tensor]) -> Tensor:
    return units[0]


def _moved(_walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    """Run a layer that only moves elements on the numbers themselves."""
    return step.run(*units)


def _spatial(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    return _shown(walker, step, walker.along(step, units[0], 1), 1)


def _merged(walker: _Walker, step: Step, units: list[Tensor]) -> Tensor:
    """Make the units that a merging layer adds (or multiplies, ...) one."""
    shape, numbers = (1, *walker.traced.shapes[step.target]), walker.numbers
    gates, full = [], []
    for u in widened(units):
        broadcast = any(have == 1 < want for have, want in zip(u.shape, shape, strict=True))
        alone = broadcast and not any(numbers.varies(u, axis) for axis in range(1, u.dim()))
        gates.append(u) if alone else full.append(u.expand(shape))
    for gate in gates:  # one number for all units at once: it does not say which is which
        numbers.fix(gate)
    made = full[0] if full else torch.full(shape, FIXED)
    for other in full[1:]:
        numbers.join(made, other)
    for gate in gates:  # but it may differ from position to position, and then all positions must move alike
        for axis in range(1, gate.dim()):
            if gate.shape[axis] > 1:
                numbers.level(made, axis)
    return made


def spread(channels: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """Give all elements of a value (1, *shape) the numbers of its channels, which stand on one axis."""
    wide = [1] * (len(shape) + 1)
    wide[axis] = -1
    return channels.reshape(wide).expand(1, *shape)


def _shown(walker: _Walker, step: Step, channels: Tensor, axis: int) -> Tensor:
    return spread(channels, walker.traced.shapes[step.target], axis)


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Give tensors of fewer axes new ones after the batch, as Keras' merging layers do."""
    rank = max(t.dim() for t in tensors)
    return [t.reshape(len(t), *(1,) * (rank - t.dim()), *t.shape[1:]) for t in tensors]


def _weight(step: Step, attribute: str) -> Tensor:
    array = getattr(owner(step.run), attribute, None)
    if not isinstance(array, Tensor):
        raise ModelError(f"layer '{step.layer}' ({step.op}) has no {attribute}", layer=step.layer)
    return array


_Rule = Callable[[_Walker, Step, list[Tensor]], Tensor]

_RULES: dict[str, _Rule] = {
    "Dense": _dense,
    **dict.fromkeys(CONVOLUTIONS, _conv),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    "Embedding": _embedding,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "PReLU": _prelu,
    "Activation": _activation,
    "Normalization": _constant,
    "Rescaling": _rescaling,
    "Constant": _foreign,
    **dict.fromkeys(MOVING, _moved),
    **dict.fromkeys(SPATIAL, _spatial),
    **dict.fromkeys(MERGING, _merged),
    **dict.fromkeys(KEEPING, _same),
}
