from __future__ import annotations

import shlex
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedloom import server_opt
from fedloom.data import load_evaluation
from fedloom.errors import ArchitectureError, DataError, MergeError, ModelError, UsageError
from fedloom.merging import METHODS
from fedloom.models import io, sidecar, zoo
from fedloom.models.keras_backend import import_keras
from fedloom.models.model import Model
from fedloom.offline.merge import merge
from fedloom.offline.server_state import state_path
from fedloom.training.evaluate import evaluate
from fedloom.training.shard import Shard

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, when it saves

FIXTURES = Path(__file__).parents[2] / "fixtures" / "keras"
NET = """
from torch import nn


def make(n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, n_classes))
"""


def keras_weights(path):
    return import_keras().saving.load_model(path).get_weights()


def titles(made):
    return [f.title for f in made.findings]


def text(made):
    return " ".join(f"{f.title}. {f.text}" for f in made.findings)


def samples(path):
    return sidecar.read(path)[0].samples


@pytest.fixture
def zoo_files(tmp_path):
    """Write n untrained files of one model, without sidecars."""

    def make(n, suffix=".keras", hidden="2nn", **change):
        paths = []
        for i in range(n):
            model = replace(io.from_config(zoo.config(hidden, (8, 8), 10)), **change)
            io.initialize(model, i)
            paths.append(io.save(model, tmp_path / f"{hidden}_{i}{suffix}"))
        return paths

    return make


def resample(path, samples, **change):
    sidecar.write(path, replace(sidecar.read(path)[0], samples=samples, **change))


def test_keras_sees_the_weighted_mean_of_the_files_arrays(team, tmp_path):
    for path, n in zip(team.shared, (100, 300, 600), strict=True):
        resample(path, n)
    made = merge(team.shared, out=tmp_path / "g.keras")
    assert made.weights == (0.1, 0.3, 0.6)
    columns = zip(*[keras_weights(p) for p in team.shared], strict=True)
    for mine, theirs in zip(keras_weights(tmp_path / "g.keras"), columns, strict=True):
        np.testing.assert_allclose(mine, np.average(theirs, axis=0, weights=[1, 3, 6]), atol=1e-6)
    record, reason = sidecar.read(tmp_path / "g.keras")
    assert reason == ""
    assert record.samples == 1000
    assert record.merge["members"] == ["ana.keras", "luis.keras", "carmen.keras"]
    assert titles(made) == ["The members share a start"]


def test_without_sidecars_the_weights_are_uniform_and_it_is_said(trained, tmp_path):
    paths = [shutil.copy(p, tmp_path) for p in trained.shared]
    made = merge(paths, out=tmp_path / "g.keras")
    assert made.weights == pytest.approx([1 / 3] * 3)
    assert "Uniform weights: no sidecar tells the number of samples of" in text(made)
    assert "The models share a start: 100 %" in text(made)


def test_one_file_and_equal_files_come_out_as_they_are(trained, team, tmp_path):
    ana = io.load(trained.shared[0]).vector()
    assert torch.equal(merge([trained.shared[0]], out=tmp_path / "one.keras").model.vector(), ana)
    copy = shutil.copy(trained.shared[0], tmp_path / "copy.keras")
    made = merge([trained.shared[0], copy])
    torch.testing.assert_close(made.model.vector(), ana)
    assert made.out is None
    assert "Two files are the same model" in titles(made)


def test_a_file_that_is_named_twice_counts_once(trained, monkeypatch):
    ana = trained.shared[0]
    monkeypatch.chdir(ana.parent)
    assert merge([ana, ana, "ana.keras", ana.parent]).members == (str(ana),)


def test_patterns_leave_shared_starts_out_also_when_the_shell_expanded_them(trained):
    pattern = str(trained.parts / "*" / "*.keras")
    expanded = sorted(trained.parts.glob("*/*.keras"))
    assert len(expanded) == 6
    members = merge([pattern]).members
    assert len(members) == 3
    assert merge(expanded).members == members
    assert sorted(merge([trained.parts / "*"]).members) == sorted(members)


