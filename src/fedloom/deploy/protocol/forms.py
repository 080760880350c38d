"""The forms that a message's fields have: facts that travel as JSON, each with its check, and arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from fedloom.errors import DataError

Check: TypeAlias = Callable[[object, str], Any]
"""Returns a fact as its field has it; ``(what was found, the field's name)``. Raises DataError."""


@dataclass(frozen=True)
class Fact:
    """A field that travels as JSON.

    Attributes:
        check: What it has to be.
        clean: What is made of it before it is sent.
    """

    check: Check
    clean: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Array:
    """A field that travels as an array, or as several by name.

    Attributes:
        type: Tensor or bytes.
        many: Whether it is a mapping of them.
    """

    type: type[Tensor] | type[bytes]
    many: bool = False


def text(most: int) -> Fact:
    """Return the field of a text of at most so many characters; what could drive a terminal is taken out."""
    return Fact(lambda value, where: _text(value, where, most), lambda value: shown(str(value))[:most])


def line(most: int) -> Fact:
    """Return the field of a name of at most so many characters, on one line."""
    return Fact(lambda value, where: _line(value, where, most))


def shown(value: str) -> str:
    r"""Return a text that can be shown: control characters and broken ones become blanks, line ends stay.

    Example:
        >>> shown("red: \x1b[31m")
        'red:  [31m'
    """
    return "".join(c if c == "\n" or c.isprintable() else " " for c in value)


def _text(value: object, where: str, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or shown(value) != value:
        raise DataError(f"{where}: a text of at most {most} characters is expected")
    return value


def _line(value: object, where: str, most: int) -> str:
    if "\n" in (found := _text(value, where, most)):
        raise DataError(f"{where}: one line is expected")
    return found


def count(value: object, where: str) -> int:
    """Check for a whole number from 0."""
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise DataError(f"{where}: a whole number from 0 is expected")
    return value


def number(value: object, where: str) -> float:
    """Check for a number; NaN and infinity are numbers here."""
    if isinstance(value, bool) or not isinstance(value, int | float) or (type(value) is int and abs(value) > 1 << 53):
        raise DataError(f"{where}: a number is expected")
    return float(value)


def flag(value: object, where: str) -> bool:
    """Check for yes or no."""
    if not isinstance(value, bool):
        raise DataError(f"{where}: true or false is expected")
    return value


def facts(value: object, where: str) -> dict[str, Any]:
    """Check for a JSON object."""
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a JSON object is expected")
    return dict(value)


def numbers(value: object, where: str) -> dict[str, float]:
    """Check for numbers by name."""
    return {name: number(one, f"{where}.{name}") for name, one in facts(value, where).items()}
