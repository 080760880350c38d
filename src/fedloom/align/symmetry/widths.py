"""Whether two models differ in the widths of their hidden layers alone."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fedloom.align.symmetry.graph import Symmetry, derive
from fedloom.align.symmetry.trace import Step, owner
from fedloom.models.graph import Graph, first_difference
from fedloom.models.lower import LoweredModel
from fedloom.models.model import Model

__all__ = ["same_but_widths"]

_KERAS = frozenset({"units", "filters", "output_dim"})
_TORCH = frozenset(
    {"in_features", "out_features", "in_channels", "out_channels", "num_features", "embedding_dim", "num_parameters"}
    | {"groups", "normalized_shape", "training"}
)


def same_but_widths(a: Model, b: Model) -> str | None:
    """Name the first difference between two models other than the widths of their hidden layers; None without one.

    Keras models are compared setting by setting; PyTorch modules by what their calls are, by the plain attributes of
    their layers and by the shapes of their arrays.

    Raises:
        ModelError: A model that alignment cannot see into, or a layer whose symmetry is not known.
    """
    ours, theirs = derive(a), derive(b)
    if isinstance(a.module, LoweredModel) and isinstance(b.module, LoweredModel):
        found = first_difference(_without_widths(a.module.graph), _without_widths(b.module.graph))
    elif isinstance(a.module, LoweredModel) or isinstance(b.module, LoweredModel):
        found = "one is a Keras model, the other a PyTorch module"
    else:
        found = _unequal_steps(ours, theirs)
    if found is None and ours.trace.shapes[0] != theirs.trace.shapes[0]:
        found = f"the inputs have the shape {ours.trace.shapes[0]} against {theirs.trace.shapes[0]}"
    if found is None and a.n_classes != b.n_classes:
        found = f"the last layer has {a.n_classes} outputs against {b.n_classes}"
    return _unequal_groups(ours, theirs) if found is None else found


def _without_widths(graph: Graph) -> Graph:
    layers = {
        path: replace(spec, config={key: value for key, value in spec.config.items() if key not in _KERAS})
        for path, spec in graph.layers.items()
    }
    return replace(graph, layers=layers)


def _unequal_steps(a: Symmetry, b: Symmetry) -> str | None:
    """Name the first step of two PyTorch modules that is not the same."""
    for x, y in zip(a.trace.steps, b.trace.steps, strict=False):
        if (x.op, x.sources) != (y.op, y.sources):
            return f"layer '{x.layer}' ({x.op}) stands against '{y.layer}' ({y.op})"
        mine, others = _settings(x), _settings(y)
        for key in sorted({*mine, *others}):
            if mine.get(key) != others.get(key):
                return f"layer '{x.layer}' ({x.op}) has {key} {mine.get(key)} where '{y.layer}' has {others.get(key)}"
    if len(a.trace.steps) != len(b.trace.steps):
        longer = max(a.trace.steps, b.trace.steps, key=len)[min(len(a.trace.steps), len(b.trace.steps))]
        return f"layer '{longer.layer}' ({longer.op}) has no counterpart"
    return None


def _settings(step: Step) -> dict[str, object]:
    """Return the plain attributes of a step's module, its class among them."""
    run = getattr(step.run, "function", step.run)
    module = owner(run)
    if not isinstance(module, nn.Module):
        return {"function": getattr(run, "__name__", type(run).__name__)}
    plain = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in _TORCH and isinstance(value, bool | int | float | str | tuple)
    }
    return {"class": type(module).__name__, **plain}


def _unequal_groups(a: Symmetry, b: Symmetry) -> str | None:
    """Name the first place where units that have a counterpart cannot be told."""
    for ours, theirs in zip(a.groups, b.groups, strict=False):
        places = [[(u.array, u.axis, u.positions.shape[1]) for u in group.uses] for group in (ours, theirs)]
        if places[0] != places[1]:
            return f"the units of layer '{ours.name}' do not stand where those of layer '{theirs.name}' stand"
    if len(a.groups) != len(b.groups):
        longer = max(a, b, key=lambda s: len(s.groups)).groups[min(len(a.groups), len(b.groups))]
        return f"layer '{longer.name}' has units that can change places in one model alone"
    free = [_free(symmetry) for symmetry in (a, b)]
    for (name, axis, block), count in free[0].items():
        if count != free[1].get((name, axis, block)):
            return (
                f"array '{name}' has {count} positions along axis {axis} that belong to no hidden unit "
                f"against {free[1].get((name, axis, block))}"
            )
    return None


def _free(symmetry: Symmetry) -> dict[tuple[str, int, int], int]:
    """Count the positions along every axis of every array (of every block of its rows) where no unit stands."""
    counts = {}
    uses = [use for group in symmetry.groups for use in group.uses]
    for name, _, shape in symmetry.layout.slices():
        blocks = dict.fromkeys(use.rows for use in uses if use.array == name) or {None: None}
        for block, rows in enumerate(blocks):
            for axis, size in enumerate(shape):
                here = [u for u in uses if (u.array, u.axis, u.rows) == (name, axis, rows)]
                length = size if rows is None or axis > 0 else rows[1] - rows[0]
                counts[name, axis, block] = length - sum(use.positions.numel() for use in here)
    return counts
