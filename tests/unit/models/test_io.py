"""Loading and saving: one model in every format, nothing run that the caller did not name, differences named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris

from fedloom.data.dataset import Dataset
from fedloom.errors import ArchitectureError, DataError, ModelError, UsageError
from fedloom.models import io, sidecar, torch_files, zoo
from fedloom.models.architecture import Architecture
from fedloom.models.ensemble import ensemble
from fedloom.models.model import Model
from fedloom.models.sidecar import Sidecar

DIGITS = Dataset.of(load_digits().images.astype(np.uint8), load_digits().target, name="digits")
NET = """
import pathlib
pathlib.Path(__file__).with_suffix(".ran").touch()
from torch import nn


def make(n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, n_classes))
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:make"


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".safetensors", ".pt", ".pth"])
def test_a_zoo_model_survives_every_format(tmp_path, suffix):
    model = io.create("lenet", DIGITS, seed=2)
    path = io.save(model, tmp_path / f"m{suffix}")
    back = io.load(path)
    assert torch.equal(back.vector(), model.vector())
    assert io.difference(back, model) is None
    assert back.n_classes == 10
    x = torch.rand(3, *model.input_shape)
    torch.testing.assert_close(back.logits(x), model.logits(x))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_factorys_model_is_bare_until_the_caller_names_its_code(tmp_path, net, suffix):
    model = io.create(net, DIGITS, seed=2)
    path = io.save(model, tmp_path / f"m{suffix}")
    ran = tmp_path / "net.ran"
    ran.unlink()
    bare = io.load(path)
    assert not ran.exists(), "loading a file must not run the code that its description names"
    with pytest.raises(ModelError, match=r"needs the model's code.*pass --model \(.*net.py:make\)"):
        bare.require_runnable("evaluating it")
    with pytest.raises(ModelError, match="pass --model"):
        bare.logits(torch.zeros(1, 8, 8))
    again = io.load(io.save(bare, tmp_path / f"again{suffix}"), net)
    assert torch.equal(again.vector(), model.vector())
    assert again.input_shape == model.input_shape
    assert ran.exists()


def test_a_keras_file_cannot_hold_a_pytorch_model(tmp_path, net):
    with pytest.raises(ModelError, match=r"choose \.pt or \.safetensors"):
        io.save(io.create(net, DIGITS), tmp_path / "m.keras")
    assert not (tmp_path / "m.keras").exists()


