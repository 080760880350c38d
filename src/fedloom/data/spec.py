r"""How a source of data is written on the command line: ``path[:option=value[,option=value...]]``.

flowers.csv:label=species              a table and its label column
scans.h5:x=images,y=labels             two arrays of a file
x_test.npy,y_test.npy                  a pair of files
C:\data\flowers.csv:label=species    the colon after a drive letter is no option
patients.csv:label=ill,drop=id+name    several names are joined by +
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.errors import UsageError, unknown

_OPTION = r"[a-z_]+=[^,]*"
_SPEC = re.compile(rf"(?P<path>.+?):(?P<options>{_OPTION}(?:,{_OPTION})*)", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """Where data are, and how to read them.

    Attributes:
        path: A file or folder; for a pair of .npy files the two, joined by a comma.
        options: The options by name, as texts.
    """

    path: str
    options: Mapping[str, str] = field(default_factory=dict)

    def expect(self, kind: str, options: Sequence[str]) -> None:
        """Raise UsageError when an option is none of those that ``kind`` ("a CSV file") has."""
        for name in self.options:
            if name not in options:
                raise unknown(f"option of {kind}", name, options)

    def several(self, option: str) -> list[str]:
        """Return the names that an option joins by +."""
        return [part for part in self.options.get(option, "").split("+") if part]

    def high(self) -> float | str | None:
        """Return the full scale that was said: a number, None for "none", or "guess"."""
        text = self.options.get("high", "guess")
        if text in ("guess", "none"):
            return "guess" if text == "guess" else None
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise UsageError(f"{self.path}: high={text}, a positive number, 'none' or 'guess' is expected", found=text)
        return value


def parse(text: str | Path) -> Spec:
    r"""Take a source apart into its path and options.

    A path that exists as it stands has no options, whatever its name looks like.

    Raises:
        UsageError: An empty source, or an option that is given twice.

    Example:
        >>> parse(r"C:\data\a.csv:label=kind")
        Spec(path='C:\\data\\a.csv', options={'label': 'kind'})
        >>> parse("x.npy,y.npy").options
        {}
    """
    text = str(text)
    if not text:
        raise UsageError("an empty source of data: a name (digits, mnist, fashion-mnist) or a path is expected")
    match = _SPEC.fullmatch(text)
    if match is None or Path(text).exists():
        return Spec(text)
    options: dict[str, str] = {}
    for item in match["options"].split(","):
        name, _, value = item.partition("=")
        if name in options:
            raise UsageError(f"{text}: option '{name}' is given twice", name=name)
        options[name] = value
    return Spec(match["path"], options)