def test_a_stale_sidecar_is_passed_over_and_said(team):
    shutil.copy(team.shared[1], team.shared[0])
    made = merge(team.shared)
    assert "A sidecar is passed over" in titles(made)
    assert "ana.json belongs to another version of ana.keras: its checksum differs" in text(made)
    assert made.weights == pytest.approx([1 / 3] * 3)


def test_files_of_several_keras_versions_and_layer_names_merge(tmp_path):
    paths = [FIXTURES / v / f"cnn{kind}" for v in ("tf214", "tf215") for kind in (".keras", ".windows.keras", ".h5")]
    keras = import_keras()
    model = io.load(paths[0])
    layers = model.architecture.config["config"]["layers"]
    renamed = {**model.architecture.config["config"], "layers": [rename(layer) for layer in layers]}
    other = io.from_config({**model.architecture.config, "config": renamed}).load(model.vector() + 6)
    paths.append(io.save(other, tmp_path / "renamed.keras"))
    made = merge(paths, out=tmp_path / "g.keras")
    mean = torch.stack([io.load(p).vector() for p in paths]).double().mean(0)
    np.testing.assert_allclose(made.model.vector(), mean, atol=1e-5)
    x = np.load(FIXTURES / "tf214" / "cnn.npz")["x"]
    theirs = keras.saving.load_model(tmp_path / "g.keras")(x).detach().numpy()
    np.testing.assert_allclose(made.model.logits(torch.from_numpy(x)).softmax(1).detach(), theirs, atol=1e-5)


def rename(layer):
    return {**layer, "config": {**layer["config"], "name": f"other_{layer['config']['name']}"}}


def test_formats_mix(trained, tmp_path):
    models = [io.load(p) for p in trained.shared]
    plain = tmp_path / "plain.pt"
    torch.save(dict(models[2].module.state_dict()), plain)
    mixed = [trained.shared[0], io.save(models[1], tmp_path / "b.safetensors"), plain]
    mean = torch.stack([m.vector() for m in models]).double().mean(0).float()
    for out in ("g.keras", "g.pt", "g.h5", "g.safetensors"):
        merge(mixed, out=tmp_path / out)
        torch.testing.assert_close(io.load(tmp_path / out).vector(), mean, atol=1e-6, rtol=0)


def test_bare_state_dicts_keep_dtypes_and_integers(tmp_path):
    for i in range(2):
        half = torch.full((3, 2), float(i), dtype=torch.float16)
        state = {"w": half, "b": torch.ones(3), "n.num_batches_tracked": torch.tensor(7 + i), "n.running_var": half[0]}
        torch.save(state, tmp_path / f"{i}.pt")
    merge([tmp_path / "*.pt"], out=tmp_path / "g.pt")
    merged = torch.load(tmp_path / "g.pt", weights_only=True)
    assert {k: v.dtype for k, v in merged.items()} == {k: v.dtype for k, v in state.items()}
    assert merged["w"].unique().tolist() == [0.5]
    assert merged["n.running_var"].tolist() == [0.5, 0.5]
    assert merged["n.num_batches_tracked"].item() in (7, 8)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_model_that_keras_loads(trained, tmp_path, method):
    given = {"weights": [3, 2, 1]} if method == "weighted" else {}
    if METHODS[method].family in ("server", "fednova"):
        given["previous"] = trained.parts / "ana" / "start.keras"
    made = merge(trained.shared, method, out=tmp_path / "g.keras", **given)
    x = load_evaluation("digits").x[:20].astype(np.float32) / 16
    theirs = import_keras().saving.load_model(tmp_path / "g.keras")(x).detach().numpy()
    mine = made.model.logits(torch.from_numpy(x)).softmax(1).detach().numpy()
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    record = sidecar.read(tmp_path / "g.keras")[0]
    assert record.merge["method"] == method
    assert len(record.class_names) == 10
    assert method in made._repr_html_()


