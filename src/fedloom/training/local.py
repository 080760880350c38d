"""THE local training step.

A client starts from a vector and takes SGD, Adam or AdamW steps on its own samples. The trainable parameters are
bound to one flat tensor, and so are their gradients: the optimiser, the proximal pull and the drift are single
operations on whole vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fedloom import rng
from fedloom.errors import ArchitectureError, DataError, TrainingError, UsageError, unknown
from fedloom.models.model import Model
from fedloom.records import Correction
from fedloom.training.shard import Shard
from fedloom.training.threads import enough_threads

OPTIMIZERS = ("sgd", "adam", "adamw")
PRECISIONS = ("float32", "bfloat16", "auto")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class LocalConfig:
    """What a client does between two merges.

    Attributes:
        epochs: Passes over its samples, >= 1.
        batch_size: Samples per step; 0 means all of them in one step.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        lr: Learning rate, > 0.
        momentum: Of SGD, in [0, 1).
        weight_decay: L2 (SGD, Adam) or decoupled (AdamW, Loshchilov and Hutter 2019), >= 0.
        precision: ``"float32"``; ``"bfloat16"`` for autocast; or ``"auto"``, which ``planner.choose`` replaces by
            whichever of the two it finds faster: nothing trains before.
        schedule: ``"constant"``, or ``"cosine"``: the learning rate falls to 0 along half a cosine over all steps
            (Loshchilov and Hutter 2017, equation 5, without restarts).
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    precision: str = "float32"
    schedule: str = "constant"

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            UsageError: A value outside its range; the message names it.
        """
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        rules = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 0, "at least 1, or 0 for all samples at once"),
            ("lr", 0 < self.lr < math.inf, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to below 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
        ]
        for name, fine, range_ in rules:
            if not fine:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {range_}")
        if self.momentum and self.optimizer != "sgd":
            raise UsageError(f"momentum belongs to sgd; {self.optimizer} has its own: leave it out")

    @property
    def half(self) -> bool:
        """Whether layers run in bfloat16.

        Raises:
            UsageError: Nobody has chosen yet.
        """
        if self.precision == "auto":
            raise UsageError("precision 'auto' is for simulate, which times both: choose float32 or bfloat16 here")
        return self.precision == "bfloat16"

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON-able data."""
        return asdict(self)


