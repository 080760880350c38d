"""Gradient inversion: from the update of one client back to the samples that it was computed from.

- ``client_update``: what a client really sends after one step of SGD, by fedloom's own trainer;
- ``analytic``: a first fully connected layer gives its input away by a division (Phong et al. 2018, section 3; Fowl et
  al. 2022, section 3);
- ``labels_of``: so does the last bias with the labels (Zhao et al. 2020, section 3.2);
- ``invert``: for any other model, pictures are moved until their gradient points where the update does (Zhu et al. 2019,
  "Deep Leakage from Gradients"; Geiping et al. 2020, "Inverting Gradients", equation 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedloom import rng
from fedloom.errors import DataError, UsageError
from fedloom.layout import Layout
from fedloom.models.layers.noise import BroadcastDropout, Noise
from fedloom.models.model import Model
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard
from fedloom.training.threads import enough_threads

TRIAL = 8
"""Every start is followed for one eighth of the steps; then the search goes on from the best of them."""

_CUTS = (3 / 8, 5 / 8, 7 / 8)
_LEAST = 1e-12
_PIXELS = 28 * 28


@dataclass(frozen=True)
class Effort:
    """How hard the attacker tries.

    Attributes:
        steps: Steps of the search, >= 1.
        starts: Random pictures to begin with, >= 1.
        smooth: The weight of the total variation, >= 0, for pictures of 28 x 28 pixels (Geiping et al. write alpha):
            pictures are smooth, noise is not. Neighbours differ more in smaller pictures, so that it counts less there.
        lr: The first step size of Adam, as a share of the range of a pixel; it falls to a tenth three times.
    """

    steps: int = 1000
    starts: int = 6
    smooth: float = 0.1
    lr: float = 0.1

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: A value outside its range; the message names it.
        """
        rules = [("steps", 1), ("starts", 1), ("smooth", 0), ("lr", 0)]
        for name, least in rules:
            if not least <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {least} or more")

    @property
    def total(self) -> int:
        """How many steps ``invert`` takes, for a progress bar."""
        return self.steps + (self.starts - 1) * (self.steps // TRIAL)


def client_update(model: Model, start: Tensor, shard: Shard, lr: float = 0.1, seed: int = 0) -> Tensor:
    """Return the update that a client sends after one step of SGD on all of its samples.

    Args:
        model: Lends its module; it has the start's weights again afterwards.
        start: The global model, float32 (P,).
        shard: The client's samples.
        lr: The learning rate, which the server knows.
        seed: Of dropout.

    Returns:
        ``w_after - w_before``, float32 (P,).
    """
    trainer = Trainer(model, start, shard, LocalConfig(batch_size=0, lr=lr), seed=seed)
    trainer.run_epoch()
    delta = trainer.vector() - start
    model.load(start)
    return delta


def gradient_of(update: Tensor, lr: float, layout: Layout) -> Tensor:
    """Return the gradient behind the update of one step, ``-update / lr``: float32 (P of the trainable part,)."""
    layout.check(update)
    return update[: layout.trainable] / -lr


def analytic(layout: Layout, gradient: Tensor, input_shape: Sequence[int]) -> Tensor | None:
    """Read the inputs off the gradient of a first fully connected layer, without any search.

    For ``z = W x + b`` the chain rule gives ``dL/dW_i = dL/dz_i x`` and ``dL/db_i = dL/dz_i``, so that the quotient of row
    i and entry i is x itself where one sample moved unit i, and a weighted mean of samples where several did. The first
    picture is the least-squares one over all units, ``sum_i db_i dW_i / sum_i db_i^2``: the best one for a single sample.

    Source: Phong et al. 2018, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", section 3.

    Args:
        layout: Of the model.
        gradient: float32 (trainable part of P,).
        input_shape: Of one sample, as the model takes it.

    Returns:
        Candidates, float32 (1 + k, *input_shape), k units of which are alive; None when the model does not begin with a
        fully connected layer that has a bias.
    """
    size = math.prod(input_shape)
    views = [(gradient[where], shape) for _, where, shape in layout.slices()][: layout.n_trainable]
    if len(views) < 2 or views[0][1] != (views[1][1][0], size) or len(views[1][1]) != 1:
        return None
    rows, bias = views[0][0].view(-1, size).double(), views[1][0].double()
    alive = bias.abs() > 1e-6 * bias.abs().max().clamp_min(_LEAST)
    best = (bias @ rows) / bias.square().sum().clamp_min(_LEAST)
    found = torch.cat([best[None], rows[alive] / bias[alive, None]])
    return found.float().view(-1, *input_shape)


def labels_of(model: Model, start: Tensor, gradient: Tensor, count: int, seed: int = 0) -> Tensor:
    """Read the labels off the gradient of the last layer's bias.

    With softmax and cross-entropy that gradient is ``mean_j (p_jc - [y_j = c])`` for class c. Of one sample only the true
    class has a negative entry (Zhao et al. 2020, "iDLG", equation 4). Of several, ``n (p_c - g_c)`` estimates how often c
    occurs, where p is what the model says of random pictures (after Wainakh et al. 2022, "LLG").

    Args:
        model: The model; it has the start's weights afterwards.
        start: float32 (P,).
        gradient: float32 (trainable part of P,).
        count: How many samples there are.
        seed: Of the random pictures.

    Returns:
        The labels, int64 (count,), ascending.

    Raises:
        UsageError: The model has no bias in its last layer.
    """
    layout = model.layout
    last = layout.shapes[layout.n_trainable - 1] if layout.n_trainable else ()
    if last != (model.n_classes,):
        raise UsageError(f"labels are read off the last layer's bias, and the last array here has the shape {last}")
    model.load(start).module.eval()
    with torch.no_grad():
        said = model.logits(_random(model, 32, seed, "labels")).softmax(1).mean(0)
    left = count * (said - gradient[-model.n_classes :])
    found = []
    for _ in range(count):
        found.append(int(left.argmax()))
        left[found[-1]] -= 1
    return torch.tensor(sorted(found))


@dataclass
class _Search:
    """Pictures on their way, and the best that they have been."""

    x: nn.Parameter
    optimizer: torch.optim.Optimizer
    best: Tensor
    cost: float = math.inf
    done: int = field(default=0)


def invert(
    model: Model,
    start: Tensor,
    gradient: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    known: Tensor | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Search for pictures whose gradient points where the one that was seen does.

    Minimises ``1 - <g(x), g> / (|g(x)| |g|) + alpha TV(x)`` over pictures x within their range, by Adam on the sign of the
    slope (Geiping et al. 2020, equation 4 and section 5). The cosine does not see how long g is: clipping hides nothing.
    Where the client used dropout the attacker does without.

    Args:
        model: The model, which the server has; it has the start's weights afterwards.
        start: What the client started from, float32 (P,).
        gradient: What was seen, float32 (trainable part of P,).
        labels: The labels, int64 (n,); the attacker is told them, or has them from ``labels_of``.
        weights: What each sample counts in the client's mean, float32 (n,), adding up to 1; alike when left out.
        known: Which numbers of the gradient were sent, bool of its shape; all when left out.
        effort: How hard to try.
        seed: Of the random starts.
        on_step: Called after every step.

    Returns:
        Pictures, float32 (n, *input_shape) on the scale of the model's inputs, in the order of ``labels``.

    Raises:
        DataError: The gradient is zero or not finite, so that it points nowhere.
    """
    effort = effort or Effort()
    size = float(gradient.norm())
    if not 0 < size < math.inf:
        raise DataError(f"a gradient of norm {size} points nowhere: there is nothing to invert")
    model.load(start).module.train()
    for module in model.module.modules():
        if isinstance(module, Noise | BroadcastDropout | nn.modules.dropout._DropoutNd):
            module.eval()
    kept = torch.ones_like(gradient) if known is None else known.to(gradient.dtype)
    target = (gradient * kept) / (gradient * kept).norm().clamp_min(_LEAST)
    share = torch.full((len(labels),), 1 / len(labels)) if weights is None else weights
    cost = _cost(model, target, kept, labels, share, effort.smooth)
    searches = [_begin(model, len(labels), effort, seed, i) for i in range(effort.starts)]
    with enough_threads(model, len(labels), backward=True):
        trial = effort.steps // TRIAL if effort.starts > 1 else 0
        for search in searches:
            _descend(search, cost, trial, effort, model, on_step)
        best = min(searches, key=lambda search: search.cost)
        _descend(best, cost, effort.steps - trial, effort, model, on_step)
    model.load(start).module.eval()
    return best.best


def _cost(
    model: Model, target: Tensor, kept: Tensor, labels: Tensor, share: Tensor, smooth: float
) -> Callable[[Tensor], Tensor]:
    """Return the function that the attacker minimises."""
    layout, high = model.layout, model.input_high or 1.0
    smooth = smooth * min(1.0, math.prod(model.input_shape[:2]) / _PIXELS)
    named = dict(model.module.named_parameters())
    parameters = [named[name] for name in layout.names[: layout.n_trainable]]

    def cost(x: Tensor) -> Tensor:
        losses = functional.cross_entropy(model.logits(x).float(), labels, reduction="none")
        penalty = getattr(model.module, "regularization", lambda: None)()
        loss = (losses * share).sum() if penalty is None else (losses * share).sum() + penalty
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        mine = torch.cat([slope.reshape(-1) for slope in slopes]) * kept
        angle: Tensor = 1 - (mine @ target) / mine.norm().clamp_min(_LEAST)
        return angle + smooth * total_variation(x / high)

    return cost


def total_variation(x: Tensor) -> Tensor:
    """Return the mean difference of neighbouring pixels: of images (n, H, W) or (n, H, W, C), or of lines (n, d)."""
    axes = (1, 2) if x.dim() > 2 else (1,)
    return torch.stack([x.diff(dim=axis).abs().mean() for axis in axes]).sum()


def _begin(model: Model, count: int, effort: Effort, seed: int, number: int) -> _Search:
    x = nn.Parameter(_random(model, count, seed, f"start {number}"))
    optimizer = torch.optim.Adam([x], lr=effort.lr * (model.input_high or 1.0))
    return _Search(x, optimizer, x.detach().clone())


def _descend(
    search: _Search,
    cost: Callable[[Tensor], Tensor],
    steps: int,
    effort: Effort,
    model: Model,
    on_step: Callable[[], None] | None,
) -> None:
    """Take steps, and remember the best pictures."""
    high = model.input_high or 1.0
    for _ in range(steps):
        value = cost(search.x)
        found = float(value.detach())
        if found < search.cost:
            search.cost, search.best = found, search.x.detach().clone()
        search.x.grad = torch.autograd.grad(value, search.x)[0].sign()
        cuts = sum(search.done >= cut * effort.steps for cut in _CUTS)
        search.optimizer.param_groups[0]["lr"] = effort.lr * high * 0.1**cuts
        search.optimizer.step()
        with torch.no_grad():
            search.x.clamp_(0.0, high)
        search.done += 1
        if on_step is not None:
            on_step()


def _random(model: Model, count: int, seed: int, name: str) -> Tensor:
    chance = rng.stream(seed, "inversion", name).random((count, *model.input_shape), dtype="float32")
    return torch.from_numpy(chance) * (model.input_high or 1.0)
