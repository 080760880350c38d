"""What a recorded PyTorch call is among the steps that alignment knows: one table for modules, one for functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fedloom.errors import ModelError
from fedloom.models import activations

__all__ = ["MODULES", "PARTING", "Bound", "Call", "Draft", "Slot", "draft", "name_of", "refused"]

PARTING = frozenset({"chunk", "split", "unbind", "tensor_split"})
"""Functions that give several values at once."""


@dataclass(frozen=True)
class Slot:
    """The place of the k-th input among a call's arguments."""

    k: int


@dataclass(frozen=True, eq=False)
class Bound:
    """A function with all its arguments but the values that flow through the model.

    Attributes:
        function: What is called.
        args: Its arguments, a ``Slot`` in the place of each value.
        named: Its named arguments, alike.
        overwrites: Whether it overwrites its input: it then gets a copy.
        part: Which of several results is taken; None for the only one.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    overwrites: bool = False
    part: int | None = None

    def __call__(self, *values: Tensor) -> Tensor:
        """Call the function on values."""
        given = [v.clone() for v in values] if self.overwrites else values
        args, named = fx.node.map_aggregate((self.args, dict(self.named)), lambda a: _filled(a, given))
        made = self.function(*args, **named)
        return made if self.part is None else made[self.part]  # type: ignore[no-any-return]


def _filled(argument: Any, values: Any) -> Any:
    return values[argument.k] if isinstance(argument, Slot) else argument


@dataclass(frozen=True, eq=False)
class Call:
    """A recorded call and what it gave.

    Attributes:
        layer: The module's path, or the name of the call.
        bound: What was called.
        inputs: The values that it took, (B, ...).
        result: What it gave, (B, ...).
        constants: The tensors among its arguments that do not depend on the input.
    """

    layer: str
    bound: Bound
    inputs: list[Tensor]
    result: Tensor
    constants: list[Tensor]

    @property
    def name(self) -> str:
        """The function's name; that of its class for a module."""
        return name_of(self.bound.function)

    def argument(self, index: int, name: str, default: Any) -> Any:
        """Return an argument that may be named or not."""
        positional = self.bound.args[index] if len(self.bound.args) > index else default
        return self.bound.named.get(name, positional)


@dataclass(frozen=True, eq=False)
class Draft:
    """A step to be: the name of its kind, what it runs, and an order of axes that its input is brought into first."""

    op: str
    run: Callable[..., Tensor]
    turn: tuple[int, ...] | None = None


def refused(layer: str, kind: str, why: str = "") -> ModelError:
    """Return the error for a call that is not known."""
    if why:
        return ModelError(f"layer '{layer}' ({kind}) cannot be aligned: {why}", layer=layer)
    return ModelError(
        f"layer '{layer}' ({kind}): how it mixes hidden units is not known, so models with it cannot be aligned",
        layer=layer,
    )


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name, or that of a module's class."""
    if isinstance(function, nn.Module):
        return type(function).__name__
    return str(getattr(function, "__name__", function)).strip("_")


def draft(call: Call) -> Draft:
    """Name the step of a call.

    Raises:
        ModelError: It is not known what the call does with hidden units.
    """
    function = call.bound.function
    if isinstance(function, nn.Module):
        op = MODULES.get(type(function))
        if op is None:
            raise refused(call.layer, call.name)
        return _module(call, function, op)
    if call.constants and call.name in _ARITHMETIC:
        one = all(c.numel() == 1 for c in call.constants)
        return Draft("Rescaling" if one else "Constant", call.bound)
    if call.constants:
        raise refused(call.layer, call.name, "it takes weights that belong to no layer")
    for names, made in _FUNCTIONS:
        if call.name in names:
            return made(call)
    raise refused(call.layer, call.name)


def _module(call: Call, module: nn.Module, op: str) -> Draft:
    rank = {"1d": 3, "2d": 4}.get(call.name[-2:])
    if rank is not None and op not in ("BatchNormalization", "Dropout") and call.inputs[0].dim() != rank:
        raise refused(call.layer, call.name, f"it takes a batch of {rank} axes, and gets {call.inputs[0].dim()}")
    if op == "BatchNormalization" and getattr(module, "running_var", None) is None:
        raise refused(call.layer, call.name, "it keeps no running statistics")
    if op == "Activation":
        return _module_activation(call, module)
    if op == "Reshape":
        return _reshaped(call)
    return Draft(op, call.bound if call.bound.overwrites else module)


def _module_activation(call: Call, module: nn.Module) -> Draft:
    if isinstance(module, nn.ReLU):
        return Draft("Activation", torch.relu)
    if isinstance(module, nn.LeakyReLU):
        return Draft("Activation", partial(functional.leaky_relu, negative_slope=module.negative_slope))
    if isinstance(module, nn.Softmax | nn.LogSoftmax):
        return _softmax(call, module.dim)
    return Draft("Activation", call.bound)


def _activation(call: Call) -> Draft:
    if call.name == "relu":
        return Draft("Activation", torch.relu)
    if call.name == "leaky_relu":
        slope = call.argument(1, "negative_slope", 0.01)
        return Draft("Activation", partial(functional.leaky_relu, negative_slope=slope))
    if call.name in ("softmax", "log_softmax"):
        return _softmax(call, call.argument(1, "dim", None))
    return Draft("Activation", call.bound)


def _softmax(call: Call, axis: int | None) -> Draft:
    if axis is None:
        raise refused(call.layer, call.name, "the axis that it normalises is not given")
    function = activations.log_softmax if "log" in call.name.lower() else activations.softmax
    return Draft("Activation", partial(function, axis=axis))


def _reshaped(call: Call) -> Draft:
    return Draft("Reshape", partial(_reshape, shape=tuple(call.result.shape[1:])))


