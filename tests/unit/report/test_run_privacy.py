"""What the pages say of privacy, of compressed updates and of secure sums; and that other runs look as before."""

import json
import math

import pytest
from run_sample import end_event, private, promise_event, rising, round_event, write_run
from test_report_page import HOSTILE, Page
from test_run_page import shown, titles

from fedloom import report
from fedloom.report import run_pictures, runs_view
from fedloom.report.run_curves import curves, line_of
from fedloom.report.run_findings import explain
from fedloom.report.run_privacy import privacy_picture, privacy_tile
from fedloom.report.run_protected import plain_uploads
from fedloom.report.run_reading import read_run
from fedloom.report.run_words import headline
from fedloom.simulation import results

PACKED = '[compression]\nup = "topk:0.01 | int8"\n'


def texts(folder):
    return "\n".join(finding.text for finding in explain(read_run(folder)))


def packed(folder, *, up=50, codec=PACKED, **more):
    """Write a run of 1,000 parameters whose clients send so many bytes each."""
    events = [e | {"bytes_up": up * e["clients"]} if e["event"] == "round" else e for e in rising(**more)]
    return write_run(folder, [events[0] | {"parameters": 1000}, *events[1:]], more=codec)


def test_a_run_without_promise_or_codec_looks_as_before(tmp_path):
    page = shown(write_run(tmp_path / "run", rising()))
    assert "Privacy" not in Page(page).headings
    assert "psilon" not in page
    assert "float32" not in page


def test_the_section_shows_what_was_spent_and_what_it_means(tmp_path):
    folder = write_run(tmp_path / "run", private(epsilon=2.0))
    page = shown(folder).replace("\u00a0", " ")
    assert "Privacy" in Page(page).headings
    assert "Epsilon spent" in page
    assert "planned 2" in page
    assert "at most e^2, 7.39 times: by common reckoning a reasonable promise" in page
    assert "1 / 20 = 0.05" in page
    assert "a standard deviation of 0.05" in page
    assert "It hides every client with an epsilon of 2." in headline(read_run(folder))
    assert privacy_tile(read_run(folder))["value"] == "2"
    assert "Every client is hidden: epsilon 2" in titles(folder)


@pytest.mark.parametrize(("epsilon", "level"), [(0.5, "good"), (8.0, "good"), (34.0, "warning")])
def test_a_large_epsilon_is_no_good_news(tmp_path, epsilon, level):
    found = explain(read_run(write_run(tmp_path, private(epsilon=epsilon))))
    assert [f.level for f in found if f"{epsilon:.3g} at a delta of 1e-05" in f.text] == [level]


def test_noise_that_can_be_repeated_voids_everything_that_is_said(tmp_path):
    folder = write_run(tmp_path / "run", private(void=True))
    run = read_run(folder)
    page = shown(folder)
    assert privacy_tile(run)["value"] == "void"
    assert "The promise of privacy is void" in titles(folder)
    assert not [title for title in titles(folder) if "hidden" in title]
    assert "hides every" not in headline(run)
    assert "Void: the noise of this run comes from a seed" in page
    assert "Epsilon spent (void)" in page
    table = runs_view.table([run], ["a"], math.nan)
    assert table["rows"][0]["cells"][table["headings"].index("epsilon")]["text"] == "4, void"


def test_clipping_without_noise_is_called_that(tmp_path):
    folder = write_run(tmp_path, [promise_event(multiplier=0.0, epsilon=None), *rising()])
    assert "Clipping alone promises no privacy" in titles(folder)
    assert "that hides nobody" in shown(folder)
    assert privacy_tile(read_run(folder))["value"] == "none"


def test_more_than_planned_and_warnings_are_told(tmp_path):
    events = private(epsilon=4.0, warnings=["delta is 0.1: take less"])
    folder = write_run(tmp_path, [events[0] | {"epsilon": 3.0}, *events[1:]])
    assert "More epsilon was spent than planned" in titles(folder)
    assert "Delta is 0.1: take less." in texts(folder)
    assert "delta is 0.1: take less" in shown(folder)
    assert "some client took part more often" in texts(folder)
    assert "More epsilon was spent than planned" not in titles(write_run(tmp_path / "exact", private()))
    shares = write_run(tmp_path / "shares", [events[0] | {"epsilon": 3.0, "mechanism": "skellam"}, *events[1:]])
    assert "its shares of the noise add up to less" in texts(shares)


def test_a_clip_that_moves_is_a_curve(tmp_path):
    fixed = read_run(write_run(tmp_path / "fixed", private()))
    moving = [
        e | {"metrics": e["metrics"] | {"clip": 0.5 + 0.1 * e["round"]}} if e["event"] == "round" else e
        for e in private(clip_quantile=0.5)
    ]
    run = read_run(write_run(tmp_path / "moving", moving))
    assert [axes.get_title(loc="left") for axes in privacy_picture(fixed).axes] == [
        "Epsilon spent",
        "Accuracy against epsilon",
    ]
    clips = privacy_picture(run).axes[2]
    assert list(clips.lines[0].get_ydata()) == pytest.approx([0.5 + 0.1 * n for n in range(1, 11)])
    assert "1.5 at the end" in shown(run.folder)


def test_wrong_and_hostile_promises_are_survived(tmp_path):
    odd = {"epsilon": "x", "warnings": 3, "delta": None, "unit": 7, "clip": [1], "multiplier": None, "trust": None}
    shown(write_run(tmp_path / "a", [promise_event(**odd), *private()[1:]]))
    shown(write_run(tmp_path / "b", [{"event": "privacy"}, round_event(1, None)]))
    page = shown(write_run(tmp_path / "c", private(trust=HOSTILE, warnings=[HOSTILE], mechanism=HOSTILE)))
    assert "<script>alert" not in page