def test_memory_of_the_mean_does_not_grow_with_the_files(zoo_files, monkeypatch):
    living, most = [], []
    load, vector = io.load, Model.vector

    def watch(thing):
        living.append(weakref.ref(thing))
        most.append(sum(ref() is not None for ref in living))
        return thing

    monkeypatch.setattr(io, "load", lambda *given: (watch((m := load(*given)).module), m)[1])
    monkeypatch.setattr(Model, "vector", lambda self: watch(vector(self)))
    peaks = {}
    for n in (4, 12):
        most.clear()
        paths = zoo_files(n)
        merge(paths, out=paths[0].with_name("global.keras"), align="none")
        peaks[n] = max(most)
    assert peaks[4] == peaks[12] <= 6


@pytest.mark.parametrize("method", ["fedavgm", "fedadam"])
def test_successive_merges_with_previous_are_successive_steps(trained, tmp_path, method):
    start = io.load(trained.parts / "ana" / "start.keras")
    one = merge(trained.shared[:2], method, out=tmp_path / "g1.keras", previous=trained.parts / "ana" / "start.keras")
    two = merge(trained.shared, method, out=tmp_path / "g2.keras", previous=one.out)
    optimizer = server_opt.make(method, trainable=start.layout.trainable)
    w, state = start.vector(), optimizer.init(start.vector())
    for paths in (trained.shared[:2], trained.shared):
        n = torch.tensor([float(samples(p)) for p in paths], dtype=torch.float64)
        mean = ((n / n.sum()) @ torch.stack([io.load(p).vector() for p in paths]).double()).float()
        w, state = optimizer.step(state, w, mean - w)
    torch.testing.assert_close(io.load(tmp_path / "g2.keras").vector(), w, atol=1e-6, rtol=0)
    assert "no memory of earlier rounds" in text(one)
    assert "no memory of earlier rounds" not in text(two)
    assert "The members did not start from --previous" in titles(two)
    assert "The members did not start from --previous" not in titles(one)


def test_a_memory_of_another_model_is_refused_and_one_of_another_method_is_not_used(trained, tmp_path):
    start = trained.parts / "ana" / "start.keras"
    made = merge(trained.shared, "fedadam", out=tmp_path / "g.keras", previous=start)
    assert "no memory of earlier rounds" in text(merge(trained.shared, "fedavgm", previous=made.out))
    shutil.copy(trained.shared[0], made.out)
    with pytest.raises(DataError, match=r"g\.server\.safetensors belongs to another model than g\.keras"):
        merge(trained.shared, "fedadam", previous=made.out)
    merge(trained.shared, out=tmp_path / "g.keras")
    assert not state_path(tmp_path / "g.keras").exists()


def test_fednova_takes_the_steps_from_the_sidecars(team):
    start = team.parts / "ana" / "start.keras"
    steps = (10, 20, 60)
    for path, n in zip(team.shared, steps, strict=True):
        resample(path, 100, steps=n, local={"optimizer": "sgd"})
    with pytest.raises(MergeError, match=r"\(here 10 to 60\): pass --previous"):
        merge(team.shared, "fednova")
    w, x = io.load(start).vector(), [io.load(p).vector() for p in team.shared]
    merged = merge(team.shared, "fednova", previous=start).model.vector()
    by_hand = w + sum(steps) / 3 * sum((v - w) / n for v, n in zip(x, steps, strict=True)) / 3
    torch.testing.assert_close(merged, by_hand, atol=1e-5, rtol=1e-4)


def test_weights_by_accuracy_are_the_accuracies(trained):
    made = merge(trained.shared, "weighted", weights="accuracy", data="digits")
    data = load_evaluation("digits")
    models = [io.load(p) for p in trained.shared]
    hits = np.array([evaluate(m, Shard.of(data, m)).accuracy for m in models])
    np.testing.assert_allclose(made.weights, hits / hits.sum(), rtol=1e-6)


def test_whole_numbers_count_and_fractions_have_to_sum_to_one(trained):
    assert merge(trained.shared, "weighted", weights=[2, 1, 1]).weights == (0.5, 0.25, 0.25)
    assert merge(trained.shared, "weighted", weights=[0.33, 0.33, 0.33]).weights == pytest.approx([1 / 3] * 3)
    with pytest.raises(UsageError, match=r"sum to 0\.8, not to 1; in these proportions: 0\.625,0\.25,0\.125"):
        merge(trained.shared, "weighted", weights=[0.5, 0.2, 0.1])


