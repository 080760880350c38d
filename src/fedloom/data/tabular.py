"""Readers of tables: CSV and Parquet, with numeric and categorical features and a label column."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedloom.data.arrays import High, reading
from fedloom.data.dataset import Dataset
from fedloom.data.spec import Spec
from fedloom.errors import DataError, MissingDependency, UsageError, unknown

_OPTIONS = ("label", "column", "drop", "categorical", "high")
_LABELS = ("label", "labels", "class", "target", "y")
_MISSING = ("", "na", "n/a", "nan", "null", "?")
_MOST_CATEGORIES = 256
_MOST_CLASS_NUMBERS = 1000


@dataclass(frozen=True)
class Table:
    """Named columns of one length: float64 numbers, or texts. ``first`` is the line of the first row, for messages."""

    path: Path
    columns: dict[str, NDArray[Any]]
    first: int = 0
    what: str = "row"


def read_csv(spec: Spec) -> tuple[Dataset, None]:
    """Read a CSV file with a header; comma, semicolon and tab are told apart.

    Options: ``label=COLUMN`` (else the column called label, class, target or y), ``column=COLUMN`` for the split by
    column (it is no feature), ``drop=A+B``, ``categorical=A+B`` for numbers that are codes, ``high=NUMBER|none``.
    Texts become one-hot columns named ``column=category``. Line numbers in messages count the header as line 1.

    Raises:
        DataError: A missing value (line and column), rows of unequal length, no header, a column that mixes numbers and
            texts, labels that are no classes.
        UsageError: An unknown column or option.
    """
    spec.expect("a CSV file", _OPTIONS)
    path = Path(spec.path)
    header, delimiter = _header(path)
    header = [name or f"#{i + 1}" for i, name in enumerate(header)]
    _check_header(path, header, spec)
    _names(spec, "drop", header, path)
    numbers = _fast(path, delimiter, len(header))
    if numbers is not None:
        table = Table(path, dict(zip(header, numbers.T, strict=True)), first=2, what="line")
    else:
        table = _slow(path, header, delimiter, spec)
    return _dataset(table, spec), None


def read_parquet(spec: Spec) -> tuple[Dataset, None]:
    """Read a Parquet file; the options of :func:`read_csv`. Row numbers in messages start at 0.

    Raises:
        MissingDependency: pyarrow is not installed.
        DataError: As :func:`read_csv`, and a column of a type that is neither number nor text.
    """
    spec.expect("a Parquet file", _OPTIONS)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependency.of("pyarrow", "parquet", "reading a Parquet file") from error
    path = Path(spec.path)
    with reading(path):
        stored = pq.read_table(path)
    drop = _names(spec, "drop", stored.column_names, path)
    columns = {}
    for name in stored.column_names:
        values, kind = stored[name], stored[name].type
        if name in drop:
            continue
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise _missing(path, values.null_count, f"row {row}", name)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            columns[name] = np.array(values.to_pylist(), dtype=str)
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            columns[name] = values.to_numpy().astype(np.float64)
        else:
            raise DataError(
                f"{path}: column '{name}' is of type {kind}, numbers or texts are expected; leave it out: "
                f"{path}:drop={name}",
                file=str(path),
                column=name,
            )
    return _dataset(Table(path, columns), spec), None


def _header(path: Path) -> tuple[list[str], str]:
    """Return the names in the first line and the delimiter between them."""
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        headers = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in (",", ";", "\t")}
    best = max(headers, key=lambda delimiter: len(headers[delimiter]))
    return [name.strip() for name in headers[best]], best


def _check_header(path: Path, header: list[str], spec: Spec) -> None:
    if not header:
        raise DataError(f"{path}: an empty file", file=str(path))
    as_numbers = [name for name in header if _is_number(name)]
    if len(as_numbers) == len(header) or any(float(name) % 1 != 0 for name in as_numbers):
        raise DataError(f"{path}: the first line holds data, the names of the columns are expected", file=str(path))
    if len(header) == 1:
        raise DataError(
            f"{path}: one column ('{header[0]}'); columns separated by comma, semicolon or tab are expected",
            file=str(path),
        )
    twice = next((name for name in header if header.count(name) > 1), None) if len(set(header)) < len(header) else None
    if twice is not None:
        raise DataError(f"{path}: two columns are called '{twice}'", file=str(path), column=twice)
    nameless = [name for name in header if name.startswith("#") and name[1:].isdigit()]
    if nameless and nameless[0] not in spec.several("drop"):
        raise DataError(
            f"{path}: column {nameless[0][1:]} has no name (pandas writes its index like that); leave it out: "
            f"{path}:drop={nameless[0]}",
            file=str(path),
            column=nameless[0],
        )


def _fast(path: Path, delimiter: str, width: int) -> NDArray[np.float64] | None:
    """Read a table of nothing but finite numbers; None when it is not that."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="loadtxt: input contained no data")
            values = np.loadtxt(
                path, delimiter=delimiter, skiprows=1, ndmin=2, comments=None, quotechar='"', encoding="utf-8-sig"
            )
    except ValueError:
        return None
    return values if values.shape[1:] == (width,) and len(values) and np.isfinite(values).all() else None


