"""Findings: what happened, in words, and the next command to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from fedloom.offline import starts
from fedloom.offline.collect import ModelFile
from fedloom.report import words
from fedloom.report.comparison import Finding, Row

FALL = 0.05
WEAK = 0.10
SKEW = 0.3
"""Parts are skewed when a member's class shares differ by more than this from those of all, in total variation."""


@dataclass(frozen=True)
class Case:
    """What is to be explained.

    Attributes:
        rows: The evaluated models.
        members: The members' files.
        verdict: Whether they share a start; None when they are of different architectures.
        difference: Why the files cannot be merged; empty when they can.
        parts: The folder that ``split`` made, where it is known.
    """

    rows: Sequence[Row]
    members: Sequence[ModelFile]
    verdict: starts.Verdict | None
    difference: str = ""
    parts: str | Path | None = None

    @property
    def alone(self) -> list[Row]:
        """The members' rows."""
        return [row for row in self.rows if row.kind == "member"]

    @property
    def plain(self) -> Row | None:
        """The row of the plain mean, or of the first method when it was not tried."""
        merges = {row.name: row for row in self.rows if row.kind == "method"}
        return merges.get("fedavg") or next(iter(merges.values()), None)


def explain(case: Case) -> list[Finding]:
    """Say in words what the table shows; the most important comes first."""
    if case.verdict is None:
        text = (
            f"{case.difference}. Only models of one architecture can be averaged; the ensemble works for all of them."
        )
        return [Finding("problem", "These files are not of one architecture", text)]
    skew = _skew(case.members)
    merge = _merge(case, skew)
    about_start = starts.findings(case.members, case.verdict, case.parts)
    if any(f.level == "problem" for f in merge):
        about_start = [f for f in about_start if f.level != "problem"]
    found = [*merge, *about_start]
    if skew:
        text = f"{skew} Each member knows its own classes best, and the members pull the average apart."
        found.append(Finding("info", "The members' parts are skewed", text))
    else:
        found += _weak_member(case.alone)
    return [*found, *_effort(case.members)]


def _merge(case: Case, skew: str) -> list[Finding]:
    """Judge the plain mean against the members."""
    plain, alone = case.plain, [row.counts.accuracy for row in case.alone]
    if plain is None or case.verdict is None or len(alone) < 2:
        return []
    merged, range_ = plain.counts.accuracy, words.percents(alone)
    if merged < fmean(alone) - FALL:
        return [_fall(case, plain, range_, case.verdict, skew)]
    command = starts.next_round_command(case.members, case.parts)
    reached = f"{plain.name} reaches {words.percent(merged)}"
    if merged >= max(alone):
        text = f"{reached}, at least as much as every single member ({range_})."
        return [Finding("good", "The merge is as good as the best member, or better", text, command)]
    text = f"{reached}; the members {range_}. More rounds usually help."
    place = "among" if merged >= min(alone) else "a little below"
    return [Finding("info", f"The merge stands {place} the members", text, command)]


def _fall(case: Case, plain: Row, range_: str, verdict: starts.Verdict, skew: str) -> Finding:
    """Explain a mean that is worse than what went in."""
    merged = words.percent(plain.counts.accuracy)
    stands = f"The members reach {range_}, their average ({plain.name}) stands {_level(plain, merged)}."
    if verdict.shared is False:
        why = f"They do not share a start: {verdict.evidence}. {starts.BLENDED}"
        text = f"{stands} {why} {starts.cure(case.members, case.parts)}"
        command = starts.cure_command(case.members, case.parts)
        return Finding("problem", f"The merge fell to {merged}: no shared start", text, command)
    often = "Train for fewer epochs and merge more often, or pull the members together with 'fedloom train --prox-mu'."
    command = starts.next_round_command(case.members, case.parts)
    if verdict.shared is None:
        why = (
            f"Whether they share a start is not known ({verdict.evidence}). If they do not, that is the reason, and they "
            f"have to train again from one start. If they do, they moved too far apart. {often}"
        )
    elif skew:
        why = f"They share a start, but their parts are skewed: {skew} So each moved to its own classes. {often}"
    else:
        why = f"They share a start, but moved too far apart before the average was taken. {often}"
    return Finding("warning", f"The merge fell to {merged}, below the members", f"{stands} {why}", command)


def _level(row: Row, percent: str) -> str:
    """Say where an accuracy stands; chance level is what naming the most frequent class gives, and a little more."""
    chance = float(row.counts.confusion.sum(1).max()) / row.counts.n
    return "at chance level" if row.counts.accuracy < chance + 0.1 * (1 - chance) else f"at {percent}"


def _skew(members: Sequence[ModelFile]) -> str:
    """Describe the most skewed part, in a sentence; empty when the parts are alike, or not known."""
    counts = {f.name: np.array(f.sidecar.class_counts) for f in members if f.sidecar and sum(f.sidecar.class_counts)}
    if len(counts) < 2 or len({len(c) for c in counts.values()}) > 1:
        return ""
    whole = sum(counts.values(), np.zeros(1))
    away = {name: float(np.abs(c / c.sum() - whole / whole.sum()).sum()) / 2 for name, c in counts.items()}
    name = max(away, key=lambda n: away[n])
    if away[name] <= SKEW:
        return ""
    held, classes = int((counts[name] > 0).sum()), int((whole > 0).sum())
    if held < classes:
        return f"{name}, for one, holds samples of {held} of the {classes} classes."
    top = int(counts[name].argmax())
    return (
        f"{name}, for one, has {words.percent(counts[name][top] / counts[name].sum(), 0)} of its samples in one class."
    )


def _weak_member(alone: Sequence[Row]) -> list[Finding]:
    if len(alone) < 3:
        return []
    found = []
    for row in alone:
        others = fmean(r.counts.accuracy for r in alone if r is not row)
        if row.counts.accuracy < others - WEAK:
            text = (
                f"It reaches {words.percent(row.counts.accuracy)} where the others reach {words.percent(others)} on "
                "average. Look at its data and its labels, leave it out, or use a rule that withstands it: median, "
                "trimmed-mean, multi-krum."
            )
            found.append(Finding("warning", f"{row.name} is much weaker than the others", text))
    return found if len(found) <= len(alone) // 2 else []


def _effort(members: Sequence[ModelFile]) -> list[Finding]:
    steps = {f.name: f.sidecar.steps for f in members if f.sidecar and f.sidecar.steps}
    if len(steps) < 2 or max(steps.values()) <= 1.2 * min(steps.values()):
        return []
    most, least = max(steps, key=lambda n: steps[n]), min(steps, key=lambda n: steps[n])
    text = (
        f"{most} took {steps[most]:,} local steps, {least} {steps[least]:,}. In a plain mean the members with more steps "
        "pull harder; fednova takes that out."
    )
    return [Finding("info", "The members took different numbers of steps", text)]
