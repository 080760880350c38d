"""RegMean: every layer as near as possible to what each member's layer does to its own inputs.

X. Jin, X. Ren, D. Preotiuc-Pietro and P. Cheng, "Dataless Knowledge Fusion by Merging Weights of Language Models",
2022. A layer's merged weights minimise ``sum_i |X_i W - X_i W_i|^2`` over the members i, where X_i (m, d) are the
inputs that the layer gets inside member i; in closed form (eq. 2, and section 3.3 for the shrinkage)

    W = (sum_i G_i)^-1 sum_i G_i W_i,    G_i = alpha X_i^T X_i + (1 - alpha) diag(X_i^T X_i).

With alpha = 0 this is a mean per input, weighted by the input's mean square; biases and all other arrays are averaged.

Deviations: convolutions take part, an input being the patch under the kernel at some positions of each image; of a
separable convolution both kernels are averaged, of a layer that is used twice the first use counts. It is solved for
the difference to the mean, with a trace of the identity added, so that inputs that never vary from 0 keep the mean.
A kernel in front of a BatchNorm enters divided by the members' own standard deviations, and leaves multiplied by the
averaged one: its raw size says nothing there. The members' units must have been matched, since a common W only makes
sense for inputs in a common order. BatchNorm statistics are averaged: use :func:`fedloom.align.fusion.recalibrate` on
the result.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from fedloom.align import stages as st
from fedloom.align.stages import inputs_of
from fedloom.align.symmetry.graph import Symmetry
from fedloom.align.symmetry.trace import run
from fedloom.errors import MergeError, UsageError
from fedloom.models.model import Model

__all__ = ["ALPHA", "regmean"]

ALPHA = 0.9
"""What the products of different inputs are multiplied by (the paper's choice for most models)."""

_JITTER = 1e-6  # of the mean square of an input


def regmean(
    model: Model, symmetry: Symmetry, rows: Sequence[Tensor], sampled: st.Sample, alpha: float = ALPHA
) -> Tensor:
    """Merge aligned members by RegMean.

    Args:
        model: Runs the members one after another; it gets its own arrays back.
        symmetry: Of the model.
        rows: The members' aligned vectors, each (P,), at least one.
        sampled: The inputs, without labels, and the positions that are looked at.
        alpha: Between 0 (inputs taken as unrelated) and 1 (the products as they are).

    Returns:
        float32 (P,).

    Raises:
        MergeError: There are no members, or one whose values are not finite; the message gives its number.
        UsageError: ``alpha`` is not between 0 and 1.
    """
    if not rows:
        raise MergeError("RegMean needs at least one member: none was given")
    if not 0.0 <= alpha <= 1.0:
        raise UsageError(f"RegMean's alpha is {alpha}: it must be between 0 and 1")
    layout, own = symmetry.layout, model.vector()
    merged = torch.stack(list(rows)).mean(0)
    members, views = [_scaled(symmetry, row, -1) for row in rows], layout.unpack(merged)
    prior = {name: torch.stack([member[name] for member in members]).mean(0) for name in layout.names}
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    try:
        for i, row in enumerate(rows):
            for name, gram in _grams(model.load(row), symmetry, sampled).items():
                if not bool(gram.isfinite().all()):
                    raise MergeError(f"member {i + 1} gives values that are not finite at '{name}': leave it out")
                products = gram.diagonal(dim1=1, dim2=2).clone()
                shrunk = gram.mul_(alpha)
                shrunk.diagonal(dim1=1, dim2=2).copy_(products)
                moved = _blocks(members[i][name] - prior[name], shrunk) @ shrunk
                left[name] = left[name] + shrunk if name in left else shrunk
                right[name] = right[name] + moved if name in right else moved
    finally:
        model.load(own)
    for name, gram in left.items():
        views[name].copy_(prior[name] + _solve(gram, right[name]).reshape(views[name].shape))
    return layout.pack(_scaled(symmetry, merged, 1, set(left)))


def _scaled(symmetry: Symmetry, row: Tensor, power: int, kept: Collection[str] | None = None) -> dict[str, Tensor]:
    """Multiply the kernels (those of ``kept``) in front of a BatchNorm by its running deviation to a power, per unit."""
    traced, arrays = symmetry.trace, symmetry.layout.unpack(row.clone())
    for stage in st.stages(traced):
        norm, step = st.norm_of(traced, stage), traced.steps[stage.step]
        if norm is None or stage.norm is None or step.op.startswith("Separable"):
            continue
        name = traced.array(step, "weight")
        if kept is None or name in kept:
            epsilon = float(getattr(norm, "eps" if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) else "epsilon"))
            variance = arrays[traced.array(traced.steps[stage.norm], "running_var")]
            rows = (len(variance), *[1] * (arrays[name].dim() - 1))
            arrays[name].mul_((variance + epsilon).sqrt().pow(power).reshape(rows))
    return arrays


def _grams(model: Model, symmetry: Symmetry, sampled: st.Sample) -> dict[str, Tensor]:
    """Return ``X^T X`` (groups, d, d) of every layer's inputs, by the name of its kernel."""
    model.module.eval()
    traced = symmetry.trace
    found = {stage.step: stage for stage in st.stages(traced)}
    grams: dict[str, Tensor] = {}

    for first in range(0, len(sampled.x), st.BATCH):
        part = slice(first, first + st.BATCH)
        batch = st.Sample(sampled.x[part], {value: places[part] for value, places in sampled.places.items()})

        def ahead(i: int, taken: list[Tensor], batch: st.Sample = batch) -> None:
            inputs = inputs_of(traced, found[i], batch, taken[0]) if i in found else None
            if inputs is not None:
                name = traced.array(traced.steps[i], "weight")
                columns = inputs.transpose(0, 1)
                gram = columns.transpose(1, 2) @ columns
                grams[name] = grams[name].add_(gram) if name in grams else gram

        for _ in run(traced, batch.x, ahead):
            pass
    return grams


def _blocks(weight: Tensor, gram: Tensor) -> Tensor:
    """Return a kernel as (groups, units of a group, d)."""
    return weight.reshape(len(gram), -1, gram.shape[2])


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Return ``right @ gram^-1``, (groups, units, d), in double precision."""
    wide = gram.double()
    diagonal = wide.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(1, keepdim=True)
    diagonal.add_(torch.where(scale > 0, _JITTER * scale, 1.0))
    solved: Tensor = torch.linalg.solve(wide, right.double().transpose(1, 2))
    return solved.transpose(1, 2).float()
