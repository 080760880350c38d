"""The tables for the terminal and the small notebook views."""

import io
import re

import numpy as np
import pytest
from report_sample import sample
from rich.console import Console

from fedloom.metrics import Counts
from fedloom.report import Comparison, Finding, Row, class_table, comparison_table
from fedloom.report.tables import class_counts_html, findings_html, text_html


def shown(table, width=80):
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(table)
    return text.getvalue()


@pytest.mark.parametrize("broken", [False, True])
def test_the_table_fits_a_terminal_and_is_ranked(broken):
    comparison = sample(broken=broken)
    text = shown(comparison_table(comparison))
    assert "…" not in text
    found = [float(value) for value in re.findall(r"  ([\d.]+) %  *[█▏▎▍▌▋▊▉]", text)]
    assert found == [round(100 * row.counts.accuracy, 1) for row in comparison.ranked()]
    for name in ("model", "kind", "accuracy", "macro F1", "loss", "time", "fedavg", "1 min 15 s"):
        assert name in text


def test_names_are_shown_as_they_are():
    counts = Counts(np.diag([3, 4]), float("nan"), 7)
    text = shown(comparison_table(Comparison("x", "toy", ("a", "b"), [Row("[red]x[/]", "method", counts)])))
    assert "[red]x[/]" in text
    assert "–" in text
    assert "[b]" in shown(class_table({"[b]": [1, 2]}, ["[i]", "y"]))


def test_class_counts():
    text = shown(class_table({"ana": [1200, 0], "luis": [3, 4]}, ["cat", "dog"]))
    assert re.search(r"ana\s+1200\s+·\s+1200", text)
    assert re.search(r"luis\s+3\s+4\s+7", text)


def test_ten_classes_of_thousands_are_not_cut_at_80_columns():
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    text = shown(class_table({"carmen": [4321] * 10}, names))
    assert text.count("4321") == 11
    assert "43210" in text


def test_many_classes_show_their_span():
    counts = [0] * 100
    counts[3], counts[70] = 5, 90
    text = shown(class_table({"ana": counts, "none": [0] * 100}, [f"c{i}" for i in range(100)]))
    assert re.search(r"ana\s+2 of 100\s+c3 \(5\)\s+c70 \(90\)\s+95", text)
    assert re.search(r"none\s+·\s+–\s+–\s+0", text)


def test_notebook_views_escape():
    bad = "<script>&"
    for view in (
        text_html(bad),
        findings_html([Finding("warning", bad, bad, bad)]),
        class_counts_html({bad: [1, 2]}, [bad, "b"]),
    ):
        assert "<script" not in view
        assert "&lt;script&gt;&amp;" in view
    assert findings_html([]) == ""


def test_classes_whose_names_are_alike_when_cut_are_counted_instead():
    table = class_table({"ana": [3] * 10}, [f"class {k}" for k in range(10)])
    assert [str(column.header) for column in table.columns][1] == "classes"
