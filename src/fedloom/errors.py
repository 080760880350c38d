"""The errors that fedloom raises on purpose, each with the exit code of its class.

    FedloomError               1   anything below
    ├── UsageError             2   an unknown name, options that contradict each other
    ├── DataError              3   data that are missing, damaged, empty or do not fit
    ├── ModelError             4   a model file that is damaged, cannot be lowered or does not fit
    │   └── ArchitectureError  4   two models that cannot be merged: the first difference is named
    ├── MergeError             5   a rule that cannot be applied to these models
    ├── TrainingError          6   training that diverged
    ├── StorageError           7   no space, no permission, a file that changed under our hands
    ├── MissingDependency      8   an optional package that this call needs
    └── NetworkError           9   a server that cannot be reached, or that refuses

The message is one line: what was found, where, and what to do. ``context`` carries the same facts as data
(``file``, ``client``, ``round``, ``array``, ``expected``, ``found``).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class FedloomError(Exception):
    """Base of all errors that fedloom raises on purpose.

    Args:
        message: One line that says what was found, where, and what to do.
        **context: The same facts as data.
    """

    exit_code = 1

    def __init__(self, message: str, **context: object) -> None:
        super().__init__(message)
        self.context = context


class UsageError(FedloomError):
    """An unknown name, or options that contradict each other."""

    exit_code = 2


class DataError(FedloomError):
    """Data that are missing, damaged, empty or do not fit."""

    exit_code = 3


class ModelError(FedloomError):
    """A model or model file that is damaged, cannot be lowered or does not fit the data."""

    exit_code = 4


class ArchitectureError(ModelError):
    """Two models that cannot be merged; the message names the first difference."""


class MergeError(FedloomError):
    """A merging rule that cannot be applied to these models."""

    exit_code = 5


class TrainingError(FedloomError):
    """Training that diverged or cannot go on."""

    exit_code = 6


class QuorumError(TrainingError):
    """Too few clients are left for what a round needs; the next round may have more."""


class StorageError(FedloomError):
    """No space left, no permission, or a file that changed under our hands."""

    exit_code = 7


class MissingDependency(FedloomError):  # noqa: N818 - what is missing is not an error of the user's
    """An optional package that this call needs is not installed."""

    exit_code = 8

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingDependency:
        """Build the error for a ``package`` that the extra ``fedloom[extra]`` would install.

        Example:
            >>> print(MissingDependency.of("pyarrow", "parquet", "reading a Parquet file"))
            reading a Parquet file needs pyarrow: pip install 'fedloom[parquet]'
        """
        return cls(f"{purpose} needs {package}: pip install 'fedloom[{extra}]'", package=package, extra=extra)


class NetworkError(FedloomError):
    """A server that cannot be reached, or that refuses."""

    exit_code = 9


def check_known(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Check that every one of ``names`` is ``known``; ``what`` is what they are meant to be.

    Raises:
        UsageError: One is not, with a suggestion when one is near.
    """
    for name in names:
        if name not in known:
            raise unknown(what, name, known)


def unknown(what: str, name: str, options: Iterable[str]) -> UsageError:
    """Build the error for an unknown ``name``, with a suggestion when one is near.

    Args:
        what: What the name was meant to be ("method", "scheme").
        name: The name that was given.
        options: The names that exist.

    Returns:
        The error; the caller raises it.

    Example:
        >>> print(unknown("method", "fedavgg", ["fedavg", "median"]))
        unknown method 'fedavgg': did you mean 'fedavg'? (known: fedavg, median)
    """
    known = list(options)
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f": did you mean '{near[0]}'?" if near else ""
    return UsageError(f"unknown {what} '{name}'{hint} (known: {', '.join(known)})", name=name, known=known)
