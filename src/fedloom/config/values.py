"""Values: texts and TOML's values become what the tables want, or a line that says why not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from fedloom.config.tables import TABLES

_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "int | None": "a whole number",
    "float": "a number",
    "float | None": "a number",
    "int | float": "a number, or a share such as 10%",
    "str": "a text",
    "str | None": "a number, or a distribution such as lognormal(median=2k, sigma=0.5)",
}


def keys(table: str) -> dict[str, Field[Any]]:
    """Return a table's own keys."""
    return {f.name: f for f in fields(TABLES[table]) if f.name != "options"}


def flags() -> dict[str, tuple[str, Field[Any]]]:
    """Return every key by its name as a flag or keyword, with its table."""
    return {f.metadata["flag"] or name: (table, f) for table in TABLES for name, f in keys(table).items()}


def convert(key: Field[Any], value: object) -> Any:
    """Return ``value`` as the key's type.

    Raises:
        ValueError: It cannot be one, or lies outside the range; the text says what is expected.
    """
    kind = str(key.type)
    if value is None and kind.endswith("None"):
        return None
    try:
        found = _CONVERTERS[kind](value)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{_shown(value)}; {_KINDS[kind]} is expected") from error
    choices, fits = key.metadata["choices"], key.metadata["fits"]
    if choices and found not in choices:
        raise ValueError(f"{_shown(value)}; choose from {', '.join(c for c in choices if c)}")
    if fits is not None and not fits(found):
        raise ValueError(f"{_shown(value)}; it must be {key.metadata['rule']}")
    return found


def option(value: object) -> bool | int | float | str:
    """Return the value of an option, which may come as a text.

    Raises:
        ValueError: It is a list or a table.
    """
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{_shown(value)}; one value is expected")  # noqa: TRY004 - texts may be wrong in kind, too
    words = {"true": True, "false": False}
    if value.strip().lower() in words:
        return words[value.strip().lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def toml(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Write tables of plain values as TOML; None is left out.

    Example:
        >>> print(toml({"run": {"rounds": 5, "seed": 0}}), end="")
        [run]
        rounds = 5
        seed = 0
    """
    blocks = []
    for name, table in tables.items():
        rows = [f"{key} = {_literal(value)}" for key, value in table.items() if value is not None]
        blocks.append("\n".join([f"[{name}]", *rows]) + "\n")
    return "\n".join(blocks)


def _literal(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _bool(value: object) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def _int(value: object) -> int:
    number = _float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError  # noqa: TRY004 - as float() has it
    return float(value)


def _number(value: object) -> int | float:
    if isinstance(value, str):
        text = value.strip()
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return value if isinstance(value, int) and not isinstance(value, bool) else _float(value)


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - one kind of error for all
    return value


def _term(value: object) -> str:
    if isinstance(value, str):
        return value
    _float(value)
    return str(value)


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."


_CONVERTERS = {
    "bool": _bool,
    "int": _int,
    "int | None": _int,
    "float": _float,
    "float | None": _float,
    "int | float": _number,
    "str": _str,
    "str | None": _term,
}
