"""Which way to per-example gradients a model takes; models without such gradients are refused, with the reason.

Every model is tried once, on random samples: what ``Chain`` or ``Ghost`` says must be what autograd says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fedloom.errors import UsageError
from fedloom.models.keras_slow import KerasModule
from fedloom.models.layers.normalisation import BatchNorm
from fedloom.models.model import Model
from fedloom.training.dense_chain import Chain
from fedloom.training.local import dropout_seed
from fedloom.training.per_example import MEMORY, Ghost, Gradients, Mapped
from fedloom.training.plans.batched import mixes

_MIXING = (BatchNorm, _BatchNorm)
_CHOSEN: WeakKeyDictionary[nn.Module, type[Ghost] | type[Mapped] | str] = WeakKeyDictionary()


def gradients(model: Model, memory: int = MEMORY) -> Gradients:
    """Choose how a model's per-example gradients are computed; it depends on the model alone.

    Args:
        model: The model; it is put into training mode.
        memory: The bytes that may be taken at a time.

    Raises:
        UsageError: A sample's output depends on the others of its batch, so that it has no gradient of its own; or
            neither way can follow the model.
    """
    model.module.train()
    if model.module not in _CHOSEN:
        _CHOSEN[model.module] = _choose(model)
    chosen = _CHOSEN[model.module]
    if isinstance(chosen, str):
        raise UsageError(chosen)
    return chosen(model, memory)


def _choose(model: Model) -> type[Ghost] | type[Mapped] | str:
    """Choose the way of a model, or say why there is none; the model is left as it was."""
    model.require_runnable("training with per-example privacy")
    if isinstance(model.module, KerasModule):
        return "per-example privacy needs every sample's own gradient, and this model runs through Keras itself"
    with _tried(model) as (x, y):
        why = _mixing(model, x)
        if why:
            return why
        exact = (way for way in (Chain, Ghost) if _agrees(way(model), x, y))
        return next(exact, None) or _mappable(model, x, y)


@contextmanager
def _tried(model: Model) -> Iterator[tuple[Tensor, Tensor]]:
    """Move a model's weights a little (where a last layer is zero nothing would show) and lend it random samples."""
    before, chance = model.vector(), torch.Generator().manual_seed(0)
    buffers = [(b, b.clone()) for b in model.module.buffers()]
    shape, device, head = [abs(n) for n in model.input_shape], before.device, model.layout.trainable
    x = torch.rand(3, *shape, generator=chance).mul_(model.input_high or 1.0).to(device)
    moved = before.clone()
    moved[:head] += 0.05 * torch.randn(head, generator=chance).to(device)
    model.load(moved)
    try:
        with dropout_seed(0, "per-example", 0, device):
            yield x, torch.arange(3, device=device) % max(2, model.n_classes)
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        model.load(before)


def _mixing(model: Model, x: Tensor) -> str:
    """Say which layers look at other samples, or keep something of them; empty when none does."""
    mixed = mixes(model)
    before = {name: b.clone() for name, b in model.module.named_buffers()}
    with torch.no_grad():
        model.logits(x)
    changed = {name.rpartition(".")[0] for name, b in model.module.named_buffers() if not torch.equal(b, before[name])}
    if not mixed and not changed:
        return ""
    named = model.module.named_modules()
    layers = [f"'{name}' ({type(m).__name__})" for name, m in named if name in changed or isinstance(m, _MIXING)]
    which = f"layer {', '.join(layers)}" if layers else "a layer of this model"
    return (
        f"{which} looks at the whole batch in training, or keeps statistics of it: a sample then has no gradient of its "
        "own that could be clipped. Use a model without (LayerNorm and GroupNorm are fine), or freeze the layer"
    )


def _agrees(ghost: Ghost, x: Tensor, y: Tensor) -> bool:
    """Whether a way can follow its model: every layer runs once, and clipped sums are those of autograd."""
    model = ghost.model
    out = torch.zeros(model.layout.trainable, device=x.device)
    try:
        with ghost.listening():
            if not ghost.follows(x):
                return False
            with dropout_seed(0, "per-example", 1, x.device):
                each = _one_by_one(model, x, y)
            norms = each.norm(dim=1)
            clip = float(norms.median())
            with dropout_seed(0, "per-example", 1, x.device):
                ghost.add(x, y, clip, 1.0, out)
    except RuntimeError:
        return False
    expected = each.T @ (clip / norms).clamp(max=1.0)
    return torch.allclose(out, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _one_by_one(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradients of a few samples by autograd, float32 (B, P_trainable)."""
    own = dict(model.module.named_parameters())
    trained = [own[name] for name in model.layout.names[: model.layout.n_trainable]]
    losses = functional.cross_entropy(model.logits(x).float(), y, reduction="none")
    rows = [torch.autograd.grad(loss, trained, retain_graph=True, materialize_grads=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def _mappable(model: Model, x: Tensor, y: Tensor) -> type[Mapped] | str:
    """Return ``Mapped``, or say why it cannot follow a model."""
    try:
        Mapped(model).each(x, y)
    except (RuntimeError, ValueError) as error:
        return f"this model's per-example gradients cannot be computed (torch.func.vmap): {str(error).splitlines()[0]}"
    return Mapped
