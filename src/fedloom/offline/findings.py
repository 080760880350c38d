"""Findings: what happened, in words, and the next command to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from fedloom.offline import starts
from fedloom.offline.aligned_rows import Alignment
from fedloom.offline.collect import ModelFile
from fedloom.report import words
from fedloom.report.comparison import Finding, Row

FALL = 0.05
WEAK = 0.10
SKEW = 0.3
"""Parts are skewed when a member's class shares differ by more than this from those of all, in total variation."""


_ORDER = (
    "What does is to bring the hidden units of all members into one common order before averaging, which changes none "
    "of their answers."
)


@dataclass(frozen=True)
class Case:
    """What is to be explained.

    Attributes:
        rows: The evaluated models.
        members: The members' files.
        verdict: Whether they share a start; None when they are of different architectures.
        difference: Why the files cannot be merged; empty when they can.
        parts: The folder that ``split`` made, where it is known.
        alignment: What became of aligning the members; None when it was not tried.
    """

    rows: Sequence[Row]
    members: Sequence[ModelFile]
    verdict: starts.Verdict | None
    difference: str = ""
    parts: str | Path | None = None
    alignment: Alignment | None = None

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
        return [_different(case), *_aligned(case)]
    skew = _skew(case.members)
    merge = _merge(case, skew)
    found = [*merge, *_start(case, case.verdict, merge), *_aligned(case)]
    if skew:
        text = f"{skew} Each member knows its own classes best, and the members pull the average apart."
        found.append(Finding("info", "The members' parts are skewed", text))
    else:
        found += _weak_member(case.alone)
    return [*found, *_effort(case.members)]


def _different(case: Case) -> Finding:
    """Explain files that cannot be averaged as they are, whatever their start."""
    made = case.alignment
    if made is not None and made.chosen is not None:
        reached = words.percent(made.chosen.counts.accuracy)
        text = f"{case.difference}, so they cannot be averaged as they are.\n\n{_reached(case, made, made.chosen)}"
        title = f"The members' layers differ in width; aligned the merge reaches {reached}"
        return Finding("warning", title, f"{text} This command makes its file:", made.command)
    text = f"{case.difference}. Only models of one architecture can be averaged; the ensemble works for all of them."
    return Finding("problem", "These files are not of one architecture", text)


def _start(case: Case, verdict: starts.Verdict, merge: Sequence[Finding]) -> list[Finding]:
    """Say whether the members share a start, unless what is said of the merge says that they do not."""
    found = starts.findings(case.members, verdict, case.parts)
    if any(f.level == "problem" for f in merge):
        return [f for f in found if f.level != "problem"]
    cure, command = _cure(case)
    usual = starts.cure(case.members, case.parts)
    return [
        replace(f, text=f.text.removesuffix(usual) + cure, command=command) if f.level == "problem" else f
        for f in found
    ]


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
        cure, command = _cure(case)
        chosen = case.alignment.chosen if case.alignment else None
        reached = f"; aligned it reaches {words.percent(chosen.counts.accuracy)}" if chosen else ""
        return Finding(
            "problem", f"The merge fell to {merged}: no shared start{reached}", f"{stands} {why} {cure}", command
        )
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


def _cure(case: Case) -> tuple[str, str]:
    """Say what helps members without a shared start, and which command does it."""
    made, usual = case.alignment, starts.cure(case.members, case.parts)
    command = starts.cure_command(case.members, case.parts)
    if made is None:
        return usual, command
    if made.chosen is None:
        return f"Aligning them first is not possible here: {made.refused.rstrip('.')}. {usual}", command
    text = f"{_ORDER}\n\n{_reached(case, made, made.chosen)}"
    if made.chosen.counts.accuracy < fmean(row.counts.accuracy for row in case.alone) - FALL:
        return f"{text} That is still well below the members. {usual}", command
    return f"{text} This command makes its file:", made.command


def _reached(case: Case, made: Alignment, chosen: Row) -> str:
    return (
        f"Aligned, the merge reaches {words.percent(chosen.counts.accuracy)} ({chosen.name}), the members alone "
        f"{words.percents(row.counts.accuracy for row in case.alone)}. It took {words.duration(made.seconds)} with "
        f"{made.probe}, and was chosen by {made.judge}."
    )


def _aligned(case: Case) -> list[Finding]:
    """Say when something simpler is better than the aligned merge, or when there was no need for it."""
    chosen = case.alignment.chosen if case.alignment else None
    if case.alignment is None or chosen is None:
        return []
    merged, found = chosen.counts.accuracy, []
    if case.verdict is not None and case.verdict.shared is not False and case.plain is not None:
        plain = f"{case.plain.name} {words.percent(case.plain.counts.accuracy)}"
        text = f"{chosen.name} reaches {words.percent(merged)}, {plain} without alignment."
        found.append(Finding("info", "They were aligned as well", text))
    rivals = [r for r in case.rows if r.kind in ("member", "baseline") and r.counts.accuracy > merged]
    if not rivals:
        return found
    best = max(rivals, key=lambda r: r.counts.accuracy)
    what = "A single member" if best.kind == "member" else "One member with a new last layer"
    chance = _by_chance(best, chosen)
    text = (
        f"{best.name} reaches {words.percent(best.counts.accuracy, 2)}, the aligned merge ({chosen.name}) "
        f"{words.percent(merged, 2)}{'; on this test set the difference may be chance' if chance else ''}. "
        f"{_more(case.alignment)}"
    )
    return [*found, Finding("info" if chance else "warning", f"{what} is better than the aligned merge", text)]


def _by_chance(one: Row, other: Row) -> bool:
    """Tell whether two accuracies lie within the 95 % interval of their difference, as if from two test sets."""
    a, b = one.counts.accuracy, other.counts.accuracy
    return bool(abs(a - b) < 1.96 * ((a * (1 - a) + b * (1 - b)) / one.counts.n) ** 0.5)


def _more(made: Alignment) -> str:
    if made.own:
        return "'fedloom merge' with --effort best tries more ways, distillation from the ensemble among them."
    return "Inputs of your own usually make the merge better, and need no labels: pass them as --unlabelled."


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
