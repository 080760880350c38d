"""The page, the CSV and the JSON: self-contained, complete, escaped, the same for the same input."""

import csv
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from report_sample import sample

from fedloom import report
from fedloom.errors import StorageError
from fedloom.metrics import Counts
from fedloom.report import Comparison, Finding, Row
from fedloom.report.palette import PAGE, THEME

HOSTILE = "<script>alert('\"&$x$')</script>"
VOID = {"meta", "br", "img", "link", "input", "path", "use"}


class Page(HTMLParser):
    """Reads a page: its tags, attributes, ids and text, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids, self.addresses, self.labels = [], [], [], [], []
        self.scripts, self.headings = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [attrs[k] for k in ("src", "href", "xlink:href", "action", "data") if k in attrs]
        self.labels += [attrs["aria-label"]] if tag == "svg" else []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The path of the page of a whole comparison, as it was written. Not to be changed."""
    return report.write(sample(), tmp_path_factory.mktemp("written") / "new" / "folder")


@pytest.fixture(scope="module")
def page(written):
    return written.read_text(encoding="utf-8")


def without_models():
    return Comparison("Nothing", "digits", sample().class_names, [])


def test_the_page_needs_nothing_but_itself(page):
    read = Page(page)
    assert read.addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in read.addresses)
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert read.tags.count("script") == 1
    assert len(read.scripts) == 1
    assert "default-src 'none'" in page


def test_no_two_elements_share_an_id(page):
    ids = Page(page).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_every_variable_of_the_style_is_defined_in_both_schemes(page):
    used = set(re.findall(r"var\(--([a-z]+)", page)) - {"k", "f", "a", "hue"}
    assert used <= set(THEME) | set(PAGE)
    for name in used:
        assert len(re.findall(rf"[{{;]--{name}:#[0-9a-f]{{6}}", page)) == 2, name


def test_the_sections_stand_in_their_order(page):
    wanted = [
        "What happened",
        "All models",
        "Accuracy at",
        "Learning",
        "Accuracy over 10",
        "Who",
        "Each",
        "Not run",
        "How",
    ]
    headings = Page(page).headings
    assert len(headings) == len(wanted)
    assert all(heading.startswith(start) for heading, start in zip(headings, wanted, strict=True))


def test_a_section_without_content_is_left_out():
    full = sample()
    bare = Comparison("Bare", "digits", full.class_names, full.rows)
    headings = Page(report.render(bare)).headings
    assert headings == ["All models, best first", "Accuracy at a glance", "Each model in detail", "How this was made"]
    empty = Page(report.render(without_models()))
    assert empty.headings == ["How this was made"]


def test_curves_without_epochs_are_left_out():
    epochs = [{"epoch": 1, "loss": 0.5, "accuracy": 0.9}]
    for history, shown in ((epochs, True), ([], False)):
        assert ("Learning curves" in report.render(replace(without_models(), curves={"ana": history}))) is shown


def test_every_model_is_described(page):
    comparison = sample()
    assert page.count('<details class="model">') == len(comparison.rows)
    assert page.count('<table class="cm">') == len(comparison.rows)
    assert [page.index(f'<th scope="row" class="name">{row.name}</th>') for row in comparison.ranked()] == sorted(
        page.index(f'<th scope="row" class="name">{row.name}</th>') for row in comparison.rows
    )
    assert page.count('<tr class="best">') == 1
    for text in (*comparison.refused.values(), *comparison.made.values(), comparison.findings[0].command):
        assert text in page


def test_names_and_texts_are_escaped():
    full = sample(n_members=2, n_classes=2)
    hostile = Comparison(
        HOSTILE,
        HOSTILE,
        (HOSTILE, f"b{HOSTILE}"),
        [replace(row, name=f"{HOSTILE}{i}", note=HOSTILE) for i, row in enumerate(full.rows)],
        [Finding("problem", HOSTILE, HOSTILE, HOSTILE)],
        {HOSTILE: full.curves["ana"], "central": full.curves["central"]},
        {HOSTILE: [3, 4], "b": [5, 6]},
        full.rounds,
        {HOSTILE: HOSTILE},
        {HOSTILE: HOSTILE},
    )
    text = report.render(hostile)
    assert Page(text).tags.count("script") == 1
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    for view in (hostile._repr_html_(), report.svg(report.confusion(full.rows[0].counts, [HOSTILE, "b"]), HOSTILE)):
        assert "<script" not in view


