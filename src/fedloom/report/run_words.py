"""What a run came to, in words and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from fedloom.report import words
from fedloom.report.run_reading import RunLog

_SIZES: Final = ("bytes", "kB", "MB", "GB", "TB", "PB")
_TIMES: Final = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))

KIND_WORDS: Final = {
    "diverged": "diverged (their numbers grew out of all bounds)",
    "dropped": "dropped out in mid-round",
    "late": "came after the deadline",
    "surplus": "were asked in reserve and not needed",
    "offline": "were offline",
    "refused": "sent something that the server refused",
}
"""What each kind of failure means, after "3 clients ..."."""


def size(count: float) -> str:
    """Write a number of bytes in decimal units.

    Example:
        >>> [size(n) for n in (0, 999, 1_536, 20_000_000, 7.5e12)]
        ['–', '999 bytes', '1.54 kB', '20 MB', '7.5 TB']
    """
    if not count or not math.isfinite(count):
        return words.DASH
    step = min(len(_SIZES) - 1, max(0, int(math.log10(count) / 3 + 1e-12)))
    return f"{count / 1000**step:.3g} {_SIZES[step]}"


def size_unit(most: float) -> tuple[float, str]:
    """Return the unit that an axis of bytes up to ``most`` is written in, and its size."""
    step = min(len(_SIZES) - 1, int(math.log10(max(most, 1.0)) / 3 + 1e-12))
    return 1000.0**step, _SIZES[step]


def time_unit(most: float) -> tuple[float, str]:
    """Return the unit that an axis of seconds up to ``most`` is written in, and its length.

    Example:
        >>> time_unit(100.0), time_unit(9000.0)
        ((1.0, 'seconds'), (3600.0, 'hours'))
    """
    return next(((length, name) for length, name in _TIMES if most >= 2 * length), (1.0, "seconds"))


def listed(texts: Iterable[str], most: int = 5) -> str:
    """Join a few texts as a sentence does, and count those beyond ``most``.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"]), listed("abcdefg", 3)
        ('a', 'a, b and c', 'a, b, c and 4 others')
    """
    shown = list(texts)
    if len(shown) > most + 1:
        shown = [*shown[:most], f"{len(shown) - most} others"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def client(name: str) -> str:
    """Name a client: a number becomes "client 7", a name stays."""
    return f"client {name}" if name.isdigit() else words.shorten(name)


def value(found: Any) -> str:
    """Write one value of a configuration."""
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.6g}" if math.isfinite(found) else words.DASH
    if isinstance(found, (list, tuple)):
        return ", ".join(value(one) for one in found)
    if isinstance(found, dict):
        return ", ".join(f"{key} {value(one)}" for key, one in found.items())
    return str(found)


def title(run: RunLog) -> str:
    """Name a run: its algorithm, and its data."""
    source = run.setting("data", "source")
    return f"{run.algorithm} on {words.shorten(str(source), 60)}" if source else run.algorithm


def epsilon(run: RunLog) -> str:
    """Write the epsilon of a run; one that promises nothing says so."""
    if not math.isfinite(run.epsilon):
        return words.DASH
    return f"{run.epsilon:.3g}{', void' if run.void else ''}"


def headline(run: RunLog) -> str:
    """Say in two or three sentences what a run came to."""
    if not run.rounds:
        return "No round is over yet."
    said = [_reached(run), _target(run), _spent(run), _hidden(run)]
    return " ".join(sentence for sentence in said if sentence)


def _reached(run: RunLog) -> str:
    final, best, n = run.final, run.best, words.many(len(run.rounds), "round")
    if run.own:
        own = f"the clients' own models reach {words.percent(run.own[-1].mean)} on average"
        shared = f", the global model {words.percent(final.accuracy)}" if final and not run.alone else ""
        return f"After {n} {own}{shared}."
    if final is None or best is None:
        return f"{n} {'is' if len(run.rounds) == 1 else 'are'} over; the global model was not evaluated."
    better = best.accuracy > final.accuracy + 0.0005
    peak = f"; its best was {words.percent(best.accuracy)}, in round {best.round}" if better else ""
    return f"After {n} the global model reaches {words.percent(final.accuracy)}{peak}."


def _target(run: RunLog) -> str:
    if not math.isfinite(run.target) or not run.evaluated or run.alone:
        return ""
    if run.reached is None:
        return f"The target of {words.percent(run.target)} was not reached."
    return f"The target of {words.percent(run.target)} was reached in round {run.reached.round}."


def _spent(run: RunLog) -> str:
    parts = [f"took {words.duration(run.seconds)} on this machine"] if run.seconds else []
    parts += [f"sent {size(run.traffic[-1])}"] if run.traffic and run.traffic[-1] else []
    parts += [f"would have lasted {words.duration(run.clock)} on the simulated network"] if run.clock else []
    return f"It {listed(parts)}." if parts else ""


def _hidden(run: RunLog) -> str:
    if not math.isfinite(run.epsilon):
        return ""
    unit = run.privacy.get("unit", "client")
    if run.void:
        return f"It hides no {unit}: its noise can be repeated, which makes the epsilon of {run.epsilon:.3g} void."
    return f"It hides every {unit} with an epsilon of {run.epsilon:.3g}."
