from __future__ import annotations

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedloom import files
from fedloom.data import load_evaluation
from fedloom.errors import ArchitectureError, DataError, MergeError, ModelError, UsageError
from fedloom.merging import METHODS
from fedloom.metrics import Counts
from fedloom.models import io, sidecar, zoo
from fedloom.offline import central
from fedloom.offline.compare import compare
from fedloom.offline.merge import merge
from fedloom.offline.next_round import next_round
from fedloom.offline.split import split
from fedloom.offline.train import train
from fedloom.report.comparison import Comparison
from fedloom.training.local import Trainer

X = load_evaluation("digits")


def run(models, data=X, methods=("fedavg",), **given):
    return compare(models, data, **{"methods": methods, "out": None, "progress": False, **given})


def titles(made):
    return [f.title for f in made.findings]


def test_everything_is_in_the_table_and_on_disk(team, tmp_path):
    shutil.copytree(team.parts, tmp_path / "p")
    own = [tmp_path / "p" / p.parent.name / p.name for p in team.shared]
    merged = merge(own, out=tmp_path / "global.keras")
    made = run([*own, merged.out], methods=None, central=tmp_path / "p", out=tmp_path / "c", title="Ours")
    kinds = {
        kind: [row.name for row in made.of_kind(kind)] for kind in ("member", "method", "ensemble", "central", "global")
    }
    assert kinds["member"] == ["ana", "luis", "carmen"]
    assert {*kinds["method"], *made.refused} == set(METHODS) - {"ensemble"}
    assert made.refused == {}
    assert (kinds["ensemble"], kinds["central"], kinds["global"]) == (["ensemble"], ["central"], ["global"])
    rows = {row.name: row for row in made.rows}
    assert rows["global"].counts.accuracy == rows["fedavg"].counts.accuracy
    assert set(made.curves) == {"ana", "luis", "carmen", "central"}
    assert [sum(c) for c in made.class_counts.values()] == [len(np.load(p.parent / f"{p.stem}_Y.npy")) for p in own]
    assert titles(made)[0].startswith("The merge")
    assert "The members share a start" in titles(made)
    assert Comparison.load(tmp_path / "c") == made
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "Ours" in page
    lines = (tmp_path / "c" / "report.csv").read_text(encoding="utf-8").splitlines()
    assert {row["name"] for row in csv.DictReader(lines)} == set(rows)


def test_the_numbers_are_those_of_each_model_alone(trained):
    made = {row.name: row for row in run(trained.shared, methods=["fedavg", "ensemble"]).rows}
    total = 0
    for path in trained.shared:
        model = io.load(path)
        with torch.no_grad():
            logits = model.logits(torch.from_numpy(X.x.astype(np.float32) / 16))
        assert made[path.stem].counts.accuracy == Counts.of(logits, X.y).accuracy
        total = total + logits.softmax(1)
    expected = Counts.of(total / 3, X.y, probabilities=True)
    assert made["ensemble"].counts.loss == pytest.approx(expected.loss)
    assert (made["ensemble"].counts.confusion == expected.confusion).all()


def test_different_starts_are_a_problem_that_comes_first(trained):
    made = run(trained.different, methods=["fedavg", "median"])
    assert made.findings[0].level == "problem"
    assert "no shared start; aligned it reaches" in made.findings[0].title
    assert made.findings[0].command.startswith("fedloom merge")
    assert sum(f.level == "problem" for f in made.findings) == 1


def test_methods_that_cannot_be_applied_say_why(trained, tmp_path):
    paths = [shutil.copy(p, tmp_path) for p in trained.shared]
    refused = run(paths, methods=None).refused
    assert set(refused) == {"fednova", "fedavgm", "fedadagrad", "fedadam", "fedyogi"}
    assert "pass it as --start" in refused["fedadam"]
    assert "local steps" in refused["fednova"]
    start = trained.parts / "ana" / "start.keras"
    assert set(run(paths, methods=None, start=start).refused) == {"fednova"}


