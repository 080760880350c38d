"""Numbers and results in plain English, the same on the page, in the terminal and in a notebook."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.report.comparison import Comparison

DASH = "–"
_MANY_SAMPLES = 5000


def percent(share: float, digits: int = 1) -> str:
    """Write a share of 0-1 as a percentage; what is not a number becomes a dash.

    Example:
        >>> percent(0.97812), percent(0.97812, 2), percent(float("nan"))
        ('97.8 %', '97.81 %', '–')
    """
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else DASH


def percents(shares: Iterable[float], digits: int = 1) -> str:
    """Write the range of some shares.

    Example:
        >>> percents([0.96, 0.951]), percents([0.96])
        ('95.1–96.0 %', '96.0 %')
    """
    finite = [share for share in shares if math.isfinite(share)]
    if not finite:
        return DASH
    low, high = percent(min(finite), digits), percent(max(finite), digits)
    return high if low == high else f"{low.removesuffix(' %')}–{high}"


def loss(value: float) -> str:
    """Write a loss: three decimals, three significant digits when it is small or large.

    Example:
        >>> loss(0.0931), loss(2.302585), loss(0.00123456), loss(123.4), loss(0.0), loss(float("inf"))
        ('0.093', '2.303', '0.00123', '123', '0.000', '–')
    """
    if not math.isfinite(value):
        return DASH
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 10 else f"{value:.3g}"


def many(number: int, what: str) -> str:
    """Write a number of things.

    Example:
        >>> many(1, "epoch"), many(1200, "sample")
        ('1 epoch', '1,200 samples')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def command(*words: str | Path) -> str:
    """Write a command as it is typed, quoted where this system's shell needs it.

    Example:
        >>> command("fedloom", "train", "parts/José")
        'fedloom train parts/José'
    """
    if os.name == "nt":
        return subprocess.list2cmdline(map(str, words))
    return " ".join(w if re.fullmatch(r"[\w@%+=:,./-]+", w) else shlex.quote(w) for w in map(str, words))


def unbroken(text: str) -> str:
    """Keep figures and their units, and the two ends of a range, on one line."""
    return re.sub(r"(?<=\d)–(?=\d)", "\u2060–\u2060", text.replace(" %", "\u00a0%"))


def duration(seconds: float) -> str:
    """Write a time; 0 and NaN mean that it was not measured.

    Example:
        >>> [duration(s) for s in (0.0, 0.0004, 0.25, 8.4, 75, 7320)]
        ['–', '< 1 ms', '250 ms', '8.4 s', '1 min 15 s', '2 h 2 min']
    """
    if not math.isfinite(seconds) or seconds == 0:
        return DASH
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shorten(name: str, length: int = 24) -> str:
    """Cut a name in its middle, and make its line breaks and control characters visible as spaces.

    Example:
        >>> shorten("a-member-with-a-very-long-name", 15)
        'a-membe…ng-name'
    """
    clean = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or "?"
    if len(clean) <= length:
        return clean
    half = length // 2
    return f"{clean[:half]}…{clean[len(clean) - (length - half - 1) :]}"


def axis_start(accuracies: Iterable[float]) -> float:
    """Return where the axis of accuracies starts: at 0, or higher when every model is good.

    Example:
        >>> axis_start([0.1, 0.98]), axis_start([0.951, 0.984]), axis_start([0.983, 0.991])
        (0.0, 0.9, 0.97)
    """
    low = min((a for a in accuracies if math.isfinite(a)), default=0.0)
    if low < 0.6:
        return 0.0
    step = 20 if low < 0.97 else 100
    return math.floor(low * step - (0.5 if step == 20 else 1.0)) / step


def result(comparison: Comparison) -> str:
    """Say the result in one sentence: the best merge against the members, the rounds and central training.

    For one method: "fedavg of 6 members: 97.8 % – members alone 95.1–96.0 %, central training 98.4 %".
    """
    of = comparison.of_kind
    members = [row.counts.accuracy for row in of("member")]
    best = comparison.best()
    others = []
    if best is not None and members:
        others.append(f"{'members' if len(members) > 1 else 'the member'} alone {percents(members)}")
    for kind, words in (("global", _rounds(comparison)), ("ensemble", "ensemble"), ("central", "central training")):
        if rows := of(kind):
            others.append(f"{words} {percent(max(row.counts.accuracy for row in rows))}")
    if best is not None:
        crowd = f" of {len(members)} members" if len(members) > 1 else ""
        methods = len(of("method")) + len(of("aligned"))
        choice = f", the best of {methods} methods" if methods > 1 else ""
        how = f"{best.name}{crowd}"
        if best.kind == "aligned":
            how = f"{len(members)} members aligned and merged by {best.name.removeprefix('aligned ')}"
        first = f"{how}{choice}: {percent(best.counts.accuracy)}"
    elif members:
        crowd = f"{len(members)} members" if len(members) > 1 else of("member")[0].name
        first = f"{crowd}: {percents(members)}"
    else:
        return ", ".join(others).capitalize() or "Nothing was compared"
    return f"{first} {DASH} {', '.join(others)}" if others else first


def _rounds(comparison: Comparison) -> str:
    n = len(comparison.rounds)
    return f"after {many(n, 'round')}" if n else "after the rounds"


def certainty(comparison: Comparison) -> str:
    """Say how exactly a test set of this size tells models apart (95 % interval of a share); empty when unknown."""
    ranked = comparison.ranked()
    if not ranked or not ranked[0].counts.n or not math.isfinite(ranked[0].counts.accuracy):
        return ""
    n, share = ranked[0].counts.n, min(max(ranked[0].counts.accuracy, 0.5), 1 - 1 / (ranked[0].counts.n + 2))
    points = 196 * math.sqrt(share * (1 - share) / n)
    return (
        f"Measured on {n:,} test samples: an accuracy near the top of the list is known to about "
        f"± {points:.2g} points, so smaller differences may be chance."
    )


def digits(comparison: Comparison) -> int:
    """Return how many decimals of a percentage the size of the test set supports: 1 or 2."""
    return 2 if max((row.counts.n for row in comparison.rows), default=0) >= _MANY_SAMPLES else 1