def test_members_of_different_input_scales_are_said(team):
    record = sidecar.read(team.shared[0])[0]
    sidecar.write(team.shared[0], replace(record, model={**record.model, "input_high": 255.0}))
    assert "The members take inputs of different scales" in titles(merge(team.shared))


def test_different_starts_are_a_problem_with_a_cure(trained, tmp_path):
    found = next(f for f in merge(trained.different, align="none").findings if f.level == "problem")
    assert "3 different starts" in found.text
    assert shlex.split(found.command) == [
        *("fedloom", "next-round", f"{trained.parts}/", "--models", str(trained.different[0])),
    ]
    far = [shutil.copy(p, tmp_path) for p in trained.different]  # no folder that split made is near
    found = next(f for f in merge(far, align="none").findings if f.level == "problem")
    assert found.command == ""
    assert f"Send one file, such as {far[0]}, to everybody" in found.text


@pytest.mark.parametrize("suffix", [".keras", ".pt"])
@pytest.mark.parametrize("last", [None, "softmax"])
def test_an_ensemble_averages_probabilities(tmp_path, suffix, last):
    keras = import_keras()
    nets, paths = [], []
    for i in range(3):
        keras.utils.set_random_seed(i)
        layers = [keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(10 - i), keras.layers.ReLU()]
        nets.append(keras.Sequential([*layers, keras.layers.Dense(4, activation=last, kernel_initializer="he_normal")]))
        nets[-1].save(tmp_path / f"{i}.keras")
        paths.append(tmp_path / f"{i}.keras")
    x = np.random.default_rng(0).normal(size=(9, 8, 8)).astype(np.float32)
    outputs = [torch.from_numpy(net.predict(x, verbose=0)) for net in nets]
    expected = torch.stack([y if last else y.softmax(1) for y in outputs]).mean(0)
    merge(paths, "ensemble", out=tmp_path / f"e{suffix}")
    mine = io.load(tmp_path / f"e{suffix}").logits(torch.from_numpy(x)).softmax(1).detach()
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)
    if suffix == ".keras":
        theirs = keras.saving.load_model(tmp_path / "e.keras").predict(x, verbose=0)
        np.testing.assert_allclose(theirs, expected, atol=1e-5)


def test_an_ensemble_of_single_outputs(tmp_path):
    keras = import_keras()
    x, expected = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32), 0
    for i, last in enumerate((None, "sigmoid")):
        net = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, activation=last)])
        net.save(tmp_path / f"{i}.keras")
        y = net.predict(x, verbose=0)
        expected = expected + (y if last else 1 / (1 + np.exp(-y))) / 2
    merge([tmp_path / "?.keras"], "ensemble", out=tmp_path / "e.keras")
    np.testing.assert_allclose(keras.saving.load_model(tmp_path / "e.keras").predict(x, verbose=0), expected, atol=1e-6)


