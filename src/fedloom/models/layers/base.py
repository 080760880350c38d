"""What a lowered layer is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedloom.models.activations import Config

Shape = tuple[int, ...]
# The order of a tensor's axes: as Keras has them, or channels moved to axis 1 as PyTorch's image operations want them.
# For "any" the operation does not care and keeps the order that it gets.
Order = Literal["keras", "first", "any"]


@dataclass(frozen=True)
class Weight:
    """One of Keras' weights of a layer, in the order of ``layer.weights``.

    Attributes:
        role: Keras' name of it ("kernel", "moving_mean").
        attribute: The module's parameter or buffer that holds it.
        shape: Its shape in Keras.
        axes: Keras' axes in PyTorch's order; the result is reshaped to the parameter's shape.
        initializer: The canonical initialiser, None for statistics that are not drawn.
        regularizer: The canonical regulariser, or None.
    """

    role: str
    attribute: str
    shape: Shape
    axes: Shape
    initializer: Config | None = None
    regularizer: Config | None = None


class Layer(nn.Module):
    """A module that knows which of its arrays are Keras' weights, and how they are turned."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Weight] = []

    def declare(
        self,
        role: str,
        attribute: str,
        shape: Sequence[int],
        config: Config,
        *,
        axes: Sequence[int] | None = None,
        torch_shape: Sequence[int] | None = None,
        buffer: bool = False,
    ) -> None:
        """Create the parameter or buffer of one Keras weight, filled with zeros.

        Args:
            role: Keras' name; ``depthwise_kernel`` takes its initialiser from ``depthwise_initializer``.
            attribute: The name of the parameter.
            shape: Keras' shape.
            config: The layer's canonical configuration.
            axes: Keras' axes in PyTorch's order; by default unchanged.
            torch_shape: The parameter's shape, where it is not that of the permuted axes.
            buffer: Whether it is a statistic instead of a parameter.
        """
        axes = tuple(range(len(shape)) if axes is None else axes)
        array = torch.zeros(tuple(torch_shape) if torch_shape is not None else tuple(shape[a] for a in axes))
        if buffer:
            self.register_buffer(attribute, array)
        else:
            self.register_parameter(attribute, nn.Parameter(array, requires_grad=config["trainable"]))
        key = role if f"{role}_initializer" in config else role.removesuffix("_kernel")
        initializer, regularizer = config.get(f"{key}_initializer"), config.get(f"{key}_regularizer")
        self.weights.append(Weight(role, attribute, tuple(shape), axes, initializer, regularizer))

    def read(self, weight: Weight) -> np.ndarray:
        """Copy one weight out, as Keras has it."""
        array: Tensor = getattr(self, weight.attribute).detach().cpu()
        permuted = array.reshape([weight.shape[a] for a in weight.axes])
        back = sorted(range(len(weight.axes)), key=lambda a: weight.axes[a])
        return np.array(permuted.permute(back).numpy(), order="C")

    def write(self, weight: Weight, array: np.ndarray) -> None:
        """Copy one weight in; ``array`` has the shape ``weight.shape``."""
        target: Tensor = getattr(self, weight.attribute)
        with np.errstate(over="ignore"):  # what becomes infinite is refused, by name, where it is used
            kept = array if array.dtype.kind in "iu" else array.astype(np.float32)
        source = torch.from_numpy(np.array(kept, order="C")).to(target.device)
        with torch.no_grad():
            target.copy_(source.permute(weight.axes).reshape(target.shape))


@dataclass(frozen=True)
class Piece:
    """What a builder returns.

    Attributes:
        run: Called with the input tensors.
        order: The order of axes that it takes, and gives unless ``gives_keras``.
        gives_keras: Whether the result is in Keras' order whatever the inputs' order.
        inference: Called instead of ``run`` where the graph fixes inference mode; None when there is no difference.
    """

    run: Callable[..., Tensor]
    order: Order = "any"
    gives_keras: bool = False
    inference: Callable[..., Tensor] | None = None


# Builds a layer from its canonical configuration and the Keras shapes of its inputs, without the batch axis.
Builder = Callable[[Config, list[Shape]], Piece]


def image_order(config: Config) -> Order:
    """Return the order in which channels stand on axis 1, for a layer with a ``data_format``."""
    return "keras" if config.get("data_format") == "channels_first" else "first"


def channels(config: Config, shape: Shape) -> int:
    """Return the number of channels of an input of Keras shape ``shape``."""
    return shape[0] if config.get("data_format") == "channels_first" else shape[-1]
