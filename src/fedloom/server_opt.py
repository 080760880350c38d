"""Server optimisers: the clients' mean update is taken as a gradient step to be improved.

Each is a pair of pure functions on flat vectors::

    state = optimizer.init(w)                       named tensors, storable as safetensors
    w, state = optimizer.step(state, w, delta)      delta = mean of the clients' updates (new minus old)

``sgd`` and ``momentum``: T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", 2019, arXiv 1909.06335 (FedAvgM): ``v <- beta v + delta; w <- w + lr v``.

``adagrad``, ``adam``, ``yogi``: S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar,
H. B. McMahan, "Adaptive Federated Optimization", ICLR 2021, Algorithm 2, as it stands there: no bias correction,
``v`` starts at tau^2 (the smallest start that the paper allows), tau is added outside the root::

    m <- beta1 m + (1 - beta1) delta
    v <- v + delta^2                                         adagrad
    v <- beta2 v + (1 - beta2) delta^2                       adam
    v <- v - (1 - beta2) delta^2 sign(v - delta^2)           yogi
    w <- w + lr m / (sqrt(v) + tau)

The defaults beta1 = 0.9 (0 for adagrad), beta2 = 0.99 and tau = 1e-3 are the paper's. It tunes lr for every task;
0.03, about the 10^-1.5 of its grid, did best of 0.003 .. 0.1 over ten rounds of six members on the digits. Once updates
are large against tau, a step moves each number by about lr, whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fedloom.errors import MergeError, UsageError, check_known

State: TypeAlias = Mapping[str, Tensor]

_BLOCK = 1 << 18
"""So many numbers are computed at once where that needs memory beside the result."""


@dataclass(frozen=True)
class ServerOptimizer:
    """A pair of pure functions.

    Attributes:
        name: What messages call it.
        init: ``init(w) -> state`` for a model w, float32 (P,).
        step: ``step(state, w, delta) -> (w, state)``; nothing is changed in place. Raises MergeError when the state or
            delta does not fit w, or delta or the result is not finite.
    """

    name: str
    init: Callable[[Tensor], dict[str, Tensor]]
    step: Callable[[State, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


def sgd(*, lr: float = 1.0, trainable: int | None = None) -> ServerOptimizer:
    """Make ``w <- w + lr delta``; lr = 1 is plain averaging.

    Args:
        lr: Server learning rate, > 0.
        trainable: The length of the vector's trainable head; the rest always takes the whole plain update.

    Raises:
        UsageError: A hyperparameter is out of range.

    Example:
        >>> optimizer = sgd(lr=0.5)
        >>> w = torch.tensor([1.0, 2.0])
        >>> optimizer.step(optimizer.init(w), w, torch.tensor([2.0, -2.0]))[0].tolist()
        [2.0, 1.0]
    """
    _positive("lr", lr)

    def step(state: State, w: Tensor, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        _check("sgd", {}, state, w, delta, trainable)
        after, head = torch.empty_like(w), _head(w, trainable).numel()
        for start, end, factor in ((0, head, lr), (head, w.numel(), 1.0)):
            for place in range(start, end, _BLOCK):
                where = slice(place, min(place + _BLOCK, end))
                torch.add(w[where], delta[where] * factor, out=after[where])
        _check_after("sgd", after)
        return after, {}

    return ServerOptimizer("sgd", lambda _: {}, step)


def momentum(*, lr: float = 1.0, beta: float = 0.9, trainable: int | None = None) -> ServerOptimizer:
    """Make FedAvgM: ``v <- beta v + delta; w <- w + lr v``; beta = 0 is :func:`sgd`.

    Args:
        lr: Server learning rate, > 0.
        beta: Server momentum, in [0, 1).
        trainable: As in :func:`sgd`.

    Raises:
        UsageError: A hyperparameter is out of range.
    """
    _positive("lr", lr)
    _fraction("beta", beta)

    def move(state: State, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        velocity = state["momentum"] * beta + delta
        return velocity * lr, {"momentum": velocity}

    return _pair("momentum", {"momentum": 0.0}, move, trainable)


def adagrad(
    *, lr: float = 0.03, beta1: float = 0.0, tau: float = 1e-3, trainable: int | None = None
) -> ServerOptimizer:
    """Make FedAdagrad: ``v <- v + delta^2``; the arguments are those of :func:`adam`."""
    return _adaptive("adagrad", lambda v, squared: v + squared, lr, beta1, tau, trainable)


def adam(
    *, lr: float = 0.03, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, trainable: int | None = None
) -> ServerOptimizer:
    """Make FedAdam: ``v <- beta2 v + (1 - beta2) delta^2``.

    Args:
        lr: Server learning rate, > 0: about how far a number moves in one step.
        beta1: Decay of the first moment, in [0, 1).
        beta2: Decay of the second moment, in [0, 1).
        tau: Adaptivity, > 0: updates well below it are hardly scaled up.
        trainable: As in :func:`sgd`.

    Raises:
        UsageError: A hyperparameter is out of range.
    """
    _fraction("beta2", beta2)
    return _adaptive("adam", lambda v, squared: v * beta2 + squared * (1 - beta2), lr, beta1, tau, trainable)


def yogi(
    *, lr: float = 0.03, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3, trainable: int | None = None
) -> ServerOptimizer:
    """Make FedYogi: ``v <- v - (1 - beta2) delta^2 sign(v - delta^2)``; the arguments are those of :func:`adam`."""
    _fraction("beta2", beta2)
    return _adaptive(
        "yogi", lambda v, squared: v - (1 - beta2) * squared * torch.sign(v - squared), lr, beta1, tau, trainable
    )


@dataclass(frozen=True)
class Method:
    """One row of :data:`METHODS`.

    Attributes:
        title: What it does, in one line.
        paper: Author, title, venue, year.
        maker: The function that makes the pair.
        options: Its hyperparameters and their defaults.
    """

    title: str
    paper: str
    maker: Callable[..., ServerOptimizer]
    options: Mapping[str, float]


_HSU = (
    'Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019'
)
_REDDI = 'Reddi et al., "Adaptive Federated Optimization", ICLR 2021'
_MOMENTS = {"lr": 0.03, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}

METHODS: dict[str, Method] = {
    "fedavgm": Method("server momentum on the mean update", _HSU, momentum, {"lr": 1.0, "beta": 0.9}),
    "fedadagrad": Method("server Adagrad on the mean update", _REDDI, adagrad, {"lr": 0.03, "beta1": 0.0, "tau": 1e-3}),
    "fedadam": Method("server Adam on the mean update", _REDDI, adam, _MOMENTS),
    "fedyogi": Method("server Yogi on the mean update", _REDDI, yogi, _MOMENTS),
}


def make(
    method: str, *, options: Mapping[str, float | None] | None = None, trainable: int | None = None
) -> ServerOptimizer:
    """Make the server optimiser of a method of :data:`METHODS`.

    Args:
        method: Its name.
        options: Its hyperparameters; those that are missing or None keep their defaults.
        trainable: As in :func:`sgd`.

    Raises:
        UsageError: An unknown name or hyperparameter, or one that is out of range.

    Example:
        >>> make("fedadam", options={"lrr": 0.1})
        Traceback (most recent call last):
        fedloom.errors.UsageError: unknown option of fedadam 'lrr': did you mean 'lr'? (known: lr, beta1, beta2, tau)
    """
    check_known("server optimiser", [method], METHODS)
    row = METHODS[method]
    check_known(f"option of {method}", options or {}, row.options)
    given = {option: value for option, value in (options or {}).items() if value is not None}
    return row.maker(trainable=trainable, **{**row.options, **given})


def _adaptive(
    name: str,
    second: Callable[[Tensor, Tensor], Tensor],
    lr: float,
    beta1: float,
    tau: float,
    trainable: int | None,
) -> ServerOptimizer:
    _positive("lr", lr)
    _positive("tau", tau)
    _fraction("beta1", beta1)

    def move(state: State, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        m = state["momentum"] * beta1 + delta * (1 - beta1)
        v = second(state["second_moment"], delta.square())
        return m.div(v.sqrt().add_(tau)).mul_(lr), {"momentum": m, "second_moment": v}

    return _pair(name, {"momentum": 0.0, "second_moment": tau**2}, move, trainable)


def _pair(
    name: str,
    start: Mapping[str, float],
    move: Callable[[State, Tensor], tuple[Tensor, dict[str, Tensor]]],
    trainable: int | None,
) -> ServerOptimizer:
    """Join ``move(state, delta of the head) -> (what to add to the head, state)`` with what all optimisers share."""

    def init(w: Tensor) -> dict[str, Tensor]:
        return {key: torch.full_like(_head(w, trainable), value) for key, value in start.items()}

    def step(state: State, w: Tensor, delta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        _check(name, start, state, w, delta, trainable)
        after = w + delta
        head = _head(after, trainable)
        change, following = move(state, _head(delta, trainable))
        torch.add(_head(w, trainable), change, out=head)
        _check_after(name, after)
        return after, following

    return ServerOptimizer(name, init, step)


def _check_after(name: str, after: Tensor) -> None:
    if not _finite(after):
        raise MergeError(f"'{name}' gives numbers beyond float32: use a lower lr, or begin with an empty state")


def _head(vector: Tensor, trainable: int | None) -> Tensor:
    return vector if trainable is None else vector[:trainable]


def _finite(vector: Tensor) -> bool:
    # Both ends are NaN where any number is: a tenth of the time of asking each number.
    return not vector.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(vector))).all())


def _check(name: str, keys: Mapping[str, float], state: State, w: Tensor, delta: Tensor, trainable: int | None) -> None:
    if delta.shape != w.shape or w.ndim != 1:
        raise MergeError(
            f"an update of shape {tuple(delta.shape)} does not fit a model of shape {tuple(w.shape)}",
            expected=tuple(w.shape),
            found=tuple(delta.shape),
        )
    if not _finite(delta):
        raise MergeError("the mean update holds NaN or an infinite number: a client's training diverged")
    expected = tuple(_head(w, trainable).shape)
    if set(state) != set(keys):
        found = ", ".join(sorted(state)) or "nothing"
        raise MergeError(f"the state of '{name}' holds {', '.join(sorted(keys)) or 'nothing'}; found {found}")
    for key, value in state.items():
        if tuple(value.shape) != expected:
            raise MergeError(
                f"'{key}' in the state of '{name}' has shape {tuple(value.shape)} where {expected} is expected",
                array=key,
                expected=expected,
                found=tuple(value.shape),
            )


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} = {value:g}: a finite number > 0 is expected", option=name, found=value)


def _fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name} = {value:g}: a number in [0, 1) is expected", option=name, found=value)