def test_an_ensemble_of_pytorch_models_travels_through_pt(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    reference, data = f"{tmp_path / 'net.py'}:make", load_evaluation("digits")
    models = [io.create(reference, data, seed=i) for i in range(3)]
    paths = [io.save(m, tmp_path / f"{i}.pt") for i, m in enumerate(models)]
    merge(paths, "ensemble", out=tmp_path / "e.pt", model=reference)
    x = torch.from_numpy(data.x[:9].astype(np.float32)).reshape(9, *models[0].input_shape)
    again = io.load(tmp_path / "e.pt", reference)
    expected = torch.stack([m.logits(x).softmax(1) for m in models]).mean(0)
    torch.testing.assert_close(again.logits(x).softmax(1), expected)
    with pytest.raises(ModelError, match="pass --model"):
        merge(paths, "ensemble")


def test_another_architecture_is_refused_with_file_layer_and_sizes(trained, zoo_files, tmp_path):
    (other,) = zoo_files(1, hidden="mlp")
    with pytest.raises(ArchitectureError) as caught:
        merge([*trained.shared, other], out=tmp_path / "g.keras")
    message = str(caught.value)
    assert str(other) in message
    assert "ana.keras" in message
    assert "'dense' (Dense) has units 200 where layer 'dense' has 512" in message
    assert not (tmp_path / "g.keras").exists()
    for i in range(2):
        torch.save({"w": torch.ones(3, 2 + i)}, tmp_path / f"{i}.pt")
    with pytest.raises(ArchitectureError, match=r"1\.pt does not fit .*0\.pt.*'w'.*\(3, 2\).*\(3, 3\)"):
        merge([tmp_path / "?.pt"])


@pytest.mark.parametrize("method", ["fedavg", "median", "ensemble", "fedadam"])
def test_nan_is_refused_with_file_and_array_and_nothing_is_written(team, tmp_path, method):
    model = io.load(team.shared[1])
    vector = model.vector()
    vector[5] = float("inf")
    io.save(model.load(vector), team.shared[1])
    with pytest.raises(MergeError, match=r"luis\.keras: array '0_dense\.weight' holds 1 NaN or infinite"):
        merge(team.shared, method, out=tmp_path / "g.keras", previous=team.parts / "ana" / "start.keras", align="none")
    assert not list(tmp_path.glob("*g.*"))


def test_a_truncated_file_is_named(team, tmp_path):
    data = team.shared[2].read_bytes()
    team.shared[2].write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"carmen\.keras"):
        merge(team.shared, out=tmp_path / "g.keras")
    assert not list(tmp_path.glob("*g.*"))


@pytest.mark.parametrize(
    ("models", "given", "error", "words"),
    [
        (["nope.keras"], {}, DataError, r"nope\.keras: no such file"),
        (["nope*.keras"], {}, DataError, "matches no file"),
        (["parts/*/*.npy"], {}, DataError, "matches nothing that is a model file"),
        (["parts"], {}, DataError, "a folder, not a model file"),
        (["parts/ana/ana_X.npy"], {}, UsageError, r"'\.npy' is no model file; known: \.keras"),
        (["parts/*/start.keras"], {}, DataError, "only shared starts"),
        (["parts/*"], {"out": "g.kera"}, UsageError, r"did you mean '\.keras'"),
        (["parts/*"], {"out": "parts/ana/ana.keras"}, UsageError, "is one of the models"),
        (["parts/*"], {"out": "parts/ana/ana.pt"}, UsageError, "would share .* sidecar"),
        (["parts/*"], {"method": "fedavgg"}, UsageError, "did you mean 'fedavg'"),
        (["parts/*"], {"weights": "size"}, UsageError, "weights 'size': give numbers"),
        (["parts/*"], {"weights": "accuracy"}, UsageError, "belongs to the method 'weighted'"),
        (["parts/*"], {"method": "weighted", "weights": "accuracy"}, UsageError, "needs --data"),
        (["parts/*"], {"method": "weighted", "weights": [0.5, 0.5]}, UsageError, "2 weights are given for 3"),
        (["parts/*"], {"method": "weighted", "weights": [0, 0, 0]}, MergeError, "are zero"),
        (["parts/*"], {"method": "weighted", "weights": [1, 1, -1]}, MergeError, r"luis\.keras is -1"),
        (["parts/*"], {"method": "ensemble", "weights": [1, 1, 1]}, UsageError, "treats its members alike"),
        (["parts/*"], {"method": "fedadam"}, MergeError, "pass --previous"),
        (["parts/*"], {"method": "fedadam", "previous": "no.keras"}, ModelError, r"no\.keras: no such file"),
    ],
)
def test_bad_input_is_named(trained, monkeypatch, models, given, error, words):
    monkeypatch.chdir(trained.parts.parent)
    before = sorted(p.name for p in trained.parts.parent.rglob("*"))
    with pytest.raises(error, match=words):
        merge(models, **given)
    assert sorted(p.name for p in trained.parts.parent.rglob("*")) == before


def test_a_previous_of_another_architecture_is_refused(trained, zoo_files):
    (other,) = zoo_files(1, hidden="mlp")
    with pytest.raises(ArchitectureError, match=r"mlp_0\.keras does not fit .*ana\.keras"):
        merge(trained.shared, "fedadam", previous=other)