def _reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(len(x), *shape)


def _scaled(x: Tensor, scale: float, offset: float) -> Tensor:
    return x * scale + offset


def _arithmetic(call: Call) -> Draft:
    """Merge two values, or take one times a number."""
    if len(call.inputs) == 2:
        op = _ARITHMETIC[call.name]
        if not op:
            raise refused(call.layer, call.name)
        return Draft(op, call.bound)
    numbers = [a for a in call.bound.args if isinstance(a, int | float)]
    if call.name in ("add", "radd", "sub", "mul", "rmul", "truediv", "div") and len(numbers) == 1:
        first = isinstance(call.bound.args[0], int | float)
        if not (first and call.name in ("sub", "truediv", "div")) and not call.bound.named:
            return Draft("Rescaling", _by_number(call.name, numbers[0]))
    return Draft("Activation", call.bound)


def _by_number(name: str, number: float) -> Callable[..., Tensor]:
    if name in ("add", "radd", "sub"):
        return partial(_scaled, scale=1.0, offset=-number if name == "sub" else number)
    return partial(_scaled, scale=number if "mul" in name else 1.0 / number, offset=0.0)


def _reduced(call: Call) -> Draft:
    """A mean or maximum over space: over the axes behind the channels, or over all between batch and channels."""
    op = "GlobalAveragePooling2D" if call.name == "mean" else "GlobalMaxPooling2D"
    given, rank = call.argument(1, "dim", None), call.inputs[0].dim()
    axes = sorted(a % rank for a in ((given,) if isinstance(given, int) else given or ()))
    if axes and axes[0] > 1:
        return Draft(op, call.bound)
    if axes == list(range(1, rank - 1)):
        return Draft(op, partial(_over_space, mean=call.name == "mean"), turn=(0, rank - 1, *axes))
    raise refused(call.layer, call.name, "it does not run over the positions in space alone")


def _over_space(x: Tensor, mean: bool) -> Tensor:
    axes = tuple(range(2, x.dim()))
    return x.mean(axes) if mean else x.amax(axes)


def _padded(call: Call) -> Draft:
    if call.name == "pad" and (len(call.argument(1, "pad", ())) > 2 * (call.inputs[0].dim() - 2)):
        raise refused(call.layer, call.name, "it pads more than the positions in space")
    plain = call.name != "pad" or not call.argument(3, "value", None)
    return Draft("ZeroPadding2D" if plain else "Activation", call.bound)


def _named(op: str) -> Callable[[Call], Draft]:
    return lambda call: Draft(op, call.bound)


_ARITHMETIC = {"add": "Add", "iadd": "Add", "radd": "Add", "sub": "Subtract", "isub": "Subtract", "mul": "Multiply"}
_ARITHMETIC |= {"imul": "Multiply", "rmul": "Multiply", "truediv": "", "div": "", "pow": ""}
_FUNCTIONS: tuple[tuple[frozenset[str], Callable[[Call], Draft]], ...] = (
    (frozenset(_ARITHMETIC), _arithmetic),
    (frozenset({"maximum", "max"}), _named("Maximum")),
    (frozenset({"minimum", "min"}), _named("Minimum")),
    (frozenset({"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze"}), _reshaped),
    (frozenset({"permute", "transpose", "movedim", "swapaxes", "getitem", "flip"}), _named("Permute")),
    (PARTING | {"cat", "concat", "stack"}, _named("Concatenate")),
    (frozenset({"dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_dropout"}), _named("Dropout")),
    (frozenset({"contiguous", "clone", "detach", "float", "long", "int", "to"}), _named("Identity")),
    (frozenset({"mean", "amax"}), _reduced),
    (frozenset({"max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"}), _named("MaxPooling2D")),
    (frozenset({"avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"}), _named("AveragePooling2D")),
    (frozenset({"interpolate", "upsample"}), _named("UpSampling2D")),
    (frozenset({"pad"}), _padded),
    (
        frozenset(
            {"relu", "leaky_relu", "softmax", "log_softmax", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish"}
        )
        | {"tanh", "sigmoid", "hardsigmoid", "hardswish", "hardtanh", "softplus", "softsign", "logsigmoid", "clamp"}
        | {"tanhshrink", "softshrink", "hardshrink", "exp", "log", "sqrt", "abs", "square", "neg", "sin", "cos", "erf"},
        _activation,
    ),
)

_SMOOTH = (nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign)
_BENT = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LogSigmoid, nn.Threshold)
_ACTIVATIONS = (*_SMOOTH, *_BENT, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Softmax, nn.LogSoftmax)

MODULES: dict[type[nn.Module], str] = {
    nn.Linear: "Dense",
    nn.Conv1d: "Conv1D",
    nn.Conv2d: "Conv2D",
    nn.BatchNorm1d: "BatchNormalization",
    nn.BatchNorm2d: "BatchNormalization",
    nn.LayerNorm: "LayerNormalization",
    nn.PReLU: "PReLU",
    nn.Embedding: "Embedding",
    nn.Identity: "Identity",
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), "Dropout"),
    **dict.fromkeys((nn.Flatten, nn.Unflatten), "Reshape"),
    **dict.fromkeys((nn.MaxPool1d, nn.AdaptiveMaxPool1d), "MaxPooling1D"),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveMaxPool2d), "MaxPooling2D"),
    **dict.fromkeys((nn.AvgPool1d, nn.AdaptiveAvgPool1d), "AveragePooling1D"),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d), "AveragePooling2D"),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d), "ZeroPadding2D"),
    nn.Upsample: "UpSampling2D",
    **dict.fromkeys(_ACTIVATIONS, "Activation"),
}
