"""The page of one run: whatever its folder holds, plain words, no NaN, nothing from outside."""

import json
import math
import re
import shutil

import pytest
from run_sample import clients_event, end_event, rising, round_event, write_run
from test_report_page import HOSTILE, Page

from fedloom import report
from fedloom.errors import DataError
from fedloom.report.palette import PAGE, THEME
from fedloom.report.run_findings import explain
from fedloom.report.run_pictures import fates
from fedloom.report.run_reading import read_run
from fedloom.report.run_words import headline


def shown(folder):
    """Return the page as it is read: its text without tags."""
    page = report.run_page(folder).read_text(encoding="utf-8")
    Page(page)
    assert not re.search(
        r"\bnan\b|\binf\b|None", re.sub(r"<style>.*?</style>|<script>.*?</script>", "", page, flags=re.S)
    )
    return page


def titles(folder):
    return [finding.title for finding in explain(read_run(folder))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run with something for every section. Not to be changed."""
    failures = [("7", "diverged"), ("8", "dropped"), ("9", "late"), ("3", "surplus")]
    events = rising(failures=failures)
    events[5:5] = [clients_event(3, 0.7), clients_event(3, 0.9, personal=True)]
    return write_run(tmp_path_factory.mktemp("runs") / "run", events)


@pytest.fixture(scope="module")
def page_of_whole(whole):
    return shown(whole)


def test_a_whole_run_has_every_section(page_of_whole):
    assert Page(page_of_whole).headings == [
        "What happened",
        "Accuracy and loss, round by round",
        "What the accuracy cost",
        "From client to client",
        "Who took part",
        "Where the time went",
        "How it was computed",
        "The rounds in numbers",
        "Settings",
    ]


def test_the_page_needs_nothing_but_itself_and_says_the_same_twice(whole, page_of_whole):
    first = page_of_whole
    read = Page(first)
    assert all(address.startswith("#") for address in read.addresses)
    assert "http" not in first.replace("http-equiv", "")
    assert len(read.ids) == len(set(read.ids))
    assert set(re.findall(r'href="#([^"]+)"', first)) <= set(read.ids)
    assert set(re.findall(r"var\(--([a-z]+)", first)) - {"k", "f", "a", "hue"} <= set(THEME) | set(PAGE)
    assert shown(whole) == first


def test_the_figures_are_those_of_the_log(whole, page_of_whole):
    run = read_run(whole)
    assert run.traffic[-1] == 10 * (8000 + 4000)
    assert run.clock == 100.0
    assert run.seconds == 3.0
    assert run.reached.round == next(r.round for r in run.rounds if r.accuracy >= 0.9)
    assert [s.personal for s in run.spreads] == [False, True]
    assert "120 kB" in page_of_whole
    assert "1 min 40 s" in page_of_whole
    assert "the model has no convolution" in page_of_whole


def test_the_headline_says_what_was_reached_and_spent(tmp_path):
    said = headline(read_run(write_run(tmp_path, rising())))
    assert "After 10 rounds the global model reaches 94.5 %" in said
    assert "The target of 90.0 % was reached in round 6" in said
    assert "sent 80 kB" in said


def test_all_that_was_asked_is_accounted_for(whole):
    run = read_run(whole)
    counts = fates(run)
    assert sum(values.sum() for values in counts.values()) == sum(r.asked for r in run.rounds)
    assert counts["late"].tolist() == [1.0] * 10


def test_diverged_clients_are_named_with_their_rounds(whole):
    finding = next(f for f in explain(read_run(whole)) if "diverged" in f.title)
    assert finding.level == "problem"
    assert "client 7 (rounds 1, 2, 3, 4 and 6 more)" in finding.text


@pytest.mark.parametrize("end", ["", '{"event": "round", "round": 11, "accu', "[1, 2]\n", "\x00\x00\n"])
def test_a_log_that_was_cut_off_keeps_its_whole_lines(tmp_path, end):
    folder = write_run(tmp_path / "run", rising()[:-1])
    with (folder / "events.jsonl").open("a", encoding="utf-8") as log:
        log.write(end)
    run = read_run(folder)
    assert len(run.rounds) == 10
    assert run.damaged == bool(end)
    assert "The run is not finished" in titles(folder)
    assert f"fedloom simulate {folder} --resume" in shown(folder)


@pytest.mark.parametrize("events", [[], [{"event": "start"}], [{"event": "start"}, end_event()]])
def test_a_run_without_rounds_has_a_page(tmp_path, events):
    folder = write_run(tmp_path / "run", events)
    assert "No round is over yet." in shown(folder)


def test_rounds_that_were_not_evaluated_are_passed_over(tmp_path):
    events = [round_event(n, 0.1 * n if n % 3 == 0 else None) for n in range(1, 8)]
    folder = write_run(tmp_path / "run", [*events, end_event()])
    run = read_run(folder)
    assert [r.round for r in run.evaluated] == [3, 6]
    assert run.final.round == 6
    shown(folder)
    never = write_run(tmp_path / "never", [round_event(1, None), end_event()])
    assert "was not evaluated" in shown(never)


def test_missing_and_wrong_fields_are_tolerated(tmp_path):
    events = [
        {"event": "round", "round": 1},
        {"event": "round", "round": "2", "accuracy": 0.5},
        {"event": "round", "round": 3, "accuracy": "high", "failures": "none", "metrics": [1], "bytes_up": None},
        {
            "event": "round",
            "round": 4,
            "accuracy": 0.5,
            "loss": math.nan,
            "clock": math.inf,
            "failures": [{"kind": "odd"}],
        },
        {"event": "clients", "round": 4, "mean": 0.4},
        {"event": "plan", "times": {"loop": "?"}, "left_out": None},
        {"event": "new", "round": 9},
    ]
    folder = write_run(tmp_path / "run", events)
    (folder / "config.toml").unlink()
    run = read_run(folder)
    assert [r.round for r in run.rounds] == [1, 3, 4]
    assert run.final.accuracy == 0.5
    shown(folder)


def test_no_folder_of_a_run_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"events\.jsonl"):
        report.run_page(tmp_path)


def test_hostile_texts_are_escaped(tmp_path):
    name = HOSTILE.replace('"', "'")
    failures = [(HOSTILE, "refused"), ("b", HOSTILE)]
    plan = {"event": "plan", "chosen": HOSTILE, "times": {HOSTILE: 1.0}, "left_out": {HOSTILE: HOSTILE}}
    events = [
        {"event": "start", HOSTILE: HOSTILE},
        plan,
        round_event(1, 0.5, failures=failures, metrics={HOSTILE: 1.0}),
    ]
    folder = write_run(tmp_path / "run", events, source=name, algorithm=name)
    page = shown(folder)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_an_accuracy_that_fell_and_a_target_that_was_missed_are_told(tmp_path):
    shares = [0.5, 0.7, 0.8, 0.75, 0.6]
    folder = write_run(tmp_path, [*(round_event(i, s) for i, s in enumerate(shares, 1)), end_event()])
    assert "The accuracy fell after its best round" in titles(folder)
    assert "The target of 90.0 % was not reached" in titles(folder)
    calm = write_run(tmp_path / "calm", rising())
    assert "The accuracy fell after its best round" not in titles(calm)


def test_a_failing_scaffold_is_explained_by_the_published_number(tmp_path):
    events = [*(round_event(i, 0.33) for i in range(1, 13)), end_event()]
    skewed = write_run(tmp_path / "a", events, algorithm="scaffold", scheme="labels:2")
    even = write_run(tmp_path / "b", events, algorithm="scaffold")
    assert "33.80" in shown(skewed)
    assert "33.80" not in shown(even)
    assert "The global model has learned little" in titles(even)


def test_empty_rounds_a_broken_model_and_neglected_clients_are_told(tmp_path):
    events = [
        round_event(1, 0.5),
        round_event(2, 0.5, clients=0, failures=[("1", "dropped")]),
        round_event(3, 0.1, loss=None),
        clients_event(3, 0.6, worst=0.1),
        end_event(),
    ]
    found = titles(write_run(tmp_path, events))
    assert "1 round had nothing to merge" in found
    assert "The global model broke down in round 3" in found
    assert "Some clients are left behind" in found


def test_the_most_serious_finding_comes_first(whole):
    levels = [finding.level for finding in explain(read_run(whole))]
    order = ["problem", "warning", "good", "info"]
    assert levels == sorted(levels, key=order.index)
    assert len(levels) > 2


def test_clients_that_share_nothing_are_judged_by_their_own_models(tmp_path):
    events = [round_event(1, 0.1, bytes_up=0, bytes_down=0), clients_event(1, 0.7, personal=True), end_event()]
    folder = write_run(tmp_path, events, algorithm="local-only")
    assert "own models reach 70.0 % on average." in headline(read_run(folder))
    assert "target" not in "".join(titles(folder)).lower()
    assert read_run(folder).curve("round") == [(1.0, 0.7)]
    assert "Final accuracy" not in shown(folder)
    assert "holdout" not in shown(folder), "it is set, or these models would not have been evaluated"


def test_clients_that_share_nothing_are_told_how_to_see_their_models(tmp_path):
    folder = write_run(tmp_path, [round_event(1, 0.1)], algorithm="local-only")
    advice = {True: "evaluated after the last round", False: "set holdout"}
    for kept, said in advice.items():
        config = (folder / "config.toml").read_text().replace("[data]", "[data]\nholdout = 0.2" if kept else "[data]")
        (tmp_path / str(kept)).mkdir()
        (tmp_path / str(kept) / "config.toml").write_text(config)
        (tmp_path / str(kept) / "events.jsonl").write_bytes((folder / "events.jsonl").read_bytes())
        texts = [finding.text for finding in explain(read_run(tmp_path / str(kept)))]
        assert [said in text for text in texts if "own models count" in text] == [True]


def test_a_long_run_stays_a_small_page(tmp_path):
    rounds = [round_event(n, 0.5 + 0.4 * n / 1500, failures=[("1", "late")]) for n in range(1, 1501)]
    folder = write_run(tmp_path, [*rounds, end_event()], rounds=1500)
    page = shown(folder)
    assert len(page) < 400_000
    assert "every 8th, the best and the last" in page


def test_the_last_of_two_events_of_a_round_counts(tmp_path):
    folder = write_run(tmp_path, [round_event(1, 0.2), round_event(2, 0.3), round_event(2, 0.4)])
    assert [r.accuracy for r in read_run(folder).rounds] == [0.2, 0.4]


def test_a_real_run_has_a_page(tmp_path):
    from fedloom.simulation.simulate import simulate

    made = simulate(
        "digits",
        out=tmp_path / "run",
        progress=False,
        model="mlp",
        clients=5,
        per_round=3,
        rounds=2,
        batch_size=50,
        holdout=0.2,
        clients_every=1,
    )
    text = shown(made.folder)
    run = read_run(made.folder)
    assert run.final.accuracy == pytest.approx(made.final_accuracy)
    assert run.planned == 2
    assert run.end
    assert "From client to client" in text
    shutil.copy(made.folder / "events.jsonl", tmp_path)
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["event"] for line in lines} >= {"start", "round", "clients", "end"}