def test_a_foreign_state_dict_needs_to_know_its_data(tmp_path, net):
    model = io.create(net, DIGITS, seed=4)
    torch.save(model.module.state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(UsageError, match="neither the file nor a sidecar tells the input shape"):
        io.load(tmp_path / "foreign.pt", net)
    assert torch.equal(io.load(tmp_path / "foreign.pt", net, DIGITS).vector(), model.vector())


def test_half_precision_and_counters_come_back_as_they_were(tmp_path):
    state = {
        "w": torch.randn(3, 4).half(),
        "bn.running_mean": torch.randn(3),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    torch.save(state, tmp_path / "m.pt")
    model = io.load(tmp_path / "m.pt")
    assert model.layout.n_trainable == 1
    back = torch.load(io.save(model, tmp_path / "n.pt"), weights_only=True)
    assert {k: v.dtype for k, v in back.items()} == {k: v.dtype for k, v in state.items()}
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_another_models_arrays_are_refused_by_name(tmp_path, net):
    other = {"1.weight": torch.zeros(5, 64), "1.bias": torch.zeros(5)}
    torch.save(other, tmp_path / "m.pt")
    with pytest.raises(
        ArchitectureError, match=r"m\.pt does not fit the model: array '2.weight' is no such array in the file"
    ):
        io.load(tmp_path / "m.pt", net, DIGITS)


@pytest.mark.parametrize(
    ("name", "words"),
    [("m.kears", "unknown model format '.kears'"), ("m", "unknown model format"), ("m.keras", "no such file")],
)
def test_bad_paths_are_named(tmp_path, name, words):
    with pytest.raises((ModelError, UsageError), match=words):
        io.load(tmp_path / name)


def test_a_truncated_file_is_named(tmp_path):
    path = io.save(io.create("2nn", DIGITS), tmp_path / "m.keras")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"m\.keras"):
        io.load(path)


def test_architectures_differ_by_the_first_thing():
    base = io.create("2nn", DIGITS)
    assert "units" in (io.difference(base, io.from_config(zoo.config("mlp", (8, 8), 10))) or "").lower()
    assert io.difference(base, io.create("2nn", DIGITS, seed=9)) is None


def test_fresh_weights_reach_every_parameter_of_a_factorys_model(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.w = nn.Parameter(torch.randn(10, 64))\n\n"
        "    def forward(self, x):\n        return x.flatten(1) @ self.w.T\n"
    )
    model = io.create(f"{tmp_path / 'net.py'}:Net", DIGITS, seed=1)
    start = model.vector()
    io.initialize(model, 1, "ana")
    assert (model.vector() != start).all()


def test_fresh_weights_depend_on_seed_and_path_alone(net):
    for reference in ("2nn", net):
        a, b, c = (io.create(reference, DIGITS, seed=1) for _ in range(3))
        io.initialize(a, 5, "ana")
        io.initialize(b, 5, "ana")
        io.initialize(c, 5, "luis")
        assert torch.equal(a.vector(), b.vector())
        assert not torch.equal(a.vector(), c.vector())


def test_a_model_must_fit_the_data(tmp_path):
    iris = Dataset.of(load_iris().data, load_iris().target, name="iris")
    path = io.save(io.create("2nn", DIGITS), tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"takes samples of shape \(8, 8\), those of iris are \(4,\)"):
        io.create(str(path), iris)


def test_a_model_that_rescales_expects_raw_inputs():
    config = zoo.config("2nn", (8, 8), 10)
    layer = {
        "class_name": "Rescaling",
        "module": "keras.layers",
        "config": {"name": "r", "scale": 1 / 255, "offset": 0.0},
    }
    config["config"]["layers"].insert(1, layer)
    assert io.from_config(config).input_high == 255.0
    assert io.from_config(zoo.config("2nn", (8, 8), 10)).input_high is None


def test_a_sidecar_belongs_to_its_file_alone(tmp_path):
    path = io.save(io.create("2nn", DIGITS), tmp_path / "ana.keras")
    sidecar.write(path, Sidecar(client="ana", samples=7, history=({"epoch": 1, "loss": 0.5},)))
    found, reason = sidecar.read(path)
    assert (found.client, found.samples, found.history[0]["loss"], reason) == ("ana", 7, 0.5, "")
    io.save(io.create("2nn", DIGITS, seed=8), path)
    assert sidecar.read(path) == (None, "ana.json belongs to another version of ana.keras: its checksum differs")
    (tmp_path / "ana.json").write_text(json.dumps({"name": "a file of somebody else"}))
    assert sidecar.read(path) == (None, "ana.json is not a sidecar of fedloom")


def test_an_ensemble_is_the_mean_of_probabilities_and_survives_its_file(tmp_path):
    members = [io.create("2nn", DIGITS, seed=s) for s in range(3)]
    x = torch.rand(6, 8, 8)
    with torch.no_grad():
        expected = torch.stack([m.logits(x).softmax(1) for m in members]).mean(0)
        back = io.load(io.save(ensemble(members), tmp_path / "e.keras"))
        torch.testing.assert_close(back.logits(x).softmax(1), expected)


def test_an_ensemble_of_pytorch_models_survives_its_file(tmp_path, net):
    members = [io.create(net, DIGITS, seed=s) for s in range(3)]
    x = torch.rand(6, 8, 8)
    with torch.no_grad():
        expected = torch.stack([m.logits(x).softmax(1) for m in members]).mean(0)
        back = io.load(io.save(ensemble(members), tmp_path / "e.pt"), net)
        torch.testing.assert_close(back.logits(x).softmax(1), expected)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("x", "no JSON object"),
        ({"architecture": 5}, "no JSON object"),
        ({"architecture": {"kind": "keras"}}, "'config' is None"),
        ({"architecture": {"kind": "zzz"}}, "unknown kind of model 'zzz'"),
        ({"architecture": {"kind": "torch", "factory": "os:system", "arguments": []}}, "'arguments'"),
        ({"architecture": {"kind": "torch", "factory": "a:b", "arguments": {"members": 10**9}}}, "members"),
        ({"input_high": "255"}, "input_high"),
        ({"input_high": -1}, "input_high"),
        ({"input_shape": [10**12]}, "input_shape"),
        ({"n_classes": "3"}, "n_classes"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_damaged_description_is_one_line(tmp_path, said, words):
    model = io.create("2nn", DIGITS)
    arrays = model.module.state_dict()
    torch_files.write_state(tmp_path / "a.pt", arrays, {io.METADATA: json.dumps(said)})
    path = io.save(model, tmp_path / "b.keras")
    sidecar.write(path, sidecar.Sidecar(model=said))
    for file in (tmp_path / "a.pt", path):
        with pytest.raises((ModelError, DataError), match=words if file.suffix == ".pt" else "damaged") as info:
            io.load(file)
        assert str(tmp_path) in str(info.value)


def test_members_that_write_into_their_inputs_or_give_probabilities_fit_an_ensemble():
    class Halved(torch.nn.Module):
        def forward(self, x):
            return x.mul_(0.5)

    linear = torch.nn.Linear(4, 3)
    modules = [torch.nn.Sequential(Halved(), linear), torch.nn.Sequential(Halved(), linear, torch.nn.Softmax(1))]
    pairs = zip(modules, ("logits", "probabilities"), strict=True)
    members = [Model(m, Architecture("torch", factory="a:b"), (4,), 3, output=kind) for m, kind in pairs]
    x = torch.rand(5, 4)
    with torch.no_grad():
        expected = linear(x / 2).softmax(1)
        torch.testing.assert_close(ensemble(members).logits(x).softmax(1), expected)


def test_a_description_too_deep_to_read_is_one_line(tmp_path):
    torch_files.write_state(tmp_path / "a.pt", {"w": torch.ones(2)}, {io.METADATA: "[" * 100_000})
    with pytest.raises(ModelError, match="description is damaged"):
        io.load(tmp_path / "a.pt")
