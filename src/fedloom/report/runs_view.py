"""Several runs in one table: each as a row of words, the best figure of every column marked, and how they differ."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedloom.report import words
from fedloom.report.run_reading import RunLog
from fedloom.report.run_words import size, value

ROLES: Final = {
    "central": ("central", "all data together"),
    "local-only": ("member", "nothing is shared"),
}
"""What stands beside federated algorithms for comparison: the colour and the words."""

_SILENT: Final = (("run", "out"), ("run", "plan"), ("run", "workers"), ("run", "threads"), ("run", "format"))


@dataclass(frozen=True)
class _Column:
    """One column of the table.

    Attributes:
        title: Its heading.
        of: The figure of a run; NaN where it has none.
        text: How a figure is written.
        sign: 1 where more is better, -1 where less is, 0 where neither.
        more: What stands behind the figure of a run.
    """

    title: str
    of: Callable[[RunLog], float]
    text: Callable[[float], str]
    sign: int
    more: Callable[[RunLog], str] = lambda _: ""


def names(runs: Sequence[RunLog]) -> list[str]:
    """Name the runs: by algorithm where that tells them apart, by folder otherwise."""
    algorithms = [run.algorithm for run in runs]
    if len(set(algorithms)) == len(runs):
        return algorithms
    folders = [run.name for run in runs]
    if len(set(folders)) == len(runs):
        return folders
    paths = [os.fspath(run.folder.resolve()) for run in runs]
    parent = os.path.commonpath(paths)
    found = [os.path.relpath(path, parent) for path in paths]
    twice = {name for name, n in Counter(found).items() if n > 1}
    return [f"{name} ({i})" if name in twice else name for i, name in enumerate(found, 1)]


def score(run: RunLog) -> float:
    """Return what a run is judged by: the last accuracy of its global model; of the clients' own where all are alone."""
    if run.alone:
        return run.own[-1].mean if run.own else math.nan
    return run.final.accuracy if run.final else math.nan


def table(runs: Sequence[RunLog], named: Sequence[str], target: float) -> dict[str, Any]:
    """Return the headings and the rows, best first; a column in which no run has a figure is left out."""
    packed = any(run.codec for run in runs)
    columns = [c for c in _columns(target, packed=packed) if any(math.isfinite(c.of(run)) for run in runs)]
    best = {c.title: _best(c, runs) for c in columns}
    order = sorted(range(len(runs)), key=lambda i: (not math.isfinite(score(runs[i])), -_known(score(runs[i]))))
    rows = []
    for i in order:
        run = runs[i]
        kind, role = ROLES.get(run.algorithm, ("method", "" if named[i] == run.algorithm else run.algorithm))
        rival = run.algorithm not in ROLES
        cells = [
            {"text": words.unbroken(c.text(c.of(run)) + c.more(run)), "best": rival and c.of(run) == best[c.title]}
            for c in columns
        ]
        rows.append({"name": named[i], "kind": kind, "role": role, "cells": cells})
    return {"headings": [c.title for c in columns], "rows": rows}


def differences(runs: Sequence[RunLog], named: Sequence[str]) -> dict[str, Any]:
    """Return the settings in which the runs differ: names of the runs, and per setting its values in that order."""
    keys = sorted({(t, k) for run in runs for t, keys in run.config.items() for k in keys} - set(_SILENT))
    rows = []
    for section, key in keys:
        found = [run.setting(section, key) for run in runs]
        texts = [words.DASH if v is None else value(v) or words.DASH for v in found]
        if len(set(texts)) > 1:
            rows.append((f"{section}: {key}", texts))
    return {"names": list(named), "rows": rows}


def target_of(runs: Sequence[RunLog]) -> float:
    """Return the target that the runs share; the lowest where they differ, NaN where there is none."""
    return min((run.target for run in runs if math.isfinite(run.target)), default=math.nan)


def sent_until(run: RunLog, target: float) -> float:
    """Return the bytes sent until a run first had that accuracy; NaN when it never had."""
    found = run.reaching(target)
    return math.nan if found is None else float(run.traffic[run.rounds.index(found)]) or math.nan


