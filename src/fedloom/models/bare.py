"""Bare arrays: a state dict without its code. It can be packed, merged and written back, but not run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedloom.errors import ModelError

# The names that PyTorch's own modules give to floating-point state that is not trained.
BUFFERS = ("running_mean", "running_var")


class BareModule(nn.Module):
    """Holds named arrays under their dotted names, as a state dict has them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refuse to run.

        Raises:
            ModelError: Always: the code of the model is not known.
        """
        raise ModelError(
            f"inputs of shape {tuple(x.shape)} cannot be run: the file holds only arrays; pass --model with the code"
        )


def bare(arrays: Mapping[str, torch.Tensor]) -> BareModule:
    """Build a module whose parameters and buffers are ``arrays``.

    Args:
        arrays: By dotted name; integers and running statistics become buffers, everything else parameters.

    Example:
        >>> module = bare({"net.weight": torch.ones(2, 3), "net.running_mean": torch.zeros(2)})
        >>> [n for n, _ in module.named_parameters()], [n for n, _ in module.named_buffers()]
        (['net.weight'], ['net.running_mean'])
    """
    root = BareModule()
    for name, array in arrays.items():
        *path, last = name.split(".")
        inner: nn.Module = root
        for step in path:
            if step not in inner._modules:
                inner.add_module(step, BareModule())
            inner = inner.get_submodule(step)
        if array.is_floating_point() and last not in BUFFERS:
            inner.register_parameter(last, nn.Parameter(array.clone()))
        else:
            inner.register_buffer(last, array.clone())
    return root
