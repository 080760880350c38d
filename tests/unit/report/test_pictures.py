"""The pictures: nothing clipped, readable sizes, the same bytes, no global state."""

import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from PIL import Image
from report_sample import LINES, aligned, curve, line, sample

from fedloom.metrics import Counts
from fedloom.records import RoundRecord
from fedloom.report import (
    accuracy_bars,
    class_distribution,
    confusion,
    interpolation_curve,
    learning_curves,
    rounds_curve,
    save_png,
    svg,
)

LONG = "a member with quite a long name and more"
FULL, BROKEN, MANY = sample(), sample(broken=True), sample(60)


def clients(n, classes, name="client"):
    rng = np.random.default_rng(0)
    return {f"{name} {i}": [int(v) for v in rng.integers(0, 900, classes)] for i in range(n)}


def epochs(n, seed=0):
    return curve(0.9, n, np.random.default_rng(seed))


PICTURES = {
    "two clients": lambda: class_distribution(clients(2, 2), ["cat", "dog"]),
    "sixty clients": lambda: class_distribution(clients(60, 10, LONG), [f"{LONG} {i}" for i in range(10)]),
    "hundred classes": lambda: class_distribution(clients(100, 100), [f"c{i}" for i in range(100)]),
    "empty client": lambda: class_distribution({"ana": [0, 0]}, ["cat", "dog"]),
    "no client": lambda: class_distribution({}, ["cat", "dog"]),
    "one epoch": lambda: learning_curves({"ana": epochs(1)}),
    "sixty members": lambda: learning_curves({f"{LONG}{i}": epochs(4, i) for i in range(60)}),
    "central": lambda: learning_curves(FULL.curves, emphasis={"central"}),
    "no epoch": lambda: learning_curves({"ana": []}),
    "no model": lambda: learning_curves({}),
    "bars": lambda: accuracy_bars(FULL),
    "bars from zero": lambda: accuracy_bars(BROKEN),
    "sixty bars": lambda: accuracy_bars(MANY),
    "bars of aligned models": lambda: accuracy_bars(aligned()),
    "three lines": lambda: interpolation_curve(LINES),
    "long names": lambda: interpolation_curve([line("as they are", 0.5, LONG, LONG[::-1])]),
    "no figures": lambda: interpolation_curve([replace(LINES[0], losses=(math.nan,) * 11)]),
    "rounds": lambda: rounds_curve(FULL.rounds, central=0.98, best_member=0.95),
    "one round": lambda: rounds_curve(FULL.rounds[:1]),
    "NaN round": lambda: rounds_curve([RoundRecord(1, math.nan, 0.1, 0.1, 2, 1.0)], central=math.nan),
    "confusion": lambda: confusion(FULL.rows[0].counts, FULL.class_names),
    "large confusion": lambda: confusion(
        Counts(np.eye(99, dtype=np.int64), 1.0, 99), [f"class {i}" for i in range(99)]
    ),
    "foreign letters": lambda: class_distribution({"中文 $a$ <b>": [1, 2]}, ["x$", "日本\n語"]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_touches_the_edge(name, tmp_path):
    figure = PICTURES[name]()
    save_png(figure, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    sides = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    edge = np.concatenate([side.reshape(-1, 3) for side in sides])
    assert (edge == 255).all()
    assert (pixels != 255).any()
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("name", PICTURES)
def test_texts_of_an_axis_do_not_overlap(name):
    figure = PICTURES[name]()
    with warnings.catch_warnings(action="ignore"):
        figure.draw_without_rendering()
    for axes in figure.axes:
        for labels in (axes.get_yticklabels(), [t for t in axes.get_xticklabels() if t.get_rotation() == 0]):
            boxes = [t.get_window_extent() for t in labels if t.get_text() and t.get_visible()]
            for a, b in pairwise(boxes):
                apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 3 or b.y1 <= a.y0 + 3
                assert apart, name


@pytest.mark.parametrize("name", PICTURES)
def test_an_svg_is_small_local_and_repeatable(name):
    text = svg(PICTURES[name](), "Picture")
    assert text == svg(PICTURES[name](), "Picture")
    assert text.startswith("<svg viewBox=")
    assert text.endswith("</svg>")
    assert "http" not in text
    assert "\n" not in re.search(r"<svg[^>]*>", text)[0]
    assert len(text) < 200_000
    defined, used = re.findall(r' id="([^"]+)"', text), re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert len(defined) == len(set(defined))
    assert {a or b for a, b in used} <= set(defined)


def test_equal_data_gives_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(class_distribution({"ana": [3, 4], "luis": [5, 6]}, ["x", "y"]), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_two_pictures_of_a_page_share_no_identifier():
    one, two = (svg(learning_curves({"ana": epochs(3)}), label) for label in ("One", "Two"))
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_text_that_looks_like_markup_stays_text():
    name = 'style="fill: #1d2733" id="x" $a$'
    text = svg(class_distribution({name: [1, 2]}, ["x", "y"]).axes[0].figure)
    assert "id=&quot;" in text or ' id="x" $a$' in text
    assert "<b" not in svg(class_distribution({"<b>": [1, 2]}, ["x", "y"]))


def test_a_single_epoch_is_visible():
    lines = learning_curves({"ana": [{"epoch": 1, "loss": 0.5, "accuracy": 0.9}]}).axes[0].lines
    assert [(list(line.get_ydata()), line.get_marker()) for line in lines] == [([0.5], "o")]


def test_missing_values_leave_a_gap_and_validation_goes_first():
    history = [{"epoch": 1, "loss": 0.5, "val_loss": None}, {"epoch": 2, "loss": math.nan, "val_loss": 0.4}]
    few = learning_curves({"ana": history}).axes[0]
    assert sorted(list(line.get_xdata()) for line in few.lines) == [[1.0], [2.0]]
    many = learning_curves({f"m{i}": history for i in range(5)}).axes[0]
    assert [list(line.get_ydata()) for line in many.lines] == [[0.4]] * 5


def test_bars_start_at_zero_or_are_dots():
    low, high = accuracy_bars(BROKEN).axes[0], accuracy_bars(FULL).axes[0]
    assert low.get_xlim()[0] == 0
    assert len(low.patches) == len(FULL.rows) + 1
    assert high.get_xlim()[0] > 0
    assert len(high.patches) == 1
    assert "the axis starts at" in high.get_xlabel()


def test_every_line_between_two_members_is_drawn_and_named():
    figure = interpolation_curve(LINES)
    for axes, key in zip(figure.axes, ("losses", "accuracies"), strict=True):
        assert [list(curve.get_ydata()) for curve in axes.lines] == [list(getattr(one, key)) for one in LINES]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["ana", "half of each", "luis"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [one.name for one in LINES]
    assert len({curve.get_color() for curve in figure.axes[0].lines}) == 3


def test_the_users_own_settings_stay():
    with matplotlib.rc_context({"font.size": 31.0}):
        before = dict(matplotlib.rcParams)
        svg(accuracy_bars(FULL))
        assert dict(matplotlib.rcParams) == before


def test_the_report_is_imported_without_matplotlib():
    heavy = ("matplotlib", "jinja2", "rich", "sklearn")
    code = f"import sys, fedloom.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
