"""Merging files of members that were trained apart: aligned by default, healed where that is possible."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedloom.errors import ArchitectureError, DataError, MergeError, ModelError, UsageError
from fedloom.models import io, sidecar, zoo
from fedloom.models.keras_backend import import_keras
from fedloom.offline.merge import merge
from fedloom.offline.next_round import next_round
from fedloom.training.evaluate import evaluate
from fedloom.training.shard import Shard

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, when it saves

QUIET = {"progress": False}


def embedded_digits():
    """Return 8x8 images from 0 to 16 and their labels."""
    x, y = load_digits(return_X_y=True)
    return x.reshape(-1, 8, 8).astype(np.float32), y


@pytest.fixture(scope="module")
def test_set(trained):
    x, y = (np.load(trained.parts / "ana" / f"{name}_test_fed.npy") for name in "xy")
    return x, y


@pytest.fixture
def accuracy(test_set):
    from fedloom.data.dataset import Dataset

    def measure(model) -> float:
        data = Dataset.of(*test_set, high=16.0)
        return evaluate(model, Shard.of(data, model)).accuracy

    return measure


def titles(made) -> list[str]:
    return [f.title for f in made.findings]


def test_members_apart_are_aligned_by_default_and_the_merge_is_worth_having(trained, tmp_path, accuracy):
    plain = merge(trained.different, align="none", **QUIET)
    made = merge(trained.different, out=tmp_path / "g.keras", **QUIET)
    alone = [accuracy(io.load(p)) for p in trained.different]
    assert accuracy(plain.model) < min(alone) - 0.1 < accuracy(made.model)
    assert accuracy(io.load(tmp_path / "g.keras")) == accuracy(made.model)
    assert titles(made)[:2] == ["The members do not share a start", "The members were aligned before merging"]
    assert sum(made.weights) == pytest.approx(1)
    kept = json.loads((tmp_path / "g.json").read_text())["merge"]["align"]
    assert kept["chosen"] == made.aligned.fused.chosen
    assert kept["candidates"]["plain mean"] < kept["candidates"][kept["chosen"]]


def test_a_shared_start_is_averaged_as_it_is(trained):
    made, plain = merge(trained.shared, **QUIET), merge(trained.shared, align="none", **QUIET)
    assert made.aligned is None
    assert torch.equal(made.model.vector(), plain.model.vector())


def test_the_same_seed_gives_the_same_bits_and_the_files_stay(trained):
    before = [p.read_bytes() for p in trained.different]
    one, two = (merge(trained.different, seed=4, **QUIET) for _ in range(2))
    assert torch.equal(one.model.vector(), two.model.vector())
    assert [p.read_bytes() for p in trained.different] == before


@pytest.mark.parametrize("method", ["median", "trimmed-mean", "weighted"])
def test_a_rule_merges_aligned_members(trained, accuracy, method):
    weights = [0.5, 0.25, 0.25] if method == "weighted" else None
    made = merge(trained.different, method, weights=weights, **QUIET)
    assert accuracy(made.model) > 0.7
    assert made.weights == (tuple(weights) if weights else ())


def test_unlabelled_and_labelled_inputs_are_used(trained, test_set, tmp_path, accuracy):
    x, y = test_set
    np.save(tmp_path / "x.npy", x[:200])
    np.save(tmp_path / "y.npy", y[:200])
    free = merge(trained.different, unlabelled=f"{tmp_path / 'x.npy'}:high=16", **QUIET)
    told = merge(trained.different, data=f"{tmp_path / 'x.npy'},{tmp_path / 'y.npy'}:high=16", **QUIET)
    assert "unlabelled" in free.aligned.fused.probe
    assert told.aligned.fused.judge.startswith("accuracy")
    alone = [accuracy(io.load(p)) for p in trained.different]
    assert min(accuracy(free.model), accuracy(told.model)) > np.mean(alone) - 0.03


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"align": "yes"}, UsageError, "unknown align 'yes'"),
        ({"effort": "bst"}, UsageError, "did you mean 'best'"),
        ({"align": "always", "method": "fedavgm"}, UsageError, "'fedavgm' starts from the model"),
        ({"unlabelled": "nope.npy"}, DataError, "nope.npy: no such file"),
    ],
)
def test_bad_wishes_are_one_line(trained, given, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        merge(trained.different, given.pop("method", "fedavg"), **given, **QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "scale", "words"), [((9, 9), 16, "(9, 9)"), ((8, 8), 1000, "between 0 and 16")])
def test_unlabelled_inputs_of_another_shape_or_scale_are_refused(trained, tmp_path, shape, scale, words):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, *shape)) * scale)
    with pytest.raises(DataError, match=re.escape(words)):
        merge(trained.different, unlabelled=f"{tmp_path / 'x.npy'}:high=16", **QUIET)


def test_always_needs_two_members(trained):
    assert merge(trained.different[:1], **QUIET).aligned is None
    with pytest.raises(MergeError, match="at least two models, 1 is given"):
        merge(trained.different[:1], align="always", **QUIET)
    made = merge(trained.shared, align="always", **QUIET)
    assert made.aligned is not None


def test_a_broken_member_is_left_out(team, accuracy):
    model = io.load(team.different[1])
    vector = model.vector()
    vector[3] = float("nan")
    io.save(model.load(vector), team.different[1])
    made = merge(team.different, **QUIET)
    assert "luis is left out" in titles(made)
    assert [p.endswith("luis.keras") for p in made.members] == [False, False]
    assert accuracy(made.model) > 0.8
    shared = io.load(team.shared[0])
    io.save(shared.load(torch.full((shared.layout.size,), float("inf"))), team.shared[0])
    made = merge(team.shared, **QUIET)
    assert "ana is left out" in titles(made)
    expected = merge(team.shared[1:], align="none", **QUIET)
    assert torch.equal(made.model.vector(), expected.model.vector())


def test_too_few_whole_members_are_refused(team):
    for path in team.different[:2]:
        model = io.load(path)
        io.save(model.load(torch.full((model.layout.size,), float("nan"))), path)
    with pytest.raises(MergeError, match="NaN"):
        merge(team.different, **QUIET)


def test_members_of_different_widths_are_merged(trained, tmp_path, accuracy):
    keras = import_keras()
    x, y = embedded_digits()
    paths = []
    for i, units in enumerate((48, 64, 40)):
        keras.utils.set_random_seed(i)
        layers = [keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(units, "relu")]
        net = keras.Sequential([*layers, keras.layers.Dense(10, "softmax")])
        net.compile("adam", "sparse_categorical_crossentropy")
        net.optimizer.learning_rate = 3e-3
        net.fit(x[i:1500:3] / 16, y[i:1500:3], epochs=12, verbose=0)
        net.save(tmp_path / f"{i}.keras")
        paths.append(tmp_path / f"{i}.keras")
    made = merge(paths, out=tmp_path / "g.keras", **QUIET)
    alone = [accuracy(io.load(p)) for p in paths]
    assert accuracy(made.model) > np.mean(alone) - 0.05
    assert "The members have different widths" in titles(made)
    assert made.model.layout.shapes[0] == (64, 64)
    with pytest.raises(ArchitectureError, match=r"1\.keras does not fit"):
        merge(paths, align="none", **QUIET)


def test_other_architectures_are_still_refused_by_layer(trained, tmp_path):
    deeper = io.from_config(zoo.config("mlp", (8, 8), 10))
    io.initialize(deeper, 0)
    io.save(deeper, tmp_path / "deep.keras")
    with pytest.raises(ArchitectureError, match="does not fit"):
        merge([*trained.different, tmp_path / "deep.keras"], **QUIET)


def test_a_model_that_cannot_be_looked_into_is_averaged_with_a_problem(tmp_path):
    keras = import_keras()
    for i in range(2):
        keras.utils.set_random_seed(i)
        net = keras.Sequential([keras.Input((8, 8)), keras.layers.LSTM(12), keras.layers.Dense(10)])
        net.save(tmp_path / f"{i}.keras")
    made = merge([tmp_path / "0.keras", tmp_path / "1.keras"], **QUIET)
    assert made.aligned is None
    problem = next(f for f in made.findings if f.title == "The members could not be aligned")
    assert problem.level == "problem"
    with pytest.raises(ModelError, match="see inside the model"):
        merge([tmp_path / "0.keras", tmp_path / "1.keras"], align="always", **QUIET)


def test_averaged_batchnorm_statistics_are_offered_and_set_anew(tmp_path):
    x, _ = embedded_digits()
    np.save(tmp_path / "x.npy", x[:300])
    model = io.from_config(zoo.config("mlp", (8, 8), 10))
    model.input_high = 1.0
    io.initialize(model, 1)
    start = model.vector()
    chance = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{i}.keras" for i in range(2)]
    for path in paths:
        io.save(model.load(start + 0.01 * torch.rand(len(start), generator=chance)), path)
    offered = merge(paths, **QUIET)
    assert "The BatchNorm statistics were averaged" in titles(offered)
    made = merge(paths, unlabelled=f"{tmp_path / 'x.npy'}:high=16", **QUIET)
    assert "The BatchNorm statistics were set anew" in titles(made)
    first = made.model.module.by_path["dense"]
    flat = torch.from_numpy(x[:300].reshape(300, -1) / 16).float()
    norm = made.model.module.by_path["batchnormalization"]
    torch.testing.assert_close(norm.running_mean, first(flat).mean(0).detach(), atol=1e-4, rtol=1e-4)
    assert torch.equal(made.model.vector()[: model.layout.trainable], offered.model.vector()[: model.layout.trainable])


def test_a_warm_start_is_a_merge_that_is_handed_out(team, accuracy):
    made = merge(team.different, out=team.parts.parent / "warm.keras", **QUIET)
    following = next_round(team.parts, [made.out])
    start = io.load(following.folders[0] / f"start_{following.round:03d}.keras")
    assert torch.equal(start.vector(), made.model.vector())
    assert accuracy(start) > 0.8


def test_members_of_another_scale_on_record_are_brought_into_line(team, accuracy):
    path = team.different[0]
    known, _ = sidecar.read(path)
    model = io.load(path)
    views = model.layout.unpack(vector := model.vector())
    views[model.layout.names[0]].div_(255)
    io.save(model.load(vector), path)
    sidecar.write(path, replace(known, model={**known.model, "input_high": 255.0}))
    made = merge(team.different, **QUIET)
    assert any("takes inputs from 0 to 255" in title for title in titles(made))
    assert "The members take inputs of different scales" not in titles(made)
    assert accuracy(made.model) > 0.7


def test_the_sidecar_names_the_members_that_were_used(team, tmp_path):
    model = io.load(team.different[1])
    io.save(model.load(torch.zeros(model.layout.size)), team.different[1])
    made = merge(team.different, out=tmp_path / "g.keras", align="always", **QUIET)
    assert made.aligned.left_out == ("luis",)
    kept = json.loads((tmp_path / "g.json").read_text())["merge"]
    assert kept["members"] == ["ana.keras", "carmen.keras"]
    assert len(kept["weights"]) == len(made.members) == 2