def _columns(target: float, *, packed: bool) -> list[_Column]:
    goal = words.percent(target)
    up = [_Column("of that, up", lambda r: float(r.uploads[-1]) or math.nan if r.uploads else math.nan, size, 0)]
    return [
        _Column("accuracy at the end", lambda r: math.nan if r.alone or not r.final else r.final.accuracy, _share, 1),
        _Column("best accuracy", lambda r: math.nan if r.alone or not r.best else r.best.accuracy, _share, 1),
        _Column("clients' data, global model", lambda r: _last(r.at_home, "mean", unless=r.alone), _share, 1),
        _Column("worst tenth", lambda r: _last(r.at_home, "worst", unless=r.alone), _share, 1),
        _Column("clients' data, own models", lambda r: _last(r.own, "mean"), _share, 1),
        _Column("worst tenth, own models", lambda r: _last(r.own, "worst"), _share, 1),
        _Column("epsilon", lambda r: r.epsilon, _number, 0, lambda r: ", void" if r.void else ""),
        _Column(f"rounds to {goal}", lambda r: _round_to(r, target), _plain, -1),
        _Column(f"sent until {goal}", lambda r: sent_until(r, target), size, -1),
        _Column(f"simulated time until {goal}", lambda r: _clock_to(r, target), words.duration, -1),
        _Column("rounds", lambda r: float(len(r.rounds)), _plain, 0),
        _Column("sent", lambda r: float(r.traffic[-1]) or math.nan if r.traffic else math.nan, size, 0),
        *(up if packed else []),
        _Column("simulated time", lambda r: r.clock or math.nan, words.duration, 0),
        _Column("time on this machine", lambda r: r.seconds or math.nan, words.duration, 0),
    ]


def _best(column: _Column, runs: Sequence[RunLog]) -> float:
    """Return the best of a column's federated runs; NaN where there are not two to compare, or nothing is better."""
    rivals = [run for run in runs if run.algorithm not in ROLES]
    found = [v for run in rivals if math.isfinite(v := column.of(run))]
    return max(found, key=lambda v: v * column.sign) if column.sign and len(found) > 1 else math.nan


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else words.DASH


def _share(share: float) -> str:
    return words.percent(share, 2)


def _plain(count: float) -> str:
    return f"{count:,.0f}" if math.isfinite(count) else words.DASH


def _known(figure: float) -> float:
    return figure if math.isfinite(figure) else 0.0


def _last(spreads: Sequence[Any], part: str, *, unless: bool = False) -> float:
    return float(getattr(spreads[-1], part)) if spreads and not unless else math.nan


def _round_to(run: RunLog, target: float) -> float:
    found = None if run.alone else run.reaching(target)
    return float(found.round) if found else math.nan


def _clock_to(run: RunLog, target: float) -> float:
    found = None if run.alone else run.reaching(target)
    return found.clock or math.nan if found else math.nan


def lead(runs: Sequence[RunLog], named: Sequence[str]) -> str:
    """Say in a sentence or two which run ended best, and where it stands between the two references."""
    known = [(score(run), name, run) for run, name in zip(runs, named, strict=True) if math.isfinite(score(run))]
    federated = [entry for entry in known if entry[2].algorithm not in ROLES]
    if not known:
        return "None of these runs was evaluated."
    if not federated:
        return "; ".join(f"{name}: {words.percent(share)}" for share, name, _ in known) + "."
    share, name, _ = max(federated, key=lambda entry: entry[0])
    crowd = f", the best of {len(federated)}" if len(federated) > 1 else ""
    said = [f"{name} ends at {words.percent(share)}{crowd}."]
    for other, _, run in known:
        if run.algorithm == "central":
            gap = 100 * (other - share)
            how = f"{abs(gap):.1f} points {'more' if gap >= 0 else 'less'}"
            said.append(f"Training on all data together reaches {words.percent(other)}, {how}.")
        elif run.alone:
            said.append(
                f"Clients that share nothing reach {words.percent(other)} with their own models, on samples of their own."
            )
    return " ".join(said)
