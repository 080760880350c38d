"""Partition: divide samples among clients by a scheme's name; the schemes themselves are plain functions.

A scheme that cannot be satisfied is refused, with the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from fedloom.errors import DataError, UsageError, unknown
from fedloom.partition.schemes import Parts, by_column, by_labels, dirichlet, iid, quantity, shards, stratified

Value = bool | int | float | str

__all__ = [
    "SCHEMES",
    "Option",
    "Parts",
    "Scheme",
    "by_column",
    "by_labels",
    "dirichlet",
    "iid",
    "partition",
    "quantity",
    "scheme_options",
    "shards",
    "stratified",
]


@dataclass(frozen=True)
class Option:
    """An option of a scheme: its default and one line of help."""

    default: Value
    help: str


@dataclass(frozen=True)
class Scheme:
    """A scheme as the command line shows it; ``divide`` is None for by-column, which needs no labels."""

    title: str
    divide: Callable[..., Parts] | None
    options: Mapping[str, Option] = field(default_factory=dict)


SCHEMES: dict[str, Scheme] = {
    "stratified": Scheme("equal parts with the same share of every class (scikit-learn's StratifiedKFold)", stratified),
    "iid": Scheme("equal parts at random", iid),
    "dirichlet": Scheme(
        "label skew: each class divided in proportions drawn from Dirichlet(alpha)",
        dirichlet,
        {
            "alpha": Option(0.5, "the concentration: small is skewed, large is IID"),
            "min_size": Option(10, "the fewest samples of a client"),
            "balance": Option(False, "no more classes for a client that has its N / n samples"),
        },
    ),
    "shards": Scheme(
        "label skew: samples sorted by class, each client gets a few shards (McMahan et al. 2017)",
        shards,
        {"per_client": Option(2, "shards per client")},
    ),
    "labels": Scheme(
        "label skew: each client holds a few classes (Li et al. 2022)",
        by_labels,
        {"per_client": Option(2, "classes per client")},
    ),
    "quantity": Scheme(
        "different numbers of samples, classes IID",
        quantity,
        {
            "distribution": Option("lognormal", "of the sizes: lognormal or powerlaw"),
            "sigma": Option(1.0, "the spread of the log-normal sizes"),
            "exponent": Option(1.0, "of the power law: size ~ rank^-exponent"),
            "min_size": Option(1, "the fewest samples of a client"),
        },
    ),
    "by-column": Scheme("one client per distinct value of a column of the data", None),
}


def partition(
    scheme: str,
    labels: ArrayLike,
    n_clients: int | None,
    seed: int = 0,
    *,
    column: ArrayLike | None = None,
    options: Mapping[str, Value] | None = None,
) -> Parts:
    """Divide samples among clients by a scheme's name; see ``SCHEMES``.

    Args:
        scheme: A name in ``SCHEMES``.
        labels: The class of each sample, (N,).
        n_clients: How many clients; None only for by-column.
        seed: The seed; the same one gives the same parts.
        column: The value of each sample, (N,), for by-column.
        options: The scheme's options; texts, as a command line has them, are converted.

    Returns:
        One sorted int64 array of indices per client; none is empty, and together they hold each of 0 to N - 1 once.

    Raises:
        UsageError: An unknown scheme or option, an option's value that is none, or no column for by-column.
        DataError: The scheme cannot be satisfied by these data; the numbers are named.

    Example:
        >>> [part.tolist() for part in partition("shards", [0, 1, 0, 1], 2, options={"per_client": 1})]
        [[0, 2], [1, 3]]
    """
    if scheme not in SCHEMES:
        raise unknown("scheme", scheme, SCHEMES)
    settings = scheme_options(scheme, options or {})
    divide = SCHEMES[scheme].divide
    if divide is not None:
        if n_clients is None:
            raise UsageError(f"{scheme}: the number of clients is needed")
        return divide(labels, n_clients, seed, **settings)
    if column is None:
        raise UsageError("by-column: the data have no column to split by; name one, as in data.csv:column=hospital")
    if len(np.asarray(column)) != len(np.asarray(labels)):
        raise DataError(f"by-column: {len(np.asarray(column))} values for {len(np.asarray(labels))} samples")
    parts, names = by_column(column)
    if n_clients not in (None, len(parts)):
        raise UsageError(
            f"by-column: the column has {len(parts)} distinct values, but {n_clients} clients are asked for",
            expected=len(parts),
            found=n_clients,
            values=names,
        )
    return parts


def scheme_options(scheme: str, options: Mapping[str, Value]) -> dict[str, Value]:
    """Return all options of ``scheme``, those given over the defaults, with the types of the defaults.

    Raises:
        UsageError: An unknown scheme or option, or a value of another type.

    Example:
        >>> scheme_options("dirichlet", {"alpha": "0.1"})
        {'alpha': 0.1, 'min_size': 10, 'balance': False}
    """
    if scheme not in SCHEMES:
        raise unknown("scheme", scheme, SCHEMES)
    known = SCHEMES[scheme].options
    for name in options:
        if name not in known:
            if not known:
                raise UsageError(f"scheme '{scheme}' has no options, found '{name}'", name=name)
            raise unknown(f"option of scheme '{scheme}'", name, known)
    return {name: _convert(scheme, name, options.get(name, o.default), o.default) for name, o in known.items()}


def _convert(scheme: str, name: str, value: Value, default: Value) -> Value:
    kind = type(default)
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        if kind is bool:
            return words[str(value).lower()]
        if kind is int and float(value) != int(float(value)):
            raise ValueError  # noqa: TRY301 - the one message below
        return kind(float(value)) if kind in (int, float) else str(value)
    except (KeyError, ValueError, OverflowError) as error:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"{scheme}: {name} = {value!r}, {expected} is expected", name=name, found=value) from error