def test_equal_input_gives_equal_bytes(tmp_path):
    report.write(sample(broken=True), tmp_path / "a")
    report.write(Comparison.load(tmp_path / "a"), tmp_path / "b")
    for file in ("report.html", "report.csv", "report.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_is_written(written):
    assert written.parts[-3:] == ("new", "folder", "report.html")
    assert sorted(p.name for p in written.parent.iterdir()) == ["report.csv", "report.html", "report.json"]
    assert written.stat().st_size < 1_500_000


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        report.write(without_models(), tmp_path / "file")


def test_the_csv_has_one_line_per_model_best_first():
    comparison = sample()
    lines = list(csv.DictReader(report.to_csv(comparison).splitlines()))
    assert list(lines[0]) == ["name", "kind", "accuracy", "macro_f1", "loss", "seconds", "note"]
    assert [line["name"] for line in lines] == [row.name for row in comparison.ranked()]
    accuracies = [float(line["accuracy"]) for line in lines]
    assert accuracies == sorted(accuracies, reverse=True)
    best = comparison.ranked()[0]
    assert float(lines[0]["macro_f1"]) == pytest.approx(best.counts.macro_f1, rel=1e-5)
    assert lines[0]["note"] == best.note


def test_what_is_not_a_number_is_a_dash():
    confusion = np.array([[5, 1], [2, 4]])
    row = Row("ana", "member", Counts(confusion, math.nan, 12), math.nan)
    comparison = Comparison("NaN", "toy", ("a", "b"), [row])
    text = report.render(comparison)
    assert '<td class="n">–</td><td class="n">–</td></tr>' in text
    assert "nan" not in text.lower().replace("nan – fedloom", "").replace("<h1>nan", "")
    assert next(csv.DictReader(report.to_csv(comparison).splitlines()))["loss"] == ""


def test_models_without_a_single_sample_do_not_fail():
    rows = [Row("ana", "member", Counts.zero(3), 1.0), Row("fedavg", "method", Counts.zero(3), 1.0)]
    Page(report.render(Comparison("Empty", "toy", ("a", "b", "c"), rows)))


@pytest.mark.parametrize(
    ("members", "classes", "epochs", "rounds"),
    [(1, 2, 1, 0), (1, 3, 1, 1), (2, 2, 30, 1), (60, 10, 1, 40), (3, 100, 2, 3)],
)
def test_any_size_gives_a_page(members, classes, epochs, rounds):
    comparison = sample(members, classes, 2000, epochs, rounds)
    read = Page(report.render(comparison))
    assert len(read.labels) == (4 if rounds else 3)


def test_many_classes_shrink_to_those_with_the_most_errors():
    rng = np.random.default_rng(0)
    confusion = np.diag(rng.integers(50, 90, 30))
    confusion[3, 28] = 40
    row = Row("ana", "member", Counts(confusion, 1.0, int(confusion.sum())))
    comparison = Comparison("Many", "toy", tuple(f"class {i}" for i in range(30)), [row])
    text = report.render(comparison)
    table = text[text.index('<table class="cm">') :]
    table = table[: table.index("</table>")]
    cells = [int(n) for n in re.findall(r'<td class="[hm]\d">(\d+)</td>', table)]
    assert sum(cells) == confusion.sum()
    assert '<td class="m6">40</td>' in table
    assert table.count("<tr>") == 21
    assert "class 3 taken for class 28, 40 times" in text


def test_the_shown_figures_are_those_of_the_counts():
    figure = Counts(np.array([[90, 10], [5, 95]]), 50.0, 200)
    text = report.render(Comparison("Two", "toy", ("cat", "dog"), [Row("ana", "member", figure, 75.0)]))
    for shown in ("92.5 %", "0.250", "1 min 15 s", "94.7 %", "90.5 %"):
        assert f">{shown}</td>" in text


def test_the_notebook_view_shows_headline_findings_table_and_bars():
    comparison = sample()
    view = comparison._repr_html_()
    Page(view)
    assert comparison.title in view
    assert comparison.findings[0].title in view
    assert view.count("<tr") == len(comparison.rows) + 1
    assert view.count("<svg") == 1
