"""Configuration of a run: TOML tables, flags and keywords become one frozen value, checked before round 1."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fedloom.config import values
from fedloom.config.tables import (
    OPEN,
    TABLES,
    AlgorithmTable,
    Attack,
    Compression,
    Data,
    Evaluation,
    ModelTable,
    Network,
    Privacy,
    RunTable,
    Sampling,
    Training,
)
from fedloom.errors import DataError, UsageError

__all__ = ["Config", "refuse"]

GRID, RECIPE = "grid", "recipe"
"""Tables that a run does not read: ``sweep`` reads the first, people the second."""


@dataclass(frozen=True)
class Config:
    """Everything that a run is made of; the defaults are a small FedAvg run.

    Example:
        >>> Config.of(data="digits", clients=10, algorithm="fedprox:mu=0.1").algorithm.options
        {'mu': 0.1}
    """

    data: Data = field(default_factory=Data)
    model: ModelTable = field(default_factory=ModelTable)
    algorithm: AlgorithmTable = field(default_factory=AlgorithmTable)
    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)
    network: Network = field(default_factory=Network)
    attack: Attack = field(default_factory=Attack)
    compression: Compression = field(default_factory=Compression)
    privacy: Privacy = field(default_factory=Privacy)
    evaluation: Evaluation = field(default_factory=Evaluation)
    run: RunTable = field(default_factory=RunTable)

    @classmethod
    def read(cls, path: str | Path) -> Config:
        """Read a TOML file.

        Raises:
            DataError: The file is missing, or is not TOML.
            UsageError: Unknown tables or keys, or values of another type or outside their range: all of them, one per
                line.
        """
        tables = read_toml(path)
        if RECIPE in tables:
            from fedloom.config.recipe import Recipe

            Recipe.of_table(tables[RECIPE], str(path))
        return cls.of_tables({k: v for k, v in tables.items() if k not in (GRID, RECIPE)}, str(path))

    @classmethod
    def of_tables(cls, tables: Mapping[str, Any], where: str = "") -> Config:
        """Build a configuration from tables of values; see :meth:`read`."""
        return Config()._with(((t, k, v) for t, k, v in _flatten(tables)), where)

    @classmethod
    def of(cls, **flags: Any) -> Config:
        """Build a configuration from keywords: the flags of ``fedloom simulate`` with underscores.

        Options of a scheme (``alpha``) are keywords, too; those of the algorithm are ``options={"mu": 0.1}``, or stand
        behind its name: ``algorithm="fedprox:mu=0.1"``. What is None keeps its default.

        Raises:
            UsageError: Unknown keywords or bad values: all of them, one per line.
        """
        return Config().override(**flags)

    def override(self, **flags: Any) -> Config:
        """Return a copy with other values; see :meth:`of`."""
        given = {name: value for name, value in flags.items() if value is not None}
        algorithm = given.get("algorithm", given.get("algorithm.name"))
        base = self
        if isinstance(algorithm, str) and algorithm.partition(":")[0] != self.algorithm.name:
            base = replace(base, algorithm=AlgorithmTable())  # its options belong to another
        if given.get("scheme", self.data.scheme) != self.data.scheme:
            base = replace(base, data=replace(base.data, options={}))
        return base._with(_places(given), "")

    def _with(self, places: Iterable[tuple[str, str, Any]], where: str) -> Config:
        """Set values by table and key; everything that is wrong is gathered."""
        wrong: list[str] = []
        found = {name: self._table(name) for name in TABLES}
        for table, key, value in places:
            problem = _set(found, table, key, value)
            if problem:
                wrong.append(problem)
        if wrong:
            raise refuse(wrong, where)
        return Config(**{name: _built(name, rows) for name, rows in found.items()})

    def _table(self, name: str) -> dict[str, Any]:
        table = getattr(self, name)
        rows = {f.name: getattr(table, f.name) for f in fields(table) if f.name != "options"}
        return rows | dict(getattr(table, "options", {}))

    def to_tables(self) -> dict[str, dict[str, Any]]:
        """Return all tables as plain values; options stand beside a table's own keys."""
        return {name: self._table(name) for name in TABLES}

    def to_toml(self) -> str:
        """Write the configuration with every key; :meth:`read` gives it back."""
        return values.toml(self.to_tables())

    def differences(self, other: Config, *, but: Iterable[str] = ()) -> list[str]:
        """Name the keys whose values differ, as ``table.key: mine, not theirs``; those of ``but`` may differ."""
        mine, theirs = self.to_tables(), other.to_tables()
        found = []
        for table, rows in mine.items():
            for key in [*rows, *(k for k in theirs[table] if k not in rows)]:
                a, b = rows.get(key), theirs[table].get(key)
                if a != b and f"{table}.{key}" not in but:
                    found.append(f"{table}.{key} is {b!r} there and {a!r} now")
        return found


