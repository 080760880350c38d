"""The comparison as data: round trip, order, refusals; and the words made from it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from report_sample import sample
from sklearn.metrics import classification_report

from fedloom.errors import DataError, UsageError
from fedloom.metrics import Counts
from fedloom.records import RoundRecord
from fedloom.report import Comparison, Finding, Row, provenance, result
from fedloom.report.words import axis_start, certainty, digits, percents, shorten


def row(name, kind, right, n=1000):
    return Row(name, kind, Counts(np.array([[right, n - right], [0, 0]]), float(n), n), 1.0)


def toy(*rows, **more):
    return Comparison("Toy", "toy", ("a", "b"), list(rows), **more)


def test_json_and_back(tmp_path):
    before = sample()
    before.save(tmp_path / "report.json")
    after = Comparison.load(tmp_path / "report.json")
    assert after == before
    assert after == Comparison.load(tmp_path)
    assert after.rounds == before.rounds
    assert after.findings == before.findings
    assert np.array_equal(after.rows[3].counts.confusion, before.rows[3].counts.confusion)
    assert after.rows[3].counts.loss == before.rows[3].counts.loss


def test_every_part_counts_for_equality():
    before = sample()
    for change in (
        {"title": "other"},
        {"rows": before.rows[1:]},
        {"findings": []},
        {"curves": {}},
        {"class_counts": {}},
        {"rounds": []},
        {"refused": {}},
        {"made": {}},
    ):
        assert replace(before, **change) != before
    assert before != "something else"


def test_what_is_not_finite_survives_as_unknown():
    nothing = math.nan
    rows = [Row("ana", "member", Counts(np.eye(2, dtype=np.int64), math.inf, 2), nothing)]
    curves = {"ana": [{"epoch": 1, "loss": nothing, "accuracy": np.float32(0.5)}]}
    before = toy(*rows, curves=curves, rounds=[RoundRecord(1, 0.5, nothing, nothing, 2, 1.0)])
    text = json.dumps(before.to_json(), allow_nan=False)
    after = Comparison.from_json(json.loads(text))
    assert after == before
    assert math.isnan(after.rounds[0].loss)
    assert math.isnan(after.rows[0].seconds)


def test_the_json_holds_the_figures_for_other_readers():
    first = sample().to_json()["rows"][0]
    counts = sample().rows[0].counts
    assert first["accuracy"] == counts.accuracy
    assert first["macro_f1"] == pytest.approx(counts.macro_f1)
    assert sum(entry["support"] for entry in first["per_class"]) == counts.n


def test_per_class_figures_are_those_of_scikit_learn():
    matrix = np.random.default_rng(1).integers(0, 20, (4, 4))
    truth, said = np.nonzero(matrix)
    names = ("a", "b", "c", "d")
    wanted = classification_report(
        truth, said, sample_weight=matrix[truth, said], target_names=names, output_dict=True, zero_division=0
    )
    for entry in Row("x", "member", Counts(matrix, 1.0, int(matrix.sum()))).per_class(names):
        other = wanted[entry["class"]]
        assert [entry[k] for k in ("precision", "recall", "f1", "support")] == pytest.approx(
            [other[k] for k in ("precision", "recall", "f1-score", "support")]
        )


def test_a_class_that_never_occurs_has_no_figures():
    entry = Row("x", "member", Counts(np.diag([4, 0]), 1.0, 4)).per_class(("a", "b"))[1]
    assert all(math.isnan(entry[k]) for k in ("precision", "recall", "f1"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda v: v.pop("rows"), "'rows' is missing"),
        (lambda v: v.pop("format"), "not a comparison"),
        (lambda v: v.update(version=99), "not a comparison"),
        (lambda v: v.update(rows=[3]), "damaged"),
        (lambda v: v["rows"][0].update(confusion=[[1]]), "confusion matrix"),
        (lambda v: v["findings"][0].update(colour="red"), "damaged"),
        (lambda v: v.update(class_counts={"ana": [1, 2]}), "class counts"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage, said):
    value = sample().to_json()
    damage(value)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=said):
        Comparison.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"report\.json: no such file"):
        Comparison.load(tmp_path)


def test_unknown_words_are_refused():
    with pytest.raises(UsageError, match="did you mean 'member'"):
        row("ana", "members", 5)
    with pytest.raises(UsageError, match="did you mean 'warning'"):
        Finding("warnings", "title", "text")


def test_a_matrix_of_other_classes_is_refused():
    with pytest.raises(DataError, match="'ana' has a confusion matrix"):
        Comparison("x", "toy", ("a", "b", "c"), [row("ana", "member", 5)])


def test_rows_are_ranked_and_the_first_of_equals_is_best():
    unknown = Row("no", "method", Counts.zero(2))
    rows = [
        row("ana", "member", 990),
        row("x", "method", 900),
        unknown,
        row("y", "method", 900),
    ]
    comparison = toy(*rows)
    assert [r.name for r in comparison.ranked()] == ["ana", "x", "y", "no"]
    assert comparison.best() is rows[1]
    assert toy(rows[0]).best() is None


def test_the_result_in_one_sentence():
    ana, luis = row("ana", "member", 951), row("luis", "member", 960)
    merged, central = row("fedavg", "method", 978), row("central", "central", 984)
    assert result(toy(ana, luis, merged, central)) == (
        "fedavg of 2 members: 97.8 % – members alone 95.1–96.0 %, central training 98.4 %"
    )
    rounds = [RoundRecord(i, 0.9, 0.1, 0.1, 2, 1.0) for i in (1, 2, 3)]
    both = result(toy(ana, luis, merged, row("median", "method", 970), row("g", "global", 981), rounds=rounds))
    assert both == (
        "fedavg of 2 members, the best of 2 methods: 97.8 % – members alone 95.1–96.0 %, after 3 rounds 98.1 %"
    )
    assert result(toy(ana, luis)) == "2 members: 95.1–96.0 %"
    assert result(toy(ana)) == "ana: 95.1 %"
    assert result(toy(central)) == "Central training 98.4 %"
    assert result(toy()) == "Nothing was compared"


def test_certainty_grows_with_the_test_set():
    assert "± 1.9 points" in certainty(toy(row("x", "method", 900)))
    assert "± 0.19 points" in certainty(toy(row("x", "method", 90_000, 100_000)))
    assert certainty(toy()) == ""
    assert certainty(toy(Row("x", "method", Counts.zero(2)))) == ""
    assert "± 0 " not in certainty(toy(row("x", "method", 1000)))
    assert digits(toy(row("x", "method", 900))) == 1
    assert digits(toy(row("x", "method", 9000, 10_000))) == 2


@pytest.mark.parametrize("low", np.linspace(0.0, 1.0, 41))
def test_the_axis_starts_below_every_accuracy(low):
    start = axis_start([low, 1.0])
    assert 0.0 <= start < 1.0
    assert start == 0.0 or start < low


def test_names_are_cut_in_the_middle():
    assert shorten("a" * 100, 20) == "a" * 10 + "…" + "a" * 9
    assert shorten("two\nlines\x07") == "two lines"
    assert shorten("") == "?"
    assert percents([math.nan]) == "–"


def test_provenance_leaves_out_what_is_unknown():
    made = provenance("fedloom demo", seed=3, files=["a.keras", "b.keras"])
    assert made["Command"] == "fedloom demo"
    assert made["Seed"] == "3"
    assert made["Files"] == "a.keras\nb.keras"
    assert "torch" in made["Versions"]
    assert not {"Command", "Seed", "Files"} & set(provenance())


def test_methods_refused_for_the_same_reason_are_told_together():
    comparison = Comparison("t", "d", ("a", "b"), [], refused={"krum": "few", "fedadam": "no start", "bulyan": "few"})
    assert comparison.not_run() == [(["krum", "bulyan"], "few"), (["fedadam"], "no start")]


def test_a_rule_that_picked_one_member_is_not_the_best_merge():
    members = [row("ana", "member", 970), row("luis", "member", 950)]
    assert toy(*members, row("krum", "method", 970), row("fedavg", "method", 960)).best().name == "fedavg"
    assert toy(*members, row("krum", "method", 970)).best().name == "krum"
    assert toy(*members).best() is None
