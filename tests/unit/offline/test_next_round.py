from __future__ import annotations

import shlex
import shutil

import numpy as np
import pytest
import torch

from fedloom import files
from fedloom.data import load_evaluation
from fedloom.errors import ArchitectureError, DataError, MergeError, UsageError
from fedloom.models import io, sidecar, zoo
from fedloom.offline import member
from fedloom.offline.compare import compare
from fedloom.offline.merge import merge
from fedloom.offline.next_round import Team, next_round
from fedloom.offline.train import train
from fedloom.training.evaluate import evaluate
from fedloom.training.shard import Shard

NAMES = ("ana", "luis", "carmen")


def accuracy(path):
    model, data = io.load(path), load_evaluation("digits")
    return evaluate(model, Shard.of(data, model)).accuracy


def retrain(parts, epochs=1, **given):
    return [train(parts / name, epochs, batch_size=16, lr=3e-3, **given).path for name in NAMES]


def contents(parts):
    return {str(p.relative_to(parts)): files.sha256(p) for p in sorted(parts.rglob("*")) if p.is_file()}


def starts(parts):
    """What every member's folder says of its start, which has to be what lies there."""
    found = set()
    for name in NAMES:
        described = member.read(parts / name)
        assert sidecar.digest(io.load(parts / name / described.start).vector()) == described.start_digest
        found.add((described.round, described.start, described.start_digest))
    return found


def test_three_rounds_by_hand(team):
    made = [next_round(team.parts)]
    for _ in range(2):
        retrain(team.parts, 4)
        made.append(next_round(team.parts))
    assert [m.round for m in made] == [1, 2, 3]
    assert [m.global_model.name for m in made] == [f"round_{i:03d}.keras" for i in (1, 2, 3)]
    reached = [accuracy(m.global_model) for m in made]
    assert reached[2] > reached[0]
    assert reached[2] > 0.95
    assert starts(team.parts) == {(3, "start_003.keras", sidecar.digest(io.load(made[2].global_model).vector()))}
    kept = {p.name for p in (team.parts / "ana").glob("start*")}
    assert kept == {"start.keras", "start_003.keras"}
    assert files.read_json(team.parts / "manifest.json")["round"] == 3
    record = sidecar.read(made[2].global_model)[0]
    assert (record.round, record.merge["method"], len(record.merge["members"])) == (3, "fedavg", 3)
    assert "round 3" in made[2]._repr_html_()


def test_the_first_round_is_the_merge_of_the_files(team):
    merged = merge(team.shared).model.vector()
    assert torch.equal(io.load(next_round(team.parts).global_model).vector(), merged)


def test_stale_models_are_refused_and_nothing_changes(team):
    next_round(team.parts)
    before = contents(team.parts)
    with pytest.raises(MergeError, match=r"ana\.keras was not trained from the start of round 1, but from round 0"):
        next_round(team.parts)
    train(team.parts / "ana", 1)
    with pytest.raises(MergeError, match=r"luis\.keras was not trained from the start of round 1"):
        next_round(team.parts)
    assert member.read(team.parts / "luis").round == 1
    assert {k: v for k, v in contents(team.parts).items() if not k.startswith("ana")} == {
        k: v for k, v in before.items() if not k.startswith("ana")
    }
    assert next_round(team.parts, allow_stale=True).round == 2


def test_fresh_starts_are_refused_in_words_of_their_own(team):
    with pytest.raises(MergeError, match=r"round 0, but from a start of its own \(--fresh-start\?\)"):
        next_round(team.parts, team.different)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_an_interrupted_hand_out_is_done_again_by_the_same_call(team, monkeypatch, k, number):
    if number:
        next_round(team.parts)
        retrain(team.parts)
    expected = merge([team.parts / name for name in NAMES]).model.vector()
    whole = Team._hand_out

    def failing(self, folder, *given):
        if folder.name == NAMES[k]:
            raise KeyboardInterrupt
        whole(self, folder, *given)

    monkeypatch.setattr(Team, "_hand_out", failing)
    with pytest.raises(KeyboardInterrupt):
        next_round(team.parts)
    assert files.read_json(team.parts / "manifest.json")["round"] == number
    monkeypatch.setattr(Team, "_hand_out", whole)
    made = next_round(team.parts)
    assert made.round == number + 1
    assert torch.equal(io.load(made.global_model).vector(), expected)
    assert starts(team.parts) == {(number + 1, f"start_{number + 1:03d}.keras", sidecar.digest(expected))}
    assert train(team.parts / "ana", 1).sidecar.round == number + 1