def refuse(lines: Iterable[str], where: str = "") -> UsageError:
    """Build one error of several conflicts, one per line."""
    found = list(lines)
    place = f"{where}: " if where else ""
    if len(found) == 1:
        return UsageError(f"{place}{found[0]}", conflicts=found)
    text = "\n".join(f"  - {line}" for line in found)
    return UsageError(f"{place}{len(found)} things are wrong with this run:\n{text}", conflicts=found)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        DataError: It is missing, or is not TOML; the line is named.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", file=str(path)) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a TOML file ({error})", file=str(path)) from error


def place_of(name: str) -> tuple[str, str] | None:
    """Return the table and the key that a keyword means; None when there is none.

    Example:
        >>> place_of("rounds"), place_of("alpha"), place_of("algorithm.mu"), place_of("rouds")
        (('run', 'rounds'), ('data', 'alpha'), ('algorithm', 'mu'), None)
    """
    known = values.flags()
    if name in known:
        table, key = known[name]
        return table, key.name
    table, dot, key_name = name.partition(".")
    if dot and table in TABLES and (table in OPEN or key_name in values.keys(table)):
        return table, key_name
    return ("data", name) if name in _scheme_options() else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``: did you mean 'x'?``, or nothing where no name is near."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f": did you mean '{near[0]}'?" if near else ""


def _places(given: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return table, key and value of every keyword; unknown ones come back with an empty table."""
    found: list[tuple[str, str, Any]] = []
    for name, value in given.items():
        if name == "options":
            found += [("algorithm", key, v) for key, v in dict(value).items()]
        else:
            found.append((*(place_of(name) or ("", name)), value))
    return found


def _flatten(tables: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    rows: list[tuple[str, str, Any]] = []
    for table, content in tables.items():
        if table in TABLES and isinstance(content, Mapping):
            rows += [(table, key, value) for key, value in content.items()]
        else:
            rows.append(("", table, content))
    return rows


def _set(found: dict[str, dict[str, Any]], table: str, key: str, value: Any) -> str:
    """Set one value; returns what is wrong with it, or nothing."""
    if not table:
        place = place_of(key)
        near = suggestion(key, [*values.flags(), *_scheme_options(), *TABLES])
        return f"unknown key '{key}'{near if place is None else f': it belongs under [{place[0]}], as {place[1]}'}"
    own = values.keys(table)
    if key == "options" or (key not in own and table not in OPEN):
        return f"[{table}] unknown key '{key}'{suggestion(key, own)} (known: {', '.join(own)})"
    try:
        found[table][key] = values.convert(own[key], value) if key in own else values.option(value)
    except ValueError as error:
        return f"[{table}] {key} = {error}"
    if (table, key) == ("algorithm", "name"):
        return _split_algorithm(found["algorithm"])
    return ""


def _split_algorithm(rows: dict[str, Any]) -> str:
    """Take the options out of ``fedprox:mu=0.1``."""
    name, *options = rows["name"].split(":")
    rows["name"] = name
    for text in (part for option in options for part in option.split(",")):
        key, equals, value = text.partition("=")
        if not equals:
            return f"[algorithm] name: '{text}' is no option; write it as in fedprox:mu=0.1"
        rows[key.strip()] = values.option(value.strip())
    return ""


def _built(table: str, rows: Mapping[str, Any]) -> Any:
    own = values.keys(table)
    made = {key: rows[key] for key in own}
    if table in OPEN:
        made["options"] = {key: value for key, value in rows.items() if key not in own}
    return TABLES[table](**made)


def _scheme_options() -> list[str]:
    from fedloom.partition import SCHEMES

    return list({name: None for scheme in SCHEMES.values() for name in scheme.options})