def _slow(path: Path, header: list[str], delimiter: str, spec: Spec) -> Table:
    """Read a table of numbers and texts, with a message for every kind of bad cell."""
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        rows, lines = [], []
        try:
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path}: line {reader.line_num}: {error}", file=str(path)) from error
    if not rows:
        raise DataError(f"{path}: a header and no rows", file=str(path))
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise DataError(f"{path}: line {line} has {len(row)} values for {len(header)} columns", file=str(path))
    texts = [*spec.several("categorical"), spec.options.get("label", ""), spec.options.get("column", "")]
    columns: dict[str, NDArray[Any]] = {}
    for name, column in zip(header, zip(*rows, strict=True), strict=True):
        if name in spec.several("drop"):
            continue
        cells = [cell.strip() for cell in column]
        missing = [i for i, cell in enumerate(cells) if cell.lower() in _MISSING]
        if missing:
            raise _missing(path, len(missing), f"line {lines[missing[0]]}", name)
        columns[name] = _column(
            path, name, cells, lines, delimiter, text_is_fine=name in texts or name.lower() in _LABELS
        )
    return Table(path, columns, first=2, what="line")


def _column(
    path: Path, name: str, cells: Sequence[str], lines: list[int], delimiter: str, *, text_is_fine: bool
) -> NDArray[Any]:
    """Return a column as numbers if all of it is, else as texts."""
    try:
        return np.array(cells, dtype=str).astype(np.float64)
    except ValueError:
        pass
    if delimiter == ";":  # as spreadsheets write it where the comma is the decimal sign
        try:
            return np.array([cell.replace(",", ".") for cell in cells], dtype=str).astype(np.float64)
        except ValueError:
            pass
    strange = [i for i, cell in enumerate(cells) if not _is_number(cell)]
    if 2 * len(strange) <= len(cells) and not text_is_fine:
        raise DataError(
            f"{path}: column '{name}' holds numbers, but line {lines[strange[0]]} has '{cells[strange[0]]}'; if they "
            f"are categories say so: {path}:categorical={name}",
            file=str(path),
            column=name,
            row=lines[strange[0]],
        )
    return np.array(cells, dtype=str)


def _dataset(table: Table, spec: Spec) -> Dataset:
    """Turn the columns into features, labels and the values to split by."""
    path, names = table.path, list(table.columns)
    label = _label(spec, names, path)
    column = spec.options.get("column")
    if column is not None and column not in names:
        raise unknown(f"column of {path}", column, names)
    categorical = _names(spec, "categorical", names, path)
    left_out = {label, column, *spec.several("drop")}
    labels, class_names = _labels(table, label)
    features: list[NDArray[np.float32]] = []
    feature_names: list[str] = []
    for name in names:
        if name in left_out:
            continue
        values = table.columns[name]
        if values.dtype.kind == "f" and name not in categorical:
            features.append(_float32(table, name, values))
            feature_names.append(name)
        else:
            categories, codes = np.unique(values, return_inverse=True)
            if len(categories) > _MOST_CATEGORIES:
                raise DataError(
                    f"{path}: column '{name}' has {len(categories)} different texts, at most {_MOST_CATEGORIES} can be "
                    f"categories; leave it out: {path}:drop={name}",
                    file=str(path),
                    column=name,
                )
            features += list((codes.reshape(-1)[None] == np.arange(len(categories))[:, None]).astype(np.float32))
            feature_names += [f"{name}={_text(category)}" for category in categories]
    if not features:
        raise DataError(f"{path}: no column is left for the features", file=str(path))
    return Dataset.of(
        np.stack(features, axis=1),
        labels,
        name=str(path),
        class_names=class_names,
        high=cast(High, spec.high()),
        column=None if column is None else _texts(table.columns[column]),
        feature_names=feature_names,
    )


def _label(spec: Spec, names: list[str], path: Path) -> str:
    label = spec.options.get("label")
    if label is not None:
        if label not in names:
            raise unknown(f"column of {path}", label, names)
        return label
    usual = [name for name in names if name.lower() in _LABELS]
    if len(usual) != 1:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise UsageError(f"{path}: which column is the label? Say so: {path}:label=NAME (columns: {shown})")
    return usual[0]


def _labels(table: Table, label: str) -> tuple[NDArray[Any], list[str] | None]:
    """Return labels that are class numbers or texts, and the names of the classes when the numbers are codes."""
    values = table.columns[label]
    if values.dtype.kind != "f":
        return values, None
    bad = np.flatnonzero(~np.isfinite(values) | (values % 1 != 0))
    if len(bad):
        raise DataError(
            f"{table.path}: label {values[bad[0]]:g} in {table.what} {table.first + bad[0]}, column '{label}', is not "
            f"a whole number: classes are expected",
            file=str(table.path),
            column=label,
        )
    numbers = values.astype(np.int64)
    if numbers.min() >= 0 and numbers.max() < _MOST_CLASS_NUMBERS:
        return numbers, None
    codes, ids = np.unique(numbers, return_inverse=True)
    return ids.reshape(-1), [str(code) for code in codes]


def _float32(table: Table, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    bad = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max))
    if len(bad):
        raise DataError(
            f"{table.path}: {len(bad)} {'value is' if len(bad) == 1 else 'values are'} NaN or infinite, the first in "
            f"{table.what} {table.first + bad[0]}, column '{name}'",
            file=str(table.path),
            column=name,
        )
    return values.astype(np.float32)


def _names(spec: Spec, option: str, names: Sequence[str], path: Path) -> list[str]:
    chosen = spec.several(option)
    for name in chosen:
        if name not in names:
            raise unknown(f"column of {path}", name, names)
    return chosen


def _missing(path: Path, count: int, row: str, column: str) -> DataError:
    what = "1 missing value," if count == 1 else f"{count} missing values, the first"
    return DataError(
        f"{path}: column '{column}' has {what} in {row}; fill them in, or leave out the rows or the column",
        file=str(path),
        row=row,
        column=column,
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _texts(values: NDArray[Any]) -> NDArray[np.str_]:
    return np.array([_text(value) for value in values], dtype=str)
