"""Find out how a user's PyTorch module takes one sample, and whether it gives logits or probabilities."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from fedloom.errors import ModelError
from fedloom.models.arguments import image_size
from fedloom.models.isolation import isolated

_BATCH = 5


def probe_torch(module: nn.Module, data_shape: tuple[int, ...], seed: int = 0) -> tuple[tuple[int, ...], str]:
    """Find the shape of one sample that a module takes, by trying the plausible arrangements of the data.

    The module is called in inference mode on batches of zeros, then on random inputs; its weights, mode and the global
    generators stay as they are. Lazy layers get their shapes, and their weights from ``seed``.

    Args:
        module: Takes (B, *input_shape) and gives (B, C), C > 1.
        data_shape: The shape of one sample as the data have it: (28, 28), (32, 32, 3), (64,).
        seed: Of the weights of lazy layers.

    Returns:
        The input shape, and ``"logits"`` or ``"probabilities"`` (log-probabilities are logits).

    Raises:
        ModelError: No arrangement works; the message tells what each gave.
    """
    failures = []
    for shape in arrangements(data_shape):
        failure = _attempt(copy.deepcopy(module), shape)
        if failure is None:
            with isolated(seed):
                return shape, _output_kind(module, shape)
        failures.append(f"{shape}: {failure}")
    raise ModelError(
        f"{type(module).__name__} takes no arrangement of samples of shape {tuple(data_shape)} to (batch, classes): "
        + "; ".join(failures),
        shape=tuple(data_shape),
    )


def arrangements(data_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """List the input shapes under which a module may expect samples of ``data_shape``, the likeliest first.

    Example:
        >>> arrangements((28, 28))
        [(28, 28), (1, 28, 28), (28, 28, 1), (784,)]
        >>> arrangements((32, 32, 3))
        [(3, 32, 32), (32, 32, 3), (3072,)]
    """
    shape = tuple(int(n) for n in data_shape)
    found = [shape]
    size = image_size(shape)
    if size is not None:
        height, width, channels = size
        first, last = (channels, height, width), (height, width, channels)
        # PyTorch's images have their channels first, and a Flatten layer was trained on that order.
        found = [shape, first, last] if channels == 1 else [first, last]
        found += [(height, width)] if channels == 1 else []
    found.append((math.prod(shape),))
    return list(dict.fromkeys(found))


def resolve(data_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape in which a model that takes ``input_shape`` gets samples of ``data_shape``; None if they do not fit.

    They fit when they hold the same numbers in a usual order: flat, with a channel of one, channels first or last. Open
    dimensions of the model (-1) take the data's.

    Example:
        >>> resolve((28, 28), (28, 28, 1)), resolve((3, 8, 9), (8, 9, 3)), resolve((40,), (-1,)), resolve((8, 8), (4, 16))
        ((28, 28, 1), (8, 9, 3), (40,), None)
    """
    if any(n < 1 for n in input_shape):
        fits = len(data_shape) == len(input_shape)
        fits = fits and all(n < 1 or m == n for m, n in zip(data_shape, input_shape, strict=True))
        return data_shape if fits else None
    if math.prod(data_shape) != math.prod(input_shape):
        return None
    flat = 1 in (len(data_shape), len(input_shape))
    one_channel = [n for n in data_shape if n != 1] == [n for n in input_shape if n != 1]
    turned = ((*data_shape[-1:], *data_shape[:-1]), (*data_shape[1:], *data_shape[:1])) if len(data_shape) == 3 else ()
    return input_shape if flat or one_channel or input_shape in turned else None


def arrange(x: torch.Tensor, input_shape: tuple[int, ...]) -> torch.Tensor:
    """Bring samples (B, *data_shape) into the shape (B, *input_shape); channels move, everything else is reshaped.

    Raises:
        ModelError: The numbers of elements differ.

    Example:
        >>> arrange(torch.zeros(2, 28, 28), (1, 28, 28)).shape, arrange(torch.zeros(2, 8, 8, 3), (3, 8, 8)).shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 3, 8, 8]))
    """
    shape = tuple(x.shape[1:])
    if math.prod(shape) != math.prod(input_shape):
        raise ModelError(f"samples of shape {shape} cannot become {tuple(input_shape)}", found=shape)
    if shape != tuple(input_shape) and len(shape) == 3 and image_size(shape) is not None:
        if tuple(input_shape) == (shape[2], shape[0], shape[1]):
            return x.permute(0, 3, 1, 2)
        if tuple(input_shape) == (shape[1], shape[2], shape[0]):
            return x.permute(0, 2, 3, 1)
    return x.reshape(len(x), *input_shape)


def _attempt(module: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Call a copy of the module on zeros of (B, *shape); None when it gives scores per class, else the reason."""
    try:
        with isolated(0), torch.no_grad():
            y = module.eval()(torch.zeros(_BATCH, *shape))
    except Exception as error:  # the user's code: anything can come
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    if not isinstance(y, torch.Tensor):
        return f"gives a {type(y).__name__}, not a tensor"
    if y.ndim != 2 or y.shape[0] != _BATCH:
        return f"gives {tuple(y.shape)} for a batch of {_BATCH}"
    if y.shape[1] < 2:
        return (
            f"gives one number per sample {tuple(y.shape)}, a score per class is needed (two outputs for two classes)"
        )
    return None


def _output_kind(module: nn.Module, shape: tuple[int, ...]) -> str:
    """Tell probabilities, rows in [0, 1] that sum to one, from anything else, on random inputs."""
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        with torch.no_grad():
            y = module.eval()(torch.rand(16, *shape)).double()
    finally:
        for inner, mode in modes:
            inner.training = mode
    positive = bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all())
    return "probabilities" if positive else "logits"