class Trainer:
    """One client's training, epoch by epoch, so that it can be shown, stopped and resumed.

    Every epoch draws its order and its dropout from ``(seed, shard.name, epoch)``: resuming after epoch k gives the
    same bits as going on.

    Args:
        model: Lends its module, whose trainable parameters become views of one flat tensor: until training is over
            no second trainer may take it, and it may not be moved. It is moved to the shard's device here.
        start: Where training starts and the proximal term pulls to, float32 (P,), on any device.
        shard: The client's samples.
        config: How to train.
        correction: What the algorithm adds to every gradient; its drift may be on any device.
        seed: Of batch orders and dropout.
        channels_last: Whether images go in with their channels as the fastest axis of memory.

    Raises:
        DataError: The shard is empty.
        ArchitectureError: The start or the drift has another length than the model.
        UsageError: The precision is still to be chosen.
    """

    def __init__(
        self,
        model: Model,
        start: torch.Tensor,
        shard: Shard,
        config: LocalConfig,
        correction: Correction | None = None,
        seed: int = 0,
        channels_last: bool = False,
    ) -> None:
        if not len(shard):
            raise DataError(f"{shard.name}: there is not one sample to train on", client=shard.name)
        self.model, self.shard, self.config, self.seed = model, shard, config, seed
        self.correction = correction or Correction()
        self._channels_last, self._half = channels_last, config.half
        device, head = shard.x.device, model.layout.trainable
        correct, size = self.correction, model.layout.size
        self._drift = fitting("a drift", correct.drift, head, device)
        anchor = fitting("an anchor", correct.anchor, head, device)
        self._mask = fitting("a mask", correct.mask, size, device)
        model.to(device).load(start)
        self._flat = nn.Parameter(start[:head].detach().to(device, copy=True))
        self._flat.grad = torch.zeros_like(self._flat)
        self._start = self._flat.detach().clone() if correct.pull or self._mask is not None else None
        self._whole = start.detach().to(device, copy=True) if self._mask is not None else None
        self._anchor = None if not correct.pull else self._start if anchor is None else anchor
        self._bind()
        self._optimizer = _optimizer(self._flat, config)
        self.steps = 0
        self.epoch = 0

    def run_epoch(self, on_batch: Callable[[int], None] | None = None) -> dict[str, float]:
        """Train one epoch.

        Args:
            on_batch: Called with the number of samples of each batch, for progress bars.

        Returns:
            ``loss`` (mean cross-entropy in nats, without penalties) and ``accuracy`` (0-1) over the epoch.

        Raises:
            TrainingError: The loss or the weights are not finite.
        """
        self.epoch += 1
        n, size = len(self.shard), self.config.batch_size or len(self.shard)
        order = torch.from_numpy(rng.stream(self.seed, "batches", self.shard.name, self.epoch).permutation(n))
        order = order.to(self.shard.x.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=order.device)
        hits = torch.zeros((), dtype=torch.int64, device=order.device)
        self.model.module.train()
        chance = dropout_seed(self.seed, self.shard.name, self.epoch, order.device)
        with chance, enough_threads(self.model, min(n, size), backward=True):
            for first in range(0, n, size):
                index = order[first : first + size]
                loss, right = self._step(index)
                loss_sum += loss.double() * len(index)
                hits += right
                if on_batch is not None:
                    on_batch(len(index))
        mean = float(loss_sum) / n
        if not math.isfinite(mean) or not bool(torch.isfinite(self._flat).all()):
            what = f"the loss became {mean}" if not math.isfinite(mean) else "the weights grew beyond float32"
            raise TrainingError(
                f"{self.shard.name}: {what} in epoch {self.epoch}: use a lower --lr (now {self.config.lr})",
                client=self.shard.name,
                epoch=self.epoch,
            )
        return {"loss": mean, "accuracy": int(hits) / n}

    def vector(self) -> torch.Tensor:
        """Return the present weights, float32 (P,)."""
        vector = self.model.vector()
        return vector if self._mask is None or self._whole is None else torch.where(self._mask, vector, self._whole)

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of everything that resuming needs, as named tensors."""
        inner = self._optimizer.state_dict()["state"].get(0, {})
        tensors = {f"optimizer.{k}": torch.as_tensor(v).clone() for k, v in inner.items() if v is not None}
        return {"vector": self.vector(), "progress": torch.tensor([self.epoch, self.steps]), **tensors}

    def resume(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what ``state`` returned, on any device; the tensors given are not changed later."""
        self.model.load(state["vector"])
        self.epoch, self.steps = (int(v) for v in state["progress"])
        inner = {k.removeprefix("optimizer."): v.clone() for k, v in state.items() if k.startswith("optimizer.")}
        whole = self._optimizer.state_dict()
        whole["state"] = {0: inner} if inner else {}
        self._optimizer.load_state_dict(whole)

    def _bind(self) -> None:
        """Make the module's trainable parameters and their gradients views of the flat ones."""
        grad = self._flat.grad
        parameters = dict(self.model.module.named_parameters())
        layout = self.model.layout
        for (name, where, shape), _ in zip(layout.slices(), range(layout.n_trainable), strict=False):
            parameters[name].data = self._flat.data[where].view(shape)
            parameters[name].grad = None if grad is None else grad[where].view(shape)

    def _step(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one optimiser step; returns the batch's mean loss and its number of hits."""
        x, y = self.shard.inputs(index), self.shard.y[index]
        x = channels_last(x) if self._channels_last else x
        grad = self._flat.grad
        assert grad is not None
        grad.zero_()
        with torch.autocast(x.device.type, dtype=torch.bfloat16) if self._half else nullcontext():
            logits = self.model.logits(x)
        logits = logits.float()
        loss = functional.cross_entropy(logits, y)
        penalty = getattr(self.model.module, "regularization", lambda: None)()
        (loss if penalty is None else loss + penalty).backward()
        self._move(grad)
        truth = y if y.dim() == 1 else y.argmax(1)
        return loss.detach(), (logits.detach().argmax(1) == truth).sum()

    def _move(self, grad: torch.Tensor) -> None:
        """Correct the loss's gradient and take the optimiser's step with it."""
        with torch.no_grad():
            if self._anchor is not None:
                grad.add_(self._flat - self._anchor, alpha=self.correction.pull)
            if self._drift is not None:
                grad.add_(self._drift)
        if self.config.schedule == "cosine":
            self._optimizer.param_groups[0]["lr"] = self._cosine()
        self._optimizer.step()
        if self._mask is not None and self._start is not None:
            with torch.no_grad():
                self._flat.copy_(torch.where(self._mask[: len(self._flat)], self._flat, self._start))
        self.steps += 1

    def _cosine(self) -> float:
        """Return the learning rate of the present step."""
        per_epoch = math.ceil(len(self.shard) / (self.config.batch_size or len(self.shard)))
        done = min(self.steps / (self.config.epochs * per_epoch), 1.0)
        return self.config.lr * (1 + math.cos(math.pi * done)) / 2


@contextmanager
def dropout_seed(seed: int, name: str, epoch: int, device: torch.device) -> Iterator[None]:
    """Give PyTorch's generator the state that belongs to a client's epoch while the block runs."""
    number = rng.derive(seed, "dropout", name, epoch)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.manual_seed(number)
        else:
            # torch.manual_seed would queue a call for a GPU that is not there, each time, with a stack trace.
            torch.default_generator.manual_seed(number)
        yield


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return images (B, C, H, W) with the channels as the fastest axis of memory; other inputs as they are."""
    if x.dim() != 4:
        return x
    # Not contiguous(memory_format=...): with one channel it would leave strides that convolutions read as channels first.
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def fitting(what: str, vector: torch.Tensor | None, size: int, device: torch.device) -> torch.Tensor | None:
    """Return a correction's vector on ``device``; raises ArchitectureError when its length is not ``size``."""
    if vector is None or tuple(vector.shape) == (size,):
        return None if vector is None else vector.to(device)
    raise ArchitectureError(
        f"{what} of shape {tuple(vector.shape)} does not fit a model with {size} numbers there",
        expected=(size,),
        found=tuple(vector.shape),
    )


def _optimizer(flat: nn.Parameter, config: LocalConfig) -> torch.optim.Optimizer:
    decay, fused = config.weight_decay, flat.device.type in {"cpu", "cuda"}
    if config.optimizer == "sgd":
        return torch.optim.SGD([flat], lr=config.lr, momentum=config.momentum, weight_decay=decay, fused=fused)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    # Keras and PyTorch differ in epsilon (1e-7 and 1e-8); the effect is far below that of the seed.
    return kind([flat], lr=config.lr, weight_decay=decay, fused=fused)
