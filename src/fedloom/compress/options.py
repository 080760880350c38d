"""Options of stages: texts become numbers, or a line that says why not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedloom.errors import UsageError


@dataclass(frozen=True)
class Portion:
    """How many of n values: a share of them, or a number.

    Attributes:
        share: In (0, 1], or None.
        count: At least 1, or None.
    """

    share: float | None = None
    count: int | None = None

    def of(self, n: int) -> int:
        """Return the number of values: never more than n, and one at least where there is any.

        Example:
            >>> Portion(share=0.01).of(1000), Portion(share=0.01).of(3), Portion(count=5).of(2)
            (10, 1, 2)
        """
        wanted = self.count if self.count is not None else math.floor((self.share or 0.0) * n + 0.5)
        return min(n, max(1, wanted))

    def __str__(self) -> str:
        """Return it as it is written."""
        return str(self.count) if self.count is not None else repr(self.share)


def portion(stage: str, name: str, text: str) -> Portion:
    """Read a share (``0.01``, ``1%``, ``1.0``) or, of a whole number without a point, a count (``500``).

    Raises:
        UsageError: It is neither.
    """
    if text.isdecimal():
        if int(text) < 1:
            raise UsageError(f"{stage}: {name} = {text}; a share such as 0.01, or a count of at least 1, is expected")
        return Portion(count=int(text))
    return Portion(share=share(stage, name, text, "a share such as 0.01 or 1%, or a count such as 500, is expected"))


def share(stage: str, name: str, text: str, expected: str = "a share such as 0.1 or 10% is expected") -> float:
    """Read a share from a millionth to 1.

    Raises:
        UsageError: It is none.
    """
    try:
        found = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        found = math.nan
    if not 1e-6 <= found <= 1:
        raise UsageError(f"{stage}: {name} = {text}; {expected} (0.000001 to 1)", option=name, found=text)
    return found


def whole(stage: str, name: str, text: str, least: int, most: int) -> int:
    """Read a whole number.

    Raises:
        UsageError: It is none, or out of range.
    """
    try:
        found = int(text)
    except ValueError:
        found = least - 1
    if not least <= found <= most:
        message = f"{stage}: {name} = {text}; a whole number from {least} to {most} is expected"
        raise UsageError(message, option=name, found=text)
    return found
