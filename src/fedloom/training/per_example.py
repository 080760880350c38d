"""Per-example gradients: every sample's own gradient is clipped before any two of them are added.

Two exact ways, between which ``per_example_choice`` chooses:

- ``Ghost``, where everything that is trained lies in linear layers and convolutions. One backward pass gives the
  gradient d_i of every layer's output. The weight gradient of sample i, ``d_i^T a_i``, is not needed for its norm:
  ``|d_i^T a_i|^2 = |d_i|^2 |a_i|^2``, and ``|d_i|^2`` for the bias (Goodfellow 2015, arXiv 1510.01799). Where a weight is
  used at T places of a sample (sequences, images) it is ``sum((a_i a_i^T) * (d_i d_i^T))`` (Li et al. 2022, arXiv
  2110.05679, section 4), or that of the gradient itself where this is smaller (Bu et al. 2022, arXiv 2205.10683, "mixed
  ghost clipping": ``2 T^2`` against the size of the weight). The clipped sum is then one product per layer, with the
  clip factors as weights: ``(c d)^T a``. Nothing is computed that a plain step does not compute, but for the norms.
- ``Mapped``, for every other model that ``torch.func.vmap`` can handle: the gradients themselves, a stretch of the batch
  at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from fedloom.models.model import Model
from fedloom.training.ghost_layers import Part, Rows, parts, rows

MEMORY = 256 * 2**20
"""Bytes that per-example gradients, or what they are made of, may take at a time, roughly."""

_NUMBERS: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = WeakKeyDictionary()


class Gradients(Protocol):
    """Adds up clipped per-example gradients."""

    def add(self, x: Tensor, y: Tensor, clip: float, scale: float, out: Tensor) -> None:
        """Add ``scale * sum_i g_i min(1, clip / |g_i|)`` to ``out``.

        A sample whose gradient is not finite, or has a squared norm beyond float32, counts as zero: it could otherwise
        carry more than ``clip``.

        Args:
            x: Inputs, float32 (B, *input_shape), B >= 0.
            y: Classes, int64 (B,), or their probabilities, float32 (B, n_classes).
            clip: The largest L2 norm of a sample's gradient over all trainable numbers; may be infinite.
            scale: A factor of the sum.
            out: float32 (P_trainable,), in the layout's order.
        """

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the L2 norm of each sample's gradient, float32 (B,)."""

    def listening(self) -> AbstractContextManager[None]:
        """Return a context in which the others may be called."""


