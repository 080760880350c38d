"""Runs that were stopped, killed or ran out of space: they go on, and end with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_runs import CHOSEN, SMALL, told, vector

from fedloom import events as log
from fedloom.cli import main
from fedloom.errors import DataError, StorageError, UsageError
from fedloom.simulation.simulate import simulate


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped. Not to be changed."""
    return simulate("digits", out=tmp_path_factory.mktemp("runs") / "whole", **SMALL)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fedadam", "fedbuff"])
def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path, algorithm):
    given = SMALL | {"algorithm": algorithm, "network": "lan"}
    whole = simulate("digits", out=tmp_path / "whole", **given)
    simulate("digits", out=tmp_path / "parts", **(given | {"rounds": 2}))
    parts = simulate("digits", out=tmp_path / "parts", resume=True, **given)
    assert torch.equal(vector(whole.model), vector(parts.model))
    assert torch.equal(vector(whole.best_model), vector(parts.best_model))
    assert told(whole.folder) == told(parts.folder)
    assert (whole.best_round, whole.final_accuracy) == (parts.best_round, parts.final_accuracy)


def test_events_after_the_checkpoint_are_cut_back(tmp_path):
    run = simulate("digits", out=tmp_path / "run", **CHOSEN)
    before = told(run.folder)
    with (run.folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "round", "round": 5, "accuracy": 0.1}\n{"event": "rou')
    again = simulate(run.folder, resume=True, progress=False)
    assert told(again.folder) == before
    assert len(again.records) == 4


def test_a_log_that_lost_rounds_is_not_gone_on_with(tmp_path):
    whole = simulate("digits", out=tmp_path / "run", **SMALL)
    best, lines = vector(whole.best_model), (whole.folder / "events.jsonl").read_text().splitlines(keepends=True)
    (whole.folder / "events.jsonl").write_text("".join(lines[:3] + lines[4:]))  # round 2
    for _ in range(2):
        with pytest.raises(DataError, match="round 2 is missing, but the checkpoint is of round 4: delete"):
            simulate(whole.folder, resume=True, progress=False)
    (whole.folder / "events.jsonl").unlink()
    with pytest.raises(DataError, match="round 1 is missing"):
        simulate(whole.folder, resume=True, progress=False)
    for checkpoint in (whole.folder / "checkpoints").iterdir():
        checkpoint.unlink()
    again = simulate(whole.folder, resume=True, progress=False)
    assert len(again.records) == 4
    assert torch.equal(vector(again.best_model), best)


def test_a_killed_run_goes_on(tmp_path):
    flags = ["--clients", "10", "--per-round", "3", "--rounds", "12", "--plan", "loop", "--checkpoint-every", "1"]
    command = [sys.executable, "-m", "fedloom", "simulate", "digits", *flags, "--out"]
    events = tmp_path / "killed" / "events.jsonl"
    with subprocess.Popen([*command, tmp_path / "killed"], stderr=subprocess.DEVNULL, env=os.environ) as process:
        while process.poll() is None and (not events.is_file() or events.read_text().count('"round"') < 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    killed = simulate(tmp_path / "killed", resume=True, progress=False)
    whole = simulate("digits", clients=10, per_round=3, rounds=12, plan="loop", out=tmp_path / "whole", progress=False)
    assert torch.equal(vector(killed.model), vector(whole.model))
    assert told(killed.folder) == told(whole.folder)


def test_a_run_that_was_killed_before_its_plan_was_written_goes_on(tmp_path, whole):
    cut = simulate("digits", out=tmp_path / "cut", **SMALL)
    lines = (cut.folder / "events.jsonl").read_text().splitlines(keepends=True)
    (cut.folder / "events.jsonl").write_text(lines[0] + lines[1][:9])
    for path in (cut.folder / "checkpoints").iterdir():
        path.unlink()
    again = simulate("digits", out=cut.folder, resume=True, **SMALL)
    assert told(again.folder) == told(whole.folder)


@pytest.mark.parametrize("resume", [True, False])
def test_what_a_kill_left_half_written_is_no_hindrance(tmp_path, resume):
    orphan = tmp_path / ".fedloom-config.1a2b3c4d.toml"
    orphan.write_text("[da")
    simulate("digits", out=tmp_path, resume=resume, **(SMALL | {"rounds": 1}))
    assert not orphan.exists()
    orphan = tmp_path / "checkpoints" / ".fedloom-round-00000002.1a2b3c4d.safetensors"
    orphan.write_bytes(b"half")
    assert len(simulate(tmp_path, resume=True, rounds=2, progress=False).records) == 2
    assert not orphan.exists()


def test_ctrl_c_ends_after_the_round_and_says_how_to_go_on(tmp_path):
    flags = ["--clients", "10", "--per-round", "3", "--rounds", "5000", "--plan", "loop", "--out", tmp_path / "run"]
    events = tmp_path / "run" / "events.jsonl"
    command = [sys.executable, "-m", "fedloom", "simulate", "digits", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and (not events.is_file() or events.read_text().count('"round"') < 2):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said, problems = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"to go on: fedloom simulate {tmp_path / 'run'} --resume" in said
    assert "Traceback" not in problems
    done = sum(row["event"] == "round" for row in log.read(tmp_path / "run").rows)
    again = simulate(tmp_path / "run", resume=True, rounds=done + 1, progress=False)
    assert [r.round for r in again.records] == list(range(1, done + 2))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, whole, full_disk, capsys):
    flags = ["--clients", "10", "--per-round", "3", "--plan", "loop", "--checkpoint-every", "1", "--quiet"]
    assert simulate("digits", **(SMALL | {"rounds": 2}), out=tmp_path / "run").best_round == 2
    before = {p.name: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").glob("*.safetensors")}
    command = ["simulate", "digits", *flags, "--rounds", "4", "--lr", "0.1", "--out", str(tmp_path / "run"), "--resume"]
    with full_disk(300_000), pytest.raises(SystemExit) as done:
        main(command)
    said = capsys.readouterr().err
    assert done.value.code == StorageError.exit_code
    assert said.count("\n") == 1, said
    assert "the checkpoint of round 2 is whole" in said
    assert {p.name: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").glob("*.safetensors")} == before
    again = simulate(tmp_path / "run", resume=True, rounds=4, progress=False)
    assert torch.equal(vector(again.model), vector(whole.model))


def test_another_configuration_does_not_go_on(tmp_path):
    simulate("digits", out=tmp_path / "run", **(SMALL | {"rounds": 1}))
    with pytest.raises(UsageError, match=r"training\.lr is 0\.1 there and 0\.3 now"):
        simulate("digits", out=tmp_path / "run", resume=True, **(SMALL | {"lr": 0.3}))
    with pytest.raises(StorageError, match="pass --resume to go on"):
        simulate("digits", out=tmp_path / "run", **SMALL)


def test_a_resumed_run_must_be_named(tmp_path):
    with pytest.raises(UsageError, match="--resume needs the folder"):
        simulate("digits", resume=True)
    with pytest.raises(UsageError, match=r"is not the folder of a run: there is no config\.toml"):
        simulate(tmp_path, resume=True)
