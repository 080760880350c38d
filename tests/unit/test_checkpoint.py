"""Checkpoints: a run that was killed ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import killable_run
import pytest
import torch

from fedloom import checkpoint
from fedloom.algorithms.base import Broadcast
from fedloom.errors import DataError, StorageError
from fedloom.rounds import Snapshot


def snapshot(number):
    vector = torch.arange(4.0) + number
    return Snapshot(
        number,
        {"model": vector, "server.step": torch.tensor(number, dtype=torch.int64)},
        {number - 1: Broadcast(vector - 1, {"control": vector * 2}), number: Broadcast(vector)},
        {"clock": 0.1 * number, "busy": [[1, 2], [3, None]]},
        number % 2,
    )


def same(a, b):
    return (
        (a.round, a.schedule, a.empty, a.state.keys(), a.versions.keys())
        == (b.round, b.schedule, b.empty, b.state.keys(), b.versions.keys())
        and all(torch.equal(a.state[k], b.state[k]) and a.state[k].dtype == b.state[k].dtype for k in a.state)
        and all(torch.equal(a.versions[n].vector, b.versions[n].vector) for n in a.versions)
        and all(
            torch.equal(a.versions[n].extra[k], b.versions[n].extra[k]) for n in a.versions for k in a.versions[n].extra
        )
    )


def fill(folder, rounds):
    store = checkpoint.begin(folder, keeps=True)
    for number in rounds:
        store.commit({number % 3: {"control": torch.full((3,), float(number))}})
        checkpoint.save(folder, snapshot(number), store)
    return store


def kept(store):
    return {client: float(state["control"][0]) for client, state in store.read(range(5)).items()}


def test_what_is_saved_is_what_is_loaded(tmp_path):
    assert checkpoint.begin(tmp_path, keeps=False) is None
    checkpoint.save(tmp_path, snapshot(3))
    found, store = checkpoint.load(tmp_path)
    assert same(found, snapshot(3))
    assert store is None


def test_what_was_spent_is_saved_and_a_checkpoint_of_before_there_were_accounts_is_read(tmp_path):
    spent = {
        "relation": "add-or-remove",
        "events": [[{"kind": "release", "multiplier": 1.5}, 3]],
        "clients": [[4, "inf"]],
    }
    checkpoint.save(tmp_path, replace(snapshot(3), accounts=spent))
    assert checkpoint.load(tmp_path)[0].accounts == spent
    checkpoint.save(tmp_path, snapshot(4))
    assert checkpoint.load(tmp_path)[0].accounts == {}


def test_numbers_that_were_encoded_on_their_way_come_back_as_numbers(tmp_path):
    vector = torch.arange(4.0)
    sent = Broadcast(vector, {"clip": torch.tensor([0.5])}, unsent=2, encoded=3)
    state = {"model": vector, "sent": torch.tensor(7), "privacy.tree.nodes": torch.zeros(0, 4)}
    checkpoint.save(tmp_path, replace(snapshot(3), state=state, versions={2: sent}))
    found = checkpoint.load(tmp_path)[0]
    assert torch.equal(found.versions[2].vector, vector)
    assert found.versions[2].extra["clip"].tolist() == [0.5]
    assert int(found.state["sent"]) == 7
    assert found.state["privacy.tree.nodes"].shape == (0, 4)


def test_the_last_two_are_kept_and_a_new_run_deletes_them(tmp_path):
    fill(tmp_path, range(1, 6))
    assert checkpoint.numbers(tmp_path) == [4, 5]
    assert kept(checkpoint.load(tmp_path)[1]) == {2: 5.0, 1: 4.0, 0: 3.0}
    assert kept(checkpoint.begin(tmp_path, keeps=True)) == {}
    assert checkpoint.numbers(tmp_path) == []


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit": lambda folder: flip(folder / "round-00000005.safetensors"),
    "cut off": lambda folder: os.truncate(folder / "round-00000005.safetensors", 100),
    "empty": lambda folder: os.truncate(folder / "round-00000005.safetensors", 0),
    "a client's state": lambda folder: flip(folder / "clients/journal-00000005.bin"),
    "clients' states": lambda folder: (folder / "clients/journal-00000005.bin").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path, damage):
    fill(tmp_path, range(1, 6))
    damage(tmp_path)
    found, store = checkpoint.load(tmp_path)
    assert same(found, snapshot(4))
    assert kept(store) == {1: 4.0, 0: 3.0, 2: 2.0}
    assert checkpoint.numbers(tmp_path) == [4]
    store.commit({2: {"control": torch.full((3,), 50.0)}})
    checkpoint.save(tmp_path, snapshot(5), store)
    assert kept(checkpoint.load(tmp_path)[1]) == {1: 4.0, 0: 3.0, 2: 50.0}


def test_no_checkpoint_or_none_that_is_whole(tmp_path):
    with pytest.raises(DataError, match="no checkpoint is here"):
        checkpoint.load(tmp_path)
    fill(tmp_path, [1])
    (tmp_path / "round-00000001.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no checkpoint can be read"):
        checkpoint.load(tmp_path)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, full_disk):
    store = fill(tmp_path, range(1, 4))
    store.commit({1: {"control": torch.full((3,), 40.0)}})
    with full_disk(64), pytest.raises(StorageError, match="cannot write"):
        checkpoint.save(tmp_path, snapshot(4), store)
    assert kept(store) == {0: 3.0, 1: 40.0, 2: 2.0}
    checkpoint.save(tmp_path, snapshot(4), store)  # there is space again
    assert kept(checkpoint.load(tmp_path)[1]) == {0: 3.0, 1: 40.0, 2: 2.0}
    assert checkpoint.numbers(tmp_path) == [3, 4]


def test_after_a_full_disk_the_checkpoint_before_still_has_its_states(tmp_path, full_disk):
    store = fill(tmp_path, range(1, 4))
    store.commit({1: {"control": torch.full((3,), 40.0)}})
    with full_disk(64), pytest.raises(StorageError):
        checkpoint.save(tmp_path, snapshot(4), store)
    found, store = checkpoint.load(tmp_path)
    assert found.round == 3
    assert kept(store) == {0: 3.0, 1: 1.0, 2: 2.0}


def start(folder):
    return subprocess.Popen([sys.executable, killable_run.__file__, str(folder)], stdout=subprocess.PIPE, text=True)


def end(folder):
    """Carry out the rest of a run in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        text = list(killable_run.lines(folder))
    finally:
        torch.set_num_threads(threads)
    return text, torch.load(folder / "end.pt", weights_only=True)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    text, whole = end(tmp_path / "whole")
    for stop, pause in [(2, 0.0), (12, 0.004), (19, 0.01)]:
        with start(tmp_path / "killed") as run:
            for line in run.stdout:
                if line.startswith(f"{stop} "):
                    time.sleep(pause)  # somewhere in the round, or in its checkpoint
                    run.kill()
                    break
        assert run.returncode == -signal.SIGKILL
    resumed, state = end(tmp_path / "killed")
    first = int(resumed[0].removeprefix("from "))
    assert first in (15, 18, 21)
    assert resumed[1:] == text[first + 1 :]
    for a, b in zip(state, whole, strict=True):
        assert a.keys() == b.keys()
    assert all(torch.equal(state[0][k], whole[0][k]) for k in whole[0])
    assert all(torch.equal(state[1][c]["control"], whole[1][c]["control"]) for c in whole[1])
    assert len(list(Path(tmp_path / "killed").glob("round-*"))) == 2
