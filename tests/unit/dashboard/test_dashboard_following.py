import json

from dashboard_runs import append, log_of, row, run, started
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedloom import events
from fedloom.dashboard.facts import Fold
from fedloom.dashboard.following import Follower
from fedloom.dashboard.sources import FolderSource
from fedloom.dashboard.stream import Told
from fedloom.simulation.folder import Folder

PLAIN = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def everything(follower):
    """Return all events that a follower has told, after they began anew for the last time."""
    told = []
    while True:
        anew, rows = follower.news()
        told = rows if anew else told + rows
        if not rows:
            return told


@PLAIN
@given(cuts=st.lists(st.integers(0, 2000), max_size=12), damage=st.sampled_from(["", "{half\n", '"text"\n', "\xff\n"]))
def test_a_log_that_comes_in_pieces_is_read_as_the_whole(tmp_path, cuts, damage):
    whole = (log_of([started(), row(1)]) + damage + log_of([row(n, failed=["ñandú"]) for n in (2, 3)])).encode()
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"")
    follower, told, at = Follower(path), [], 0
    for cut in [*sorted(min(cut, len(whole)) for cut in cuts), len(whole)]:
        with path.open("ab") as log:
            log.write(whole[at:cut])
        at = max(at, cut)
        told += follower.news()[1]
    read = events.read(tmp_path)
    assert told == list(read.rows)
    assert follower.damaged == read.damaged


def test_a_log_that_is_cut_back_is_told_anew_and_one_that_grows_is_not(tmp_path):
    folder = run(tmp_path / "a", [started(), *(row(n, n / 10) for n in range(1, 6))])
    follower = Follower(folder / "events.jsonl")
    assert follower.news()[0]
    append(folder, row(6))
    anew, rows = follower.news()
    assert not anew
    assert [one["round"] for one in rows] == [6]
    Folder(folder).cut_back(3)
    append(folder, row(4, 0.9), row(5, 0.9), row(6, 0.9), row(7, 0.9), row(8, 0.9))  # longer than it was before
    anew, rows = follower.news()
    assert anew
    assert [one.get("round") for one in rows] == [None, 1, 2, 3, 4, 5, 6, 7, 8]
    (folder / "events.jsonl").unlink()
    assert follower.news() == (True, [])
    assert follower.news() == (False, [])
    run(folder, [row(1)])
    assert [one["round"] for one in follower.news()[1]] == [1]


def test_a_log_written_over_in_place_is_told_anew(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(log_of([row(1, 0.1), row(2, 0.2)]))
    follower = Follower(path)
    follower.news()
    with path.open("r+") as log:
        log.write(log_of([row(1, 0.3), row(2, 0.4), row(3, 0.5)]))
    assert [one["accuracy"] for one in everything(follower)] == [0.3, 0.4, 0.5]


STEPS = st.lists(st.one_of(st.integers(1, 3), st.tuples(st.just("back"), st.integers(0, 4))), max_size=8)


@PLAIN
@given(steps=STEPS)
def test_what_a_page_was_told_adds_up_to_what_there_is(tmp_path, steps):
    folder = run(tmp_path / "a", [started()])
    source, told, page, number = FolderSource(folder), Told(["a"]), [], 0

    def listen():
        for kind, data in told.news({"a": source.look()}):
            if kind == "rounds":
                found = json.loads(data)
                assert found["from"] <= len(page)
                page[found["from"] :] = found["rounds"]

    for step in steps:
        if isinstance(step, int):
            append(folder, *(row(number + i, 0.1 * step) for i in range(1, step + 1)))
            number += step
        else:
            number = min(number, step[1])
            Folder(folder).cut_back(number)
        listen()
    listen()
    assert [one["round"] for one in page] == list(range(1, number + 1))
    assert page == [*source.look().rounds]
    assert list(told.news({"a": source.look()})) == []  # nothing new is nothing said


def test_a_round_that_comes_twice_counts_once(tmp_path):
    fold = Fold()
    fold.take([started(), row(1, 0.1), row(2, 0.2, ["client_3"]), row(3, 0.3)])
    before = fold.generation
    fold.take([row(2, 0.7)])
    assert [one["accuracy"] for one in fold.rounds] == [0.1, 0.7]
    assert fold.generation > before
    assert fold.facts()["sums"]["bytes_up"] == 6000


def test_facts_tell_the_best_and_the_last_round_and_who_failed(tmp_path):
    fold = Fold()
    fold.take([started(), row(1, 0.6, epsilon=0.5), row(2, 0.9, ["client_1"]), row(3, None, ["client_1", "client_2"])])
    facts = fold.facts()
    assert facts["best"]["round"] == facts["tested"]["round"] == 2
    assert facts["last"]["round"] == 3
    assert fold.rounds[0]["epsilon"] == 0.5
    assert facts["failed"]["client_1"]["count"] == 2
    assert facts["failed"]["client_2"]["reason"] == "client_2 broke at line 7"
    assert not facts["over"]
    fold.take([{"event": "end", "stopped": "target"}])
    assert fold.facts()["over"]
    assert fold.facts()["stopped"] == "target"
    fold.take([row(4, 0.9, ["client_1"])])
    assert facts["failed"]["client_1"]["count"] == 2  # another thread may be reading