def test_the_cure_for_different_starts_works(team, monkeypatch):
    monkeypatch.chdir(team.parts.parent)
    compared = compare(team.different, "digits", methods=["fedavg"], align="none", out=None, progress=False)
    problem = compared.findings[0]
    assert "no shared start" in problem.title
    program, command, parts, option, model = shlex.split(problem.command)
    assert (program, command, option) == ("fedloom", "next-round", "--models")
    made = next_round(parts, [model])
    assert made.notes == (f"{model} becomes everybody's start as it is",)
    assert torch.equal(io.load(made.global_model).vector(), io.load(team.different[0]).vector())
    again = compare(retrain(team.parts), "digits", methods=["fedavg"], out=None, progress=False)
    assert again.best().counts.accuracy > 0.9
    assert again.findings[0].level != "problem"


def test_the_memory_of_a_server_optimiser_passes_from_round_to_round(team, tmp_path):
    by_files = team.parts / "ana" / "start.keras"
    for number in (1, 2):
        everything = sorted(team.parts.glob("*/*.keras"))  # starts and the global model of round 1 as well
        by_files = merge(everything, "fedadam", out=tmp_path / f"g{number}.keras", previous=by_files).out
        made = next_round(team.parts, method="fedadam")
        torch.testing.assert_close(io.load(made.global_model).vector(), io.load(by_files).vector(), atol=1e-5, rtol=0)
        retrain(team.parts)
    assert not made.notes  # from the second step on the memory is there


def test_models_from_elsewhere_without_sidecars(team, tmp_path):
    sent = [shutil.copy(p, tmp_path) for p in team.shared]
    made = next_round(team.parts, [tmp_path / "*.keras"])
    assert len(sent) == 3
    assert "(and 2 more): no sidecar ana.json, so its start could not be checked" in made.notes[0]
    assert any("uniform weights" in n for n in made.notes)
    for path in team.different:
        shutil.copy(path, tmp_path)
    made = next_round(team.parts, [tmp_path / "*.keras"])
    assert "3 different starts" in made.notes[1]


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "h5"])
def test_other_formats_keep_theirs(tmp_path, suffix):
    from fedloom.offline.split import split

    parts = split("digits", names=NAMES[:2], out=tmp_path / "p", model="2nn", model_format=suffix).out
    for _ in range(2):
        for name in NAMES[:2]:
            train(parts / name, 1)
        made = next_round(parts)
    assert made.global_model.name == f"round_002.{suffix}"
    assert member.read(parts / "luis").start == f"start_002.{suffix}"


def test_a_missing_folder_a_missing_model_and_a_missing_round_are_named(team):
    team.shared[1].unlink()
    with pytest.raises(DataError, match=r"luis\.keras is missing: 'fedloom train .*luis' makes it"):
        next_round(team.parts)
    shutil.rmtree(team.parts / "luis")
    with pytest.raises(DataError, match="the folder of luis is missing"):
        next_round(team.parts)
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        next_round(team.parts / "ana")
    manifest = files.read_json(team.parts / "manifest.json")
    rows = [row for row in manifest["members"] if row["name"] != "luis"]
    files.write_json(team.parts / "manifest.json", {**manifest, "members": rows, "round": 7})
    with pytest.raises(DataError, match="the global model of round 7 is missing"):
        next_round(team.parts)


def test_models_that_do_not_fit_are_refused(team, tmp_path):
    other = io.save(io.from_config(zoo.config("mlp", (8, 8), 10)), tmp_path / "other.keras")
    before = contents(team.parts)
    for models in ([other], [team.shared[0], other], [other, team.shared[0]]):
        with pytest.raises(ArchitectureError, match=r"other\.keras does not fit"):
            next_round(team.parts, models)
    model = io.load(team.shared[0])
    io.save(model.load(model.vector() * np.nan), tmp_path / "nan.keras")
    with pytest.raises(MergeError, match=r"nan\.keras: array"):
        next_round(team.parts, [tmp_path / "nan.keras"])
    assert contents(team.parts) == before


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("ensemble", MergeError, "cannot be trained on"),
        ("weighted", UsageError, "choose fedavg"),
        ("fedavgg", UsageError, "did you mean 'fedavg'"),
        ("bulyan", None, ""),
    ],
)
def test_methods_without_a_place_here(team, method, error, words):
    if error is None:
        assert next_round(team.parts, method=method).round == 1
        return
    with pytest.raises(error, match=words):
        next_round(team.parts, method=method)
