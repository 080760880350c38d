"""Verdicts: what aligning the members brought, in words."""

from __future__ import annotations

from statistics import fmean

from fedloom.align.candidates import Candidate, Fused
from fedloom.report import words
from fedloom.report.comparison import Finding

WEAK = 0.05
"""A merge that is weaker than the mean of its members by more than this is called weak."""

APART = 0.6
"""Members that agree with the ensemble on fewer inputs than this know different things."""


def about(fused: Fused) -> list[Finding]:
    """Say in words what fusing did, and whether something simpler is better."""
    chosen = next(c for c in fused.candidates if c.name == fused.chosen)
    plain, ensemble = fused.best("plain"), next(c for c in fused.candidates if c.name == "ensemble")
    what = "the ensemble" if "ensemble" in fused.judge else "the labels"
    text = (
        f"Of {words.many(len(fused.aligned), 'member')}, brought into a common order of hidden units, '{chosen.name}' "
        f"is the best merge: {words.percent(chosen.score)} by {fused.judge}"
    )
    text += f", {words.percent(plain.score)} without alignment." if plain else "."
    said = [Finding("good", "The members were aligned before merging", text), *_doubts(fused, chosen)]
    better = [
        c for c in fused.candidates if c.kind in ("baseline", "member") and c is not ensemble and _above(c, chosen)
    ]
    if better:
        best = max(better, key=lambda c: c.score)
        text = (
            f"'{best.name}' has {words.percent(best.score)}, the merge {words.percent(chosen.score)}, against {what}."
        )
        if fused.probe.endswith("no data"):
            text += " On synthetic inputs that says little: pass --unlabelled with inputs of your own."
        said.append(Finding("warning", "Something simpler is as good as the merge, or better", text))
    return said


def _doubts(fused: Fused, chosen: Candidate) -> list[Finding]:
    """Say so where the merge is weak, or where the members know different things."""
    alone = fmean(c.score for c in fused.candidates if c.kind == "member")
    said = []
    if chosen.score < alone - WEAK:
        text = (
            f"It reaches {words.percent(chosen.score)} where the members alone reach {words.percent(alone)} on average: "
            "narrow layers, or members that learned little, leave too few units that correspond. Prefer the ensemble, "
            "or let all train again from one start."
        )
        said.append(Finding("warning", "The merge is weaker than its members", text))
    if alone < APART and not fused.probe.endswith("no data"):
        text = (
            f"On average {words.percent(alone)} of their answers are those of all together, as of members that were trained "
            "on different classes. No merge of one shot holds what all of them know: let them train in rounds from one start."
        )
        said.append(Finding("warning", "The members know different things", text))
    return said


def _above(candidate: Candidate, chosen: Candidate) -> bool:
    return candidate.score > chosen.score
