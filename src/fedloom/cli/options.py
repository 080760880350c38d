"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

from pathlib import Path

import click

from fedloom.errors import UsageError

PATH = click.Path(path_type=Path)

data_dir = click.option("--data-dir", type=PATH, help="Where the data sets lie (or the variable FEDLOOM_DATA).")
device = click.option("--device", "device_name", help="cpu or cuda; a GPU when there is one.")
model_code = click.option("--model", help="The model's code (file.py:function) where a file holds only arrays.")
unlabelled = click.option("--unlabelled", help="Inputs without labels to align on: a name, or a path such as x.npy.")
quiet = click.option("--quiet", is_flag=True, help="No progress bars.")
rule = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="An option of the method, such as trim=0.1."
)
method = click.option("--method", default="fedavg", show_default=True, help="'fedloom list methods' explains all.")


def several(text: str | None) -> list[str] | None:
    """Split names at the commas; None stays None.

    Example:
        >>> several("ana, luis,")
        ['ana', 'luis']
    """
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def numbers_or_word(text: str | None) -> list[float] | str | None:
    """Read ``--weights``: numbers, or the word ``accuracy``.

    Raises:
        UsageError: Neither the one nor the other.

    Example:
        >>> numbers_or_word("0.75,0.25")
        [0.75, 0.25]
    """
    if text is None or text == "accuracy":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--weights {text}: numbers separated by commas are expected, or 'accuracy'") from error


def settings_of(texts: tuple[str, ...]) -> dict[str, float]:
    """Read the values of ``--set``.

    Raises:
        UsageError: A text that is not NAME=NUMBER, or a name that is given twice.

    Example:
        >>> settings_of(("trim=0.2", "k=1"))
        {'trim': 0.2, 'k': 1.0}
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        try:
            number = float(value)
        except ValueError as error:
            raise UsageError(f"--set {text}: NAME=NUMBER is expected, such as trim=0.1") from error
        if name in found:
            raise UsageError(f"--set {text}: '{name}' is given twice")
        found[name] = number
    return found


def with_column(data: str, column: str | None) -> str:
    """Add ``--column`` to the source of the data.

    Raises:
        UsageError: The data set has no columns.
    """
    if column is None:
        return data
    from fedloom.data.sources import NAMES
    from fedloom.data.spec import parse

    if data in NAMES:
        raise UsageError(f"--column {column}: {data} has no columns; by-column is for data of your own")
    return f"{data}{',' if parse(data).options else ':'}column={column}"
