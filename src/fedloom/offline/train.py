"""Train: one member trains the shared model on its own data and writes the file that it sends back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fedloom import files
from fedloom.errors import DataError, ModelError, UsageError
from fedloom.metrics import Counts
from fedloom.models import io, sidecar
from fedloom.models.model import Model, device
from fedloom.models.sidecar import Sidecar
from fedloom.offline import member as members
from fedloom.offline.fit import fit, forget
from fedloom.offline.member import Member
from fedloom.records import Correction
from fedloom.report import learning_curves, save_png, svg
from fedloom.report.tables import text_html
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.shard import Shard


@dataclass(frozen=True)
class Trained:
    """What ``train`` made.

    Attributes:
        path: The model file.
        sidecar: What stands in the JSON beside it.
        counts: The model's counts on the shared test set.
        model: The model itself.
        class_names: The classes.
        notes: What the member should know, in words.
    """

    path: Path
    sidecar: Sidecar
    counts: Counts
    model: Model
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Accuracy on the shared test set, 0-1."""
        return self.counts.accuracy

    @property
    def report(self) -> str:
        """scikit-learn's classification report on the shared test set."""
        return self.counts.report_text(self.class_names)

    def _repr_html_(self) -> str:
        known = self.sidecar
        head = f"{known.client}: test accuracy {self.accuracy:.2%} after {known.samples:,} samples and {known.steps:,} steps"
        lines = [f"{head}: {self.path}", *(f"note: {note}" for note in self.notes), "", self.report]
        figure = learning_curves({known.client: list(known.history)})
        return text_html("\n".join(lines)) + svg(figure, "learning curves")


def train(
    folder: str | Path,
    epochs: int = 5,
    optimizer: str = "adam",
    lr: float = 1e-3,
    batch_size: int = 32,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    precision: str = "float32",
    prox_mu: float = 0.0,
    fresh_start: bool = False,
    model: str | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    device_name: str | None = None,
    progress: bool = True,
) -> Trained:
    """Train on one member's data only, from the shared start.

    Writes the model file, its sidecar, the learning curves (PNG) and the classification report (text). An interrupted
    call keeps its last whole epoch: the same call goes on from there.

    Args:
        folder: A folder that ``split`` made.
        epochs: Passes over the member's samples.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        lr: Learning rate.
        batch_size: Samples per step; 0 means all.
        momentum: Of SGD.
        weight_decay: L2, or decoupled for AdamW.
        precision: ``float32``, or ``bfloat16`` where the processor has it.
        prox_mu: Strength of FedProx's pull to the start (Li et al. 2020, eq. 2), >= 0.
        fresh_start: Start from random weights of the member's own; such models cannot be averaged.
        model: The code of the model (``file.py:function``) when the start is a PyTorch state dict.
        out: The model file; ``FOLDER/NAME.keras`` (or the start's own format) when left out.
        seed: Of batch orders and dropout; the split's when left out.
        device_name: ``cpu``, ``cuda``; a GPU when there is one.
        progress: Show a progress bar.

    Returns:
        The model file, its sidecar and the counts on the test set.

    Raises:
        DataError: Files that are missing, damaged, empty or do not fit.
        TrainingError: The loss is not finite.
    """
    folder = Path(folder)
    member = members.read(folder)
    config = LocalConfig(epochs, batch_size, optimizer, lr, momentum, weight_decay, precision)
    seed = member.seed if seed is None else seed
    net, start, notes = _start(folder, member, model, fresh_start, seed)
    path = Path(out) if out else folder / f"{member.client}{Path(member.start).suffix}"
    io.check_format(net, path)
    where = device(device_name)
    net.to(where)
    own = Shard.of(member.load(folder, "train"), net, member.client, where)
    test = Shard.of(member.load(folder, "test"), net, "the shared test set", where)
    trainer = Trainer(net, start.to(where), own, config, Correction(pull=_checked_mu(prox_mu)), seed)
    settings = {**config.to_json(), "prox_mu": prox_mu}
    identity = {**settings, "seed": seed, "start": sidecar.digest(start), "data": dict(member.checksums)}
    history, counts = fit(trainer, test, path, identity, progress)
    net.to(torch.device("cpu"))
    record = Sidecar(
        model=net.describe(),
        client=member.client,
        samples=len(own),
        steps=trainer.steps,
        local=settings,
        seed=seed,
        start=sidecar.digest(start),
        round=member.round,
        metrics=_metrics(history, counts),
        history=tuple(history),
        class_names=member.class_names,
        class_counts=tuple(np.bincount(own.y.cpu().numpy(), minlength=len(member.class_names)).tolist()),
    )
    _write(path, net, record, counts)
    forget(path)
    return Trained(path, record, counts, net, member.class_names, notes)


def _start(
    folder: Path, member: Member, reference: str | None, fresh: bool, seed: int
) -> tuple[Model, torch.Tensor, tuple[str, ...]]:
    """Load the shared start, or draw a fresh one; the vector that training starts from comes with it."""
    net = io.load(folder / member.start, reference)
    net.require_runnable("training")
    if net.input_high is None:
        net = replace(net, input_high=member.model.get("input_high"))
    start = net.vector()
    if not torch.isfinite(start).all():
        raise ModelError(f"{folder / member.start}: the start holds NaN or infinite numbers", file=member.start)
    if sidecar.digest(start) != member.start_digest:
        raise DataError(
            f"{folder / member.start}: not the shared start that was handed out (round {member.round}); "
            "ask for it again, or put it back",
            file=str(folder / member.start),
        )
    if not fresh:
        return net, start, ()
    io.initialize(net, seed, member.client)
    note = (
        "fresh start: this model begins from random weights of its own, so its units do not line up with those of "
        "the other members, and averaging it with theirs will fall to chance level"
    )
    return net, net.vector(), (note,)


def _checked_mu(mu: float) -> float:
    if not 0 <= mu < math.inf:
        raise UsageError(f"prox_mu is {mu}; it must be 0 or more")
    return mu


def _metrics(history: list[dict[str, float]], counts: Counts) -> dict[str, float]:
    last = history[-1]
    return {
        "loss": last["loss"],
        "accuracy": last["accuracy"],
        "test_loss": counts.loss,
        "test_accuracy": counts.accuracy,
        "test_macro_f1": counts.macro_f1,
    }


def _write(path: Path, net: Model, record: Sidecar, counts: Counts) -> None:
    io.save(net, path)
    sidecar.write(path, record)
    figure = learning_curves({record.client: list(record.history)})
    save_png(figure, path.with_name(f"{path.stem}_curves.png"))
    files.write_text(path.with_name(f"{path.stem}_report.txt"), counts.report_text(record.class_names))
