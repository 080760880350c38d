"""Packed: vectors on the wire as the bytes of the run's codecs, where it has some; the same numbers come out of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.algorithms.base import Algorithm
from fedloom.algorithms.protection import Protection, leaving
from fedloom.compress import Codec, parse
from fedloom.errors import DataError
from fedloom.layout import Layout


@dataclass(frozen=True)
class Packed:
    """How vectors of a run travel.

    Attributes:
        size: P.
        up: The codec of updates; None where they are sent as they are.
        down: The codec of models, likewise.
        shared: int64 (k,), where the numbers are that leave a client; None for all.
    """

    size: int
    up: Codec | None = None
    down: Codec | None = None
    shared: Tensor | None = None

    @classmethod
    def of(cls, protection: Protection, algorithm: Algorithm, layout: Layout) -> Packed:
        """Read it off what protects updates."""
        shared = None if algorithm.stays is None else (~algorithm.stays).nonzero().flatten().cpu()
        up = parse(protection.up, leaving(layout, algorithm.stays)) if protection.up else None
        down = parse(protection.down, layout) if protection.down else None
        return cls(layout.size, up, down, shared)

    def stands_for(self, data: bytes, delta: Tensor) -> bool:
        """Say whether bytes are all that needs to be sent of an update: what is done after packing may have changed it."""
        return bool(data) and self.up is not None and torch.equal(self.update(data), delta.cpu())

    def update(self, data: bytes) -> Tensor:
        """Return the update that bytes stand for, float32 (P,).

        Raises:
            DataError: They stand for none of this run.
        """
        if self.up is None:
            raise DataError("it is packed, and this run packs nothing")
        if self.shared is None:
            return self.up.decode(data, size=self.size)
        part = self.up.decode(data, size=len(self.shared))
        return torch.zeros(self.size).index_copy(0, self.shared, part)

    def model(self, data: bytes) -> Tensor:
        """Return the model that bytes stand for, float32 (P,).

        Raises:
            DataError: They stand for none of this run.
        """
        if self.down is None:
            raise DataError("the model is packed, and this run packs nothing")
        return self.down.decode(data, size=self.size)
