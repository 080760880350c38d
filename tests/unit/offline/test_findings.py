"""What is said of tables that are made up, so that every sentence has its case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedloom.metrics import Counts
from fedloom.models.sidecar import Sidecar
from fedloom.offline.aligned_rows import Alignment
from fedloom.offline.collect import ModelFile
from fedloom.offline.findings import Case, explain
from fedloom.offline.starts import Verdict
from fedloom.report.comparison import Row

NAMES = ("ana", "luis", "carmen")


def counts(accuracy, classes=10, n=1000):
    """Counts of that accuracy, all classes alike."""
    each, right = n // classes, round(n * accuracy / classes)
    confusion = np.diag(np.full(classes, right))
    confusion[:, 0] += each - right
    confusion[0, 0], confusion[0, 1] = right, each - right
    return Counts(confusion, float(n), n)


def case(members, merged, shared=True, classes=10, evidence="so it is", names=NAMES, **sidecars):
    rows = [Row(n, "member", counts(a, classes)) for n, a in zip(names, members, strict=False)]
    rows += [Row("fedavg", "method", counts(merged, classes))]
    given = [{k: v[i] for k, v in sidecars.items()} for i in range(len(members))]
    found = [ModelFile(Path(f"{n}.keras"), n, Sidecar(**g)) for n, g in zip(names, given, strict=False)]
    return Case(rows, found, Verdict(shared, evidence))


def aligned(made, accuracy, baseline=0.0, **given):
    """The same case, its members aligned with that outcome."""
    chosen = Row("least squares", "aligned", counts(accuracy))
    rows = [*made.rows, chosen, Row("ana, new last layer", "baseline", counts(baseline))]
    told = {"probe": "synthetic inputs", "judge": "agreement", "command": "fedloom merge it", "seconds": 2.0, **given}
    return replace(made, rows=rows, alignment=Alignment(chosen, **told))


def titles(made):
    return [f.title for f in explain(made)]


def test_a_merge_above_all_members_is_good():
    found = explain(case((0.9, 0.91, 0.92), 0.95))
    assert [f.level for f in found] == ["good", "good"]
    assert "fedavg reaches 95.0 %, at least as much as every single member (90.0–92.0 %)" in found[0].text
    assert found[1].text == "So it is."


def test_a_merge_among_them_is_neutral():
    assert titles(case((0.9, 0.91, 0.95), 0.93))[0] == "The merge stands among the members"
    assert titles(case((0.9, 0.91, 0.95), 0.89))[0] == "The merge stands a little below the members"


def test_different_starts_are_explained_once():
    found = explain(case((0.9, 0.91, 0.92), 0.1, shared=False, evidence="they say so"))
    assert len(found) == 1
    assert found[0].level == "problem"
    assert found[0].title == "The merge fell to 10.0 %: no shared start"
    assert "stands at chance level" in found[0].text
    assert "they say so" in found[0].text
    assert "Send one file, such as ana.keras" in found[0].text


def test_what_alignment_reaches_is_part_of_the_problem():
    found = explain(aligned(case((0.9, 0.91, 0.92), 0.1, shared=False), 0.95, 0.9))
    assert [f.level for f in found] == ["problem"]
    assert found[0].title == "The merge fell to 10.0 %: no shared start; aligned it reaches 95.0 %"
    assert "the merge reaches 95.0 % (least squares), the members alone 90.0–92.0 %" in found[0].text
    assert "took 2.0 s with synthetic inputs, and was chosen by agreement" in found[0].text
    assert found[0].command == "fedloom merge it"
    assert "Send one file" not in found[0].text


def test_alignment_that_does_not_help_leaves_the_new_start_as_the_advice():
    found = explain(aligned(case((0.9, 0.91, 0.92), 0.1, shared=False), 0.5))
    assert "still well below the members. Send one file" in found[0].text
    assert found[0].command == ""


def test_alignment_that_was_not_possible_says_why():
    made = replace(case((0.9, 0.91, 0.92), 0.1, shared=False), alignment=Alignment(None, "layer 'x' is strange."))
    (found,) = explain(made)
    assert "not possible here: layer 'x' is strange. Send one file" in found.text


def test_alignment_is_named_where_the_plain_mean_did_not_fall():
    found = explain(aligned(case((0.9, 0.91, 0.92), 0.9, shared=False), 0.95))
    assert [f.level for f in found] == ["info", "problem"]
    assert found[1].title == "The members do not share a start"
    assert "Aligned, the merge reaches 95.0 %" in found[1].text
    assert "Send one file" not in found[1].text
    assert found[1].command == "fedloom merge it"


def test_something_simpler_that_is_better_is_said_plainly():
    made = case((0.9, 0.91, 0.92), 0.1, shared=False)
    (_, found) = explain(aligned(made, 0.86, 0.8))
    assert (found.level, found.title) == ("warning", "A single member is better than the aligned merge")
    assert "carmen reaches 92.00 %, the aligned merge (least squares) 86.00 %." in found.text
    assert "--unlabelled" in found.text
    (_, found) = explain(aligned(made, 0.93, 0.94, own=True))
    assert (found.level, found.title) == ("info", "One member with a new last layer is better than the aligned merge")
    assert "may be chance" in found.text
    assert "--effort best" in found.text


def test_a_fall_without_evidence_claims_nothing():
    found = explain(case((0.9, 0.91, 0.92), 0.5, shared=None))
    assert found[0].title == "The merge fell to 50.0 %, below the members"
    assert "is not known" in found[0].text
    assert found[1].title == "It is not known whether the members share a start"


def test_a_fall_from_a_shared_start_is_drift():
    found = explain(case((0.9, 0.91, 0.92), 0.5))
    assert "moved too far apart" in found[0].text
    assert "--prox-mu" in found[0].text


def test_skewed_parts_have_an_explanation_of_their_own():
    parts = [(50, 50, 0, 0), (0, 30, 50, 30), (0, 30, 50, 30)]
    found = explain(case((0.5, 0.5, 0.5), 0.3, classes=4, class_counts=parts))
    assert "their parts are skewed: ana, for one, holds samples of 2 of the 4 classes" in found[0].text
    assert "The members' parts are skewed" in [f.title for f in found]
    parts = [(97, 1, 1, 1), (20, 25, 25, 25), (20, 30, 40, 40)]
    text = " ".join(f.text for f in explain(case((0.3, 0.9, 0.8), 0.9, classes=4, class_counts=parts)))
    assert "ana, for one, has 97 % of its samples in one class" in text
    alike = [(25, 26, 24, 25)] * 3
    assert "The members' parts are skewed" not in titles(case((0.5, 0.5, 0.5), 0.5, classes=4, class_counts=alike))


def test_chance_level_depends_on_the_classes():
    assert "at 70.0 %" in explain(case((0.95, 0.96), 0.7, classes=2))[0].text
    assert "at chance level" in explain(case((0.95, 0.96), 0.52, classes=2))[0].text


def test_a_weak_member_is_named():
    found = next(f for f in explain(case((0.9, 0.5, 0.92), 0.9)) if f.level == "warning")
    assert found.title == "luis is much weaker than the others"
    assert "reaches 50.0 % where the others reach 91.0 %" in found.text
    assert not any("weaker" in t for t in titles(case((0.9, 0.5), 0.9)))


def test_different_efforts_are_named():
    found = explain(case((0.9, 0.91, 0.92), 0.92, steps=(100, 100, 500)))[-1]
    assert "carmen took 500 local steps, ana 100" in found.text
    assert len(explain(case((0.9, 0.91, 0.92), 0.92, steps=(100, 110, 120)))) == 2


def test_duplicates_are_named():
    made = case((0.9, 0.9, 0.92), 0.92)
    found = explain(Case(made.rows, made.members, Verdict(True, "x", ((0, 1),))))
    assert found[-1].text == "ana.keras and luis.keras hold the same numbers: one member counts twice."


@pytest.mark.parametrize("members", [(0.9,), (0.9, 0.8)])
def test_without_a_merge_or_with_one_member_nothing_is_made_up(members):
    made = case(members, 0.9)
    assert explain(Case(made.rows[:-1], made.members[:1], made.verdict)) == []


def test_architectures_that_differ_leave_the_ensemble():
    made = case((0.9, 0.8), 0.9)
    (found,) = explain(Case(made.rows, made.members, None, "a does not fit b: because"))
    assert found.level == "problem"
    assert "a does not fit b: because. Only models of one architecture" in found.text


def test_architectures_that_differ_in_width_alone_are_aligned():
    made = aligned(replace(case((0.9, 0.8), 0.9), verdict=None, difference="a is wider than b"), 0.95)
    (found,) = explain(made)
    assert found.title == "The members' layers differ in width; aligned the merge reaches 95.0 %"
    assert found.text.startswith("a is wider than b, so they cannot be averaged as they are.")
    assert found.command == "fedloom merge it"