def test_the_start_is_found_beside_the_members_also_after_rounds(team):
    for name in ("ana", "luis", "carmen"):
        (team.parts / name / "start_curves.txt").write_text("no model")
    (team.parts / "luis" / "start_old.keras").write_bytes(b"damaged")
    assert run(team.shared, methods=["fedadam"]).refused == {}
    next_round(team.parts)
    assert run(team.shared, methods=["fedadam"]).refused == {}
    second = [train(p.parent, 1).path for p in team.shared]
    next_round(team.parts)
    assert run(second, methods=["fedadam"]).refused == {}


def test_a_wrong_start_is_refused(trained, tmp_path):
    other = io.save(io.from_config(zoo.config("mlp", (8, 8), 10)), tmp_path / "other.keras")
    with pytest.raises(ArchitectureError, match=r"other\.keras does not fit"):
        run(trained.shared, start=other)


def test_skewed_parts_are_explained(tmp_path):
    parts = split("digits", 3, scheme="labels", options={"per_client": 4}, out=tmp_path / "p", model="2nn").out
    paths = [train(parts / f"client-{i}", 6, lr=3e-3, batch_size=16).path for i in (1, 2, 3)]
    made = run(paths)
    skewed = next(f for f in made.findings if f.title == "The members' parts are skewed")
    assert "of the 10 classes" in skewed.text
    assert not any("weaker" in t for t in titles(made))


def test_a_member_on_another_scale_is_detected_and_the_others_are_not_judged_by_it(trained, tmp_path):
    model = io.load(trained.shared[0])
    with torch.no_grad():
        dict(model.module.named_parameters())["0_dense.weight"] /= 255
    foreign = io.save(model, tmp_path / "foreign.keras")
    made = run([foreign, *trained.shared[1:]])
    assert "foreign expects inputs from 0 to 255" in titles(made)
    accuracy = {row.name: row.counts.accuracy for row in made.rows}
    assert accuracy["foreign"] == run(trained.shared[:1]).rows[0].counts.accuracy
    vectors = [model.vector(), *[io.load(p).vector() for p in trained.shared[1:]]]
    with torch.no_grad():
        logits = model.load(torch.stack(vectors).mean(0)).logits(torch.from_numpy(X.x.astype(np.float32) / 16))
    assert accuracy["fedavg"] == Counts.of(logits, X.y).accuracy


def test_a_weak_member_a_long_one_and_a_copy_are_said(team):
    model = io.load(team.shared[0])
    io.save(model.load(model.vector() * 0.3), team.shared[0])
    twin = shutil.copy(team.shared[1], team.parts / "twin.keras")
    record = sidecar.read(team.shared[2])[0]
    sidecar.write(team.shared[2], replace(record, steps=record.steps * 5))
    weak = io.load(team.shared[0])
    torch.manual_seed(0)
    io.save(weak.load(weak.vector() + 0.05 * torch.randn(weak.layout.size)), team.shared[0])
    said = titles(run([*team.shared, twin]))
    assert "ana is much weaker than the others" in said
    assert "The members took different numbers of steps" in said
    assert "Two files are the same model" in said


def test_different_architectures_are_evaluated_but_not_merged(trained, tmp_path):
    other = io.from_config(zoo.config("mlp", (8, 8), 10))
    io.initialize(other, 0)
    path = io.save(other, tmp_path / "other.keras")
    made = run([*trained.shared, path], methods=["fedavg", "ensemble"])
    assert [row.name for row in made.rows] == ["ana", "luis", "carmen", "other", "ensemble"]
    assert made.findings[0].title == "These files are not of one architecture"
    assert "has units 200" in made.refused["fedavg"]


def test_other_classes_are_refused(trained, tmp_path):
    other = io.save(io.from_config(zoo.config("2nn", (8, 8), 7)), tmp_path / "other.keras")
    with pytest.raises(ModelError, match=r"other\.keras has 7 classes where the first model has 10"):
        run([*trained.shared, other])
    with pytest.raises(DataError, match="lies outside the model's 7 classes"):
        run([other])