def test_compressed_updates_are_set_beside_those_of_float32(tmp_path):
    folder = packed(tmp_path / "run")
    run = read_run(folder)
    assert plain_uploads(run)[-1] == 10 * 4 * 4000
    assert "Updates were sent in 80 times fewer bytes" in titles(folder)
    assert "2 kB came up; as float32 models it would have been 160 kB" in texts(folder)
    assert "error feedback" in texts(folder)
    assert "error feedback" not in texts(packed(tmp_path / "fair", codec='[compression]\nup = "int4"\n'))
    axes = run_pictures.cost(run).axes
    assert [a.get_title(loc="left") for a in axes] == [
        "Accuracy against what was sent",
        "Accuracy against what came up",
        "Accuracy against simulated time",
    ]
    as_it_was, plain = (line for line in axes[1].lines if len(line.get_xdata()) > 2)
    assert plain.get_xdata()[-1] == 80 * as_it_was.get_xdata()[-1] == 160_000
    assert "had every update been sent as it is" in shown(folder)


def test_a_codec_that_helps_nobody_is_a_warning(tmp_path):
    found = [f for f in explain(read_run(packed(tmp_path, up=5000))) if "codec" in f.title]
    assert [f.level for f in found] == ["warning"]


@pytest.mark.parametrize(("kind", "said"), [("sum", "Only the sum was computed"), ("protocol", "were really run")])
def test_secure_sums_are_explained(tmp_path, kind, said):
    folder = packed(tmp_path, up=4100, codec=f'[privacy]\nsecure_aggregation = "{kind}"\n')
    assert "The server saw nothing but sums" in titles(folder)
    assert said in texts(folder)
    assert "1.02 times the bytes" in texts(folder)
    shown(folder)


def test_runs_are_compared_by_bytes_and_by_epsilon(tmp_path):
    folders = [
        write_run(tmp_path / "plain", rising(top=0.97)),
        packed(tmp_path / "packed"),
        write_run(tmp_path / "hidden", private(epsilon=2.0)),
    ]
    runs = [read_run(folder) for folder in folders]
    table = runs_view.table(runs, [run.name for run in runs], 0.9)
    cells = {row["name"]: dict(zip(table["headings"], row["cells"], strict=True)) for row in table["rows"]}
    assert cells["packed"]["of that, up"]["text"] == "2 kB"
    assert cells["hidden"]["epsilon"]["text"] == "2"
    assert cells["plain"]["epsilon"]["text"] == "–"
    page = report.runs_page(folders).read_text(encoding="utf-8")
    assert "The trade-off" in Page(page).headings
    plain = runs_view.table(runs[:1], ["plain"], 0.9)["headings"]
    assert not {"epsilon", "of that, up"} & set(plain)
    assert "The trade-off" not in Page(report.runs_page(folders[:1]).read_text(encoding="utf-8")).headings


def test_an_axis_is_logarithmic_where_ends_lie_far_apart(tmp_path):
    far, near = read_run(packed(tmp_path / "a")), read_run(packed(tmp_path / "b", up=60))
    plain = read_run(write_run(tmp_path / "c", rising()))
    scales = [
        curves({"up": [line_of(far, "up", "far"), line_of(other, "up", "other")]}).axes[0].get_xscale()
        for other in (near, plain)
    ]
    assert scales == ["linear", "log"]


def sweep(folder, key, made):
    """Write a sweep over one key; ``made`` gives a run's folder by value."""
    rows = [results.run_row(f"{key}={v}", {key: v}, made(folder / str(i), v)) for i, v in enumerate(made.values)]
    results.write(results.table(rows, {key: list(made.values)}), folder)
    return report.sweep_page(folder).read_text(encoding="utf-8").replace("\u00a0", " ")


def _ended(events):
    last = [e["accuracy"] for e in events if e["event"] == "round"][-1]
    return [*events[:-1], end_event() | {"final_accuracy": last, "best_accuracy": last}]


def test_a_sweep_over_codecs_shows_the_trade_off(tmp_path):
    def made(folder, codec):
        up, top = {"float32": (4000, 0.95), "int4": (505, 0.948), "topk:0.01": (80, 0.8)}[codec]
        events = [e | {"bytes_up": up * 4} if e["event"] == "round" else e for e in rising(top=top)]
        return write_run(folder, _ended(events), more=f'[compression]\nup = "{codec}"\n')

    made.values = ("float32", "int4", "topk:0.01")
    page = sweep(tmp_path, "compress", made)
    assert "Sent up by the clients" in page
    assert "The trade-off" in Page(page).headings
    assert "compress int4 does nearly as well with 7.92 times fewer bytes up" in page
    heading, body = results.cells(_read(tmp_path))
    assert [row[heading.index("sent up")] for row in body] == ["160 kB", "20.2 kB", "3.2 kB"]


def test_a_sweep_over_epsilons_shows_them_and_what_is_void(tmp_path):
    def made(folder, epsilon):
        return write_run(folder, _ended(private(epsilon=epsilon, void=epsilon == 8)))

    made.values = (2, 8)
    page = sweep(tmp_path, "target_epsilon", made)
    assert "The trade-off" in Page(page).headings
    assert "8, void" in page
    assert "2, void" not in page
    assert "Some epsilons are void" in page
    heading, body = results.cells(_read(tmp_path))
    assert [row[heading.index("epsilon")] for row in body] == ["2", "8, void"]


def _read(folder):
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert {"epsilon", "bytes_up"} <= set(found["rows"][0])
    return found