class Ghost:
    """Norms before gradients, for models of linear layers and convolutions; see the module's text."""

    def __init__(self, model: Model, memory: int = MEMORY) -> None:
        self.model, self._memory = model, memory
        self._parts = parts(model.module)
        self._seen: list[tuple[Part, Tensor, GradientEdge]] = []
        self._out: Tensor | None = None
        self._views: dict[str, Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the layers while the block runs."""

        def listen(part: Part, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # The edge, not the tensor: what follows may overwrite it, and then it would stand for something else.
            self._seen.append((part, inputs[0].detach(), get_gradient_edge(output)))

        handles = [
            part.module.register_forward_hook(lambda _, inputs, output, part=part: listen(part, inputs, output))
            for part in self._parts
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def add(self, x: Tensor, y: Tensor, clip: float, scale: float, out: Tensor) -> None:
        """See ``Gradients.add``."""
        if self._out is not out:
            self._out, self._views = out, _views(self.model, out)
        size = self._most(x)
        for first in range(0, len(x), size):
            self._add(x[first : first + size], y[first : first + size], clip, scale)

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the L2 norm of each sample's gradient, float32 (B,)."""
        return _square(self._rows(x, y)).sqrt()

    def follows(self, x: Tensor) -> bool:
        """Whether a forward pass runs exactly once through every layer with something to train, and there is one."""
        self._seen.clear()
        self.model.logits(x)
        seen = sorted(part.names for part, _, _ in self._seen)
        return bool(seen) and seen == sorted(part.names for part in self._parts)

    def _add(self, x: Tensor, y: Tensor, clip: float, scale: float) -> None:
        found = self._rows(x, y)
        with torch.no_grad():
            square = _square(found)
            fine = torch.isfinite(square)
            if not bool(fine.all()):
                if bool(fine.any()):
                    self._add(x[fine], y[fine], clip, scale)
                return
            factors = (clip / square.sqrt_()).clamp_(max=1.0).mul_(scale)
            for row in found:
                row.add(factors, self._views.get(row.part.weight), self._views.get(row.part.bias))

    def _rows(self, x: Tensor, y: Tensor) -> list[Rows]:
        self._seen.clear()
        with torch.enable_grad():
            loss = functional.cross_entropy(self.model.logits(x).float(), y, reduction="sum")
        # For the layers' outputs alone: no gradient of a weight is computed on the way.
        slopes = torch.autograd.grad(loss, [edge for _, _, edge in self._seen])
        with torch.no_grad():
            found = [rows(part, a, d) for (part, a, _), d in zip(self._seen, slopes, strict=True)]
        self._seen.clear()
        return found

    def _most(self, x: Tensor) -> int:
        """Return how many samples fit into the memory."""
        known = _NUMBERS.setdefault(self.model.module, {})
        shape = tuple(x.shape[1:])
        if shape not in known and len(x):
            with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
                y = x.new_zeros(1, dtype=torch.int64)
                known[shape] = sum(row.numbers() for row in self._rows(torch.zeros_like(x[:1]), y))
        return max(1, self._memory // (4 * known.get(shape, 1)))


class Mapped:
    """Whole per-example gradients, by ``vmap`` over a function of one sample."""

    def __init__(self, model: Model, memory: int = MEMORY) -> None:
        self.model = model
        self._most = max(1, memory // (12 * max(1, model.layout.trainable)))  # the gradients, and what they come from
        self._run = _Logits(model)
        names = model.layout.names[: model.layout.n_trainable]
        self._names = [f"module.{name}" for name in names]
        self._each = vmap(grad(self._loss), in_dims=(None, 0, 0), randomness="different")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Nothing has to be held."""
        yield

    def add(self, x: Tensor, y: Tensor, clip: float, scale: float, out: Tensor) -> None:
        """See ``Gradients.add``."""
        for first in range(0, len(x), self._most):
            flat = self.each(x[first : first + self._most], y[first : first + self._most])
            square = torch.linalg.vecdot(flat, flat)
            fine = torch.isfinite(square)
            if not bool(fine.all()):
                flat, square = flat[fine], square[fine]
            out.addmv_(flat.T, (clip / square.sqrt()).clamp_(max=1.0).mul_(scale))

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the L2 norm of each sample's gradient, float32 (B,)."""
        norms: Tensor = self.each(x, y).norm(dim=1)
        return norms

    def each(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the samples' gradients, float32 (B, P_trainable)."""
        own = dict(self._run.named_parameters())
        found = self._each({name: own[name].detach() for name in self._names}, x, y)
        return torch.cat([found[name].reshape(len(x), -1) for name in self._names], 1)

    def _loss(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._run, parameters, (x[None],))
        return functional.cross_entropy(logits.float(), y[None])


class _Logits(nn.Module):
    """A model's logits as a module's output, for ``functional_call``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.module = model.module
        self._logits = model.logits

    def forward(self, x: Tensor) -> Tensor:
        return self._logits(x)


def _square(found: list[Rows]) -> Tensor:
    square = found[0].square()
    for row in found[1:]:
        square += row.square()
    return square


def _views(model: Model, flat: Tensor) -> dict[str, Tensor]:
    rows_ = zip(model.layout.slices(), range(model.layout.n_trainable), strict=False)
    return {name: flat[where].view(shape) for (name, where, shape), _ in rows_}