def test_a_test_set_with_fewer_classes(trained, tmp_path):
    few = X.y < 4
    np.save(tmp_path / "x.npy", X.x[few])
    np.save(tmp_path / "y.npy", X.y[few])
    made = run(trained.shared, f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}")
    assert len(made.class_names) == 10
    assert made.rows[0].counts.n == few.sum()
    assert made.rows[0].counts.accuracy > 0.8


def test_data_of_another_shape_is_refused(trained):
    with pytest.raises(DataError, match=r"samples of shape \(4, 4\) do not fit a model that takes \(8, 8\)"):
        run(trained.shared, replace(X, x=X.x[:, ::2, ::2]))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"methods": ["fedavg", "medain"]}, UsageError, "did you mean 'median'"),
        ({"data": "digitz"}, UsageError, "did you mean 'digits'"),
        ({"models": ["nope.keras"]}, DataError, r"nope\.keras: no such file"),
        ({"central": "nowhere"}, DataError, r"nowhere: holds no manifest\.json"),
        ({"device_name": "cuad"}, UsageError, "device 'cuad'"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(trained, tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        run(**{"models": trained.shared, "out": tmp_path / "c", **given})
    assert not (tmp_path / "c").exists()


def test_merged_files_alone_are_no_members(trained, tmp_path):
    made = merge(trained.shared, out=tmp_path / "g.keras")
    with pytest.raises(UsageError, match="every file is a merged model already"):
        run([made.out])


def test_nan_and_bare_arrays_are_refused(team, tmp_path):
    model = io.load(team.shared[1])
    io.save(model.load(model.vector() * np.nan), team.shared[1])
    with pytest.raises(MergeError, match=r"luis\.keras: array '0_dense\.weight'"):
        run(team.shared)
    torch.save({"w": torch.ones(3)}, tmp_path / "bare.pt")
    with pytest.raises(ModelError, match=r"evaluating .*bare\.pt needs the model's code"):
        run([tmp_path / "bare.pt"])


def test_central_is_trained_once_and_taken_up_after_an_interruption(team, tmp_path, monkeypatch):
    epochs, whole = [], Trainer.run_epoch

    def counted(self, on_batch=None):
        if stop and len(epochs) == stop:
            raise KeyboardInterrupt
        epochs.append(self.epoch + 1)
        return whole(self, on_batch)

    monkeypatch.setattr(Trainer, "run_epoch", counted)
    given = {"central": team.parts, "out": tmp_path / "c"}
    stop = 2
    with pytest.raises(KeyboardInterrupt):
        run(team.shared, **given)
    assert not (tmp_path / "c" / "report.html").exists()
    stop = 0
    made = run(team.shared, **given)
    assert epochs == [1, 2, 3, 4]
    again = run(team.shared, **given)
    assert epochs == [1, 2, 3, 4]
    assert again.of_kind("central")[0].counts.accuracy == made.of_kind("central")[0].counts.accuracy
    assert len(again.curves["central"]) == 4
    run(team.shared, central_epochs=5, **given)
    assert len(epochs) == 9


def test_central_trains_as_long_as_the_members_in_all_rounds(team, tmp_path):
    next_round(team.parts)
    second = [train(p.parent, 2, batch_size=64).path for p in team.shared]
    made = run(second, central=team.parts, out=tmp_path / "c")
    assert made.of_kind("central")[0].note == "all samples, 4 epochs of adam"
    assert files.read_json(tmp_path / "c" / "central.json")["local"]["batch_size"] == 64


def test_without_out_nothing_is_written(team, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = sorted(team.parts.rglob("*"))
    made = run(team.shared, central=team.parts, central_epochs=1)
    assert made.of_kind("central")
    assert sorted(team.parts.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["team"]


def test_central_needs_its_folder_whole(team):
    (team.parts / "luis" / "luis_X.npy").unlink()
    with pytest.raises(DataError, match=r"luis_X\.npy: no such file"):
        central.train_central(team.parts, [], team.parts, progress=False)
