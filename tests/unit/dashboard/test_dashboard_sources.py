import shutil
import time

import pytest
from dashboard_runs import append, row, run, started
from prometheus_client.parser import text_string_to_metric_families

from fedloom.dashboard import metrics
from fedloom.dashboard.sources import Board, FolderSource, places
from fedloom.dashboard.stream import Told
from fedloom.errors import DataError


def presence(**more):
    now = time.time()
    members = [
        {"number": 0, "name": "ana", "samples": 90, "seen": now, "agreed": True, "left": "", "took": 2.0},
        {"number": 1, "name": "luis", "samples": 80, "seen": now - 500, "agreed": True, "left": "", "took": 1.0},
        {"number": 2, "name": "marta", "samples": 70, "seen": now, "agreed": True, "left": "it had to go", "took": 0.0},
    ]
    members = [one | {"key": "ab" * 32, "address": "10.0.0.1"} for one in members]
    return {"time": now, "count": 4, "round": 3, "waiting": [0], "away": 60.0, "clients": members} | more


def looked(board):
    return board.look(0.0)


def test_a_board_finds_runs_in_folders_and_new_ones_and_forgets_those_that_are_gone(tmp_path, monkeypatch):
    run(tmp_path / "runs" / "a", [row(1)])
    run(tmp_path / "runs" / "sweep" / "b", [row(1)])
    run(tmp_path / "other" / "a", [row(1)])
    (tmp_path / "runs" / "no-run").mkdir()
    monkeypatch.setattr("fedloom.dashboard.sources._LOOK", 0.0)
    board = Board([tmp_path / "runs", tmp_path / "other" / "a"])
    assert list(looked(board)) == ["a", "sweep/b", "a (2)"]
    run(tmp_path / "runs" / "new", [row(1), row(2)])
    assert looked(board)["new"].facts["rounds"] == 2
    shutil.rmtree(tmp_path / "runs" / "a")
    assert list(looked(board)) == ["sweep/b", "a (2)", "new"]


def test_runs_that_do_not_stand_alone_are_found_once(tmp_path):
    run(tmp_path / "a", [row(1)])
    assert list(looked(Board([tmp_path, tmp_path / "a", tmp_path]))) == ["a"]


@pytest.mark.parametrize(
    ("make", "words"), [(lambda p: None, "no such folder"), (lambda p: p.write_text("x"), "is a file")]
)
def test_a_place_that_is_no_folder_is_refused(tmp_path, make, words):
    make(tmp_path / "x")
    with pytest.raises(DataError, match=words):
        places([tmp_path / "x"])


def test_the_state_of_a_run(tmp_path):
    source = FolderSource(run(tmp_path / "a", [started(), row(1)]))
    assert source.look().facts["state"] == "running"
    append(tmp_path / "a", {"event": "end", "stopped": ""})
    assert source.look().facts["state"] == "over"
    waits = FolderSource(run(tmp_path / "b", [], presence=presence()))
    assert waits.look().facts["state"] == "waiting"
    append(tmp_path / "b", started())
    assert waits.look().facts["state"] == "running"
    stale = FolderSource(run(tmp_path / "c", [started()], presence=presence(time=time.time() - 100)))
    assert stale.look().facts["state"] == "quiet"


def test_presence_shows_no_keys_and_no_addresses(tmp_path):
    source = FolderSource(run(tmp_path / "a", [started()], presence=presence(secret="ab" * 32)))
    told = "".join(data for _, data in Told(["a"]).news({"a": source.look()}))
    assert "marta" in told
    assert "abab" not in told
    assert "10.0.0.1" not in told


def test_damaged_files_are_no_end_of_the_page(tmp_path):
    folder = run(tmp_path / "a", [started(), row(1)], presence=presence())
    (folder / "config.toml").write_text("[run\n")
    (folder / "presence.json").write_text("{")
    with (folder / "events.jsonl").open("a") as log:
        log.write("{half\n")
    look = FolderSource(folder).look()
    assert look.facts["damaged"] == 1
    assert look.facts["rounds"] == 1
    assert look.presence == {}


def test_only_chosen_runs_are_told_in_full(tmp_path):
    run(tmp_path / "a", [started(), row(1, 0.5, ["client_1"])])
    run(tmp_path / "b", [started(), row(1)])
    kinds = [
        (kind, name)
        for kind, data in Told(["b"]).news(looked(Board([tmp_path])))
        for name in "ab"
        if f'"name":"{name}"' in data
    ]
    assert kinds == [("run", "a"), ("run", "b"), ("rounds", "b")]


def test_metrics_are_what_prometheus_reads(tmp_path):
    rows = [started(), row(1, 0.4, epsilon=0.25), row(2, 0.8, ["client_1"], epsilon=0.5), row(3, None, epsilon=0.75)]
    run(tmp_path / "a", rows, presence=presence())
    run(tmp_path / 'quo"te', [row(1), {"event": "end"}])
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text(looked(Board([tmp_path]))).decode())
        for sample in family.samples
    }
    assert found["fedloom_round", "a"] == 3
    assert found["fedloom_rounds_planned", "a"] == 10
    assert found["fedloom_accuracy", "a"] == 0.8
    assert found["fedloom_loss", "a"] == 1.5
    assert found["fedloom_epsilon", "a"] == 0.75
    assert found["fedloom_round_seconds", "a"] == 0.5
    assert found["fedloom_sent_bytes_total", "a", "up"] == 9000
    assert found["fedloom_sent_bytes_total", "a", "down"] == 12000
    assert found["fedloom_client_failures_total", "a"] == 1
    assert found["fedloom_clients", "a", "connected"] == 1
    assert found["fedloom_clients", "a", "all"] == 4
    assert found["fedloom_clients", "a", "asked"] == 3
    assert found["fedloom_running", "a"] == 1
    assert found["fedloom_running", 'quo"te'] == 0
    assert ("fedloom_epsilon", 'quo"te') not in found
