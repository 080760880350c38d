"""Model: a PyTorch module together with what fedloom knows about it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fedloom.errors import ModelError, UsageError
from fedloom.layout import Layout
from fedloom.models.architecture import Architecture
from fedloom.models.bare import BareModule


@dataclass
class Model:
    """A module that can be trained and evaluated, and everything needed to write it back.

    Attributes:
        module: Called with float32 inputs of shape (B, *input_shape); see ``logits``.
        architecture: How to rebuild it.
        input_shape: The shape of one sample as the module takes it; empty when unknown (bare arrays).
        n_classes: The number of outputs; 0 when unknown.
        input_high: The full scale of the inputs that the module expects: 1.0 for 0-1, 255.0 for raw 8-bit images,
            None when unknown.
        output: What the module returns: ``"logits"`` or ``"probabilities"``.
        dtypes: The dtype of each array in the file that it came from, where that is not float32.
        borrows: Whether :meth:`load` makes the arrays views of the vector instead of copying it: for a model that is only
            looked at. Nobody may train it.
    """

    module: nn.Module
    architecture: Architecture
    input_shape: tuple[int, ...] = ()
    n_classes: int = 0
    input_high: float | None = None
    output: str = "logits"
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    borrows: bool = field(default=False, repr=False, compare=False)

    @cached_property
    def layout(self) -> Layout:
        """Names, shapes and kinds of the model's arrays."""
        return Layout.of(self.module)

    def vector(self) -> torch.Tensor:
        """Copy the model's arrays into a new float32 vector of shape (P,)."""
        return self.layout.read(self.module)

    def load(self, vector: torch.Tensor) -> Model:
        """Copy a vector of shape (P,) into the model's arrays, in place; returns the model. See ``borrows``, too."""
        if self.borrows:
            self.layout.lend(self.module, vector)
        else:
            self.layout.write(self.module, vector)
        return self

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, n_classes) of inputs ``x``, float32 (B, *input_shape)."""
        y: torch.Tensor = self.module(x)
        return y if self.output == "logits" else y.clamp_min(1e-12).log()

    def require_runnable(self, what: str) -> None:
        """Raise ModelError when the model is bare arrays without code; ``what`` says what was to be done."""
        if isinstance(self.module, BareModule):
            made_by = self.architecture.factory or "a zoo name, file.py:function or module:name"
            raise ModelError(
                f"{what} needs the model's code, and the file holds only its arrays: pass --model ({made_by})"
            )

    def to(self, device: torch.device) -> Model:
        """Move the module to ``device``, in place; returns the model. A Trainer that is bound to it loses its hold."""
        self.module.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """Return what a sidecar says of the model, JSON-able."""
        return {
            "architecture": self.architecture.to_json(),
            "input_shape": list(self.input_shape),
            "n_classes": self.n_classes,
            "input_high": self.input_high,
        }


def device(name: str | None = None) -> torch.device:
    """Choose the device: ``name``, else the environment variable FEDLOOM_DEVICE, else a GPU when there is one.

    Raises:
        UsageError: The device does not exist on this machine, or is neither a processor nor a CUDA GPU.

    Example:
        >>> device("cpu")
        device(type='cpu')
    """
    name = name or os.environ.get("FEDLOOM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    if chosen.type not in ("cpu", "cuda"):  # Apple's GPU has no float64, which the sums are kept in
        raise UsageError(f"device '{name}' cannot be used: choose cpu or cuda")
    return chosen
