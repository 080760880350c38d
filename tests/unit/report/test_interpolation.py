"""The line between two members: as data, on the page, in words; and the rows of aligned merges beside the others."""

import json
import math
from dataclasses import replace

import pytest
from report_sample import LINES, aligned, line, sample

from fedloom import report
from fedloom.errors import DataError
from fedloom.report import Comparison, result
from fedloom.report.tables import comparison_table
from fedloom.report.views import overview


def said(*lines):
    return " ".join(overview(replace(sample(), lines=list(lines)))["between"]).replace("\u00a0", " ")


def test_lines_survive_the_disk(tmp_path):
    before = replace(sample(), lines=[replace(LINES[0], losses=(math.nan,) * 11), *LINES[1:]])
    before.save(tmp_path / "report.json")
    after = Comparison.load(tmp_path)
    assert after == before
    assert after != sample()
    assert after.lines[1:] == LINES[1:]
    assert math.isnan(after.lines[0].losses[3])


def test_a_report_from_before_there_were_lines_is_read():
    value = sample().to_json()
    del value["lines"]
    assert Comparison.from_json(json.loads(json.dumps(value))) == sample()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda v: v.update(losses=[1.0]), "different lengths"),
        (lambda v: v.pop("first"), "'first' is missing"),
        (lambda v: v.update(alphas=3), "damaged"),
    ],
)
def test_a_damaged_line_is_refused(damage, words):
    value = aligned().to_json()
    damage(value["lines"][0])
    with pytest.raises(DataError, match=words):
        Comparison.from_json(value)


@pytest.fixture(scope="module")
def page():
    return report.render(aligned())


def test_the_page_shows_the_picture_after_the_accuracies(page):
    assert page.index("Accuracy at a glance</h2>") < page.index("Between two members</h2>")
    assert page.index("Between two members</h2>") < page.index("Learning curves</h2>")
    assert "Between two members" not in report.render(sample(2, 2))


def test_the_words_name_the_members_the_barriers_and_the_reason():
    text = said(*LINES)
    assert "those of ana (left) and luis (right)" in text
    assert "rises by up to 2.400 nats" in text
    assert "falls by up to 80.0 points" in text
    assert "why averaging fails" in text
    assert "aligned, 0.600 nats and 20.0 points; aligned, BatchNorm recalibrated, 0.090 nats and 3.0 points" in text
    assert "The valley is gone" in text
    assert "Measured on 1,000 test samples. Recalibrated means" in text


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(0.8, 0.2, "Most of the valley is filled"), (0.8, 0.6, "Much of the valley is left"), (0.01, 0.0, "no valley")],
)
def test_the_words_claim_no_more_than_the_figures(before, after, words):
    text = said(line("as they are", before), line("aligned", after))
    assert words in text
    assert "The valley is gone" not in text
    assert "Recalibrated" not in text


def test_names_in_the_words_are_escaped():
    hostile = report.render(replace(sample(2, 2), lines=[line("as they are", 0.5, "<u>", "&")]))
    assert "<u>" not in hostile
    assert "&lt;u&gt; (left)" in hostile


def test_the_best_merge_may_be_an_aligned_one_and_a_baseline_is_none():
    made = aligned()
    best = made.best()
    assert best.kind == "aligned"
    assert made.best("method").kind == "method"
    assert max(made.of_kind("aligned"), key=lambda row: row.counts.accuracy) is best


def test_headline_tiles_and_glossary_know_aligned_merges(page):
    made = aligned()
    assert result(made).startswith("6 members aligned and merged by ")
    assert "the best of 16 methods" in result(made)
    tiles = overview(made)["tiles"]
    assert [tile["what"] for tile in tiles][:3] == ["Best aligned merge", "Best plain merge", "Members alone"]
    assert {"aligned", "baseline"} <= {row["kind"] for row, _ in overview(made)["glossary"]}
    assert overview(sample())["tiles"][0]["what"] == "Best single merge"
    assert "Best aligned merge" in page


def test_the_terminal_table_knows_the_kinds():
    kinds = {str(cell) for cell in comparison_table(aligned()).columns[1].cells}
    assert {"aligned", "baseline", "merged"} <= kinds
