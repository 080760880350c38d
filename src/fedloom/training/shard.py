"""Shard: one client's samples as tensors, in the dtype that they are stored in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedloom.data.dataset import Dataset
from fedloom.errors import DataError
from fedloom.models.model import Model
from fedloom.models.probe import arrange, resolve


@dataclass(frozen=True)
class Shard:
    """Samples on the way into a model.

    Attributes:
        name: The client's name.
        x: (n, *input_shape), in the stored dtype: 8-bit images stay 8-bit.
        y: int64 (n,), the class of each sample; or float32 (n, n_classes), its probabilities (distillation).
        divisor: What ``x`` is divided by to reach the scale that the model expects.
    """

    name: str
    x: torch.Tensor
    y: torch.Tensor
    divisor: float

    @classmethod
    def of(cls, dataset: Dataset, model: Model, name: str = "", device: torch.device | None = None) -> Shard:
        """Prepare ``dataset`` for ``model``: check classes, bring shape and scale into line.

        Raises:
            DataError: Labels outside the model's classes, or samples of another shape; both are named.
        """
        name = name or dataset.name
        if model.n_classes:
            dataset = dataset.with_classes(model.n_classes)
        shape = resolve(dataset.input_shape, model.input_shape)
        if shape is None:
            raise DataError(
                f"{name}: samples of shape {dataset.input_shape} do not fit a model that takes {model.input_shape}",
                client=name,
                expected=model.input_shape,
                found=dataset.input_shape,
            )
        x = arrange(torch.from_numpy(np.ascontiguousarray(dataset.x)), shape).contiguous()
        if x.dtype not in (torch.uint8, torch.float32):
            x = x.float()
        y = torch.from_numpy(np.ascontiguousarray(dataset.y, dtype=np.int64))
        divisor = 1.0 if dataset.high is None else dataset.high / (model.input_high or 1.0)
        return cls(name, x.to(device), y.to(device), divisor)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.y)

    def inputs(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Return the samples at ``index`` as float32 (B, *input_shape), in the model's scale: a copy."""
        x = self.x[index]
        if x.dtype != torch.float32:
            return x.float().div_(self.divisor)
        if self.divisor != 1.0:
            return x / self.divisor
        return x.clone() if isinstance(index, slice) else x  # a user's module may write into its input
