from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_iris

from fedloom import files
from fedloom.data import Dataset, load_data
from fedloom.errors import DataError, ModelError, StorageError, UsageError
from fedloom.models import io
from fedloom.offline import member
from fedloom.offline.split import split

SCHEMES = [
    ("stratified", {}),
    ("iid", {}),
    ("dirichlet", {"alpha": 0.5}),
    ("shards", {"per_client": 2}),
    ("labels", {"per_client": 3}),
    ("quantity", {"distribution": "powerlaw"}),
]


@pytest.mark.parametrize(("scheme", "options"), SCHEMES, ids=[s for s, _ in SCHEMES])
def test_every_sample_goes_to_exactly_one_member(tmp_path, scheme, options):
    made = split("digits", 4, scheme=scheme, options=options, out=tmp_path / "p", model="2nn", seed=1)
    train = load_data("digits")
    parts = [member.read(f).load(f, "train") for f in member.folders(made.out)]
    rows = np.concatenate([np.c_[p.x.reshape(len(p), -1), p.y] for p in parts])
    whole = np.c_[train.x.reshape(len(train), -1), train.y]
    assert sorted(map(bytes, rows.astype(np.uint8))) == sorted(map(bytes, whole.astype(np.uint8)))
    manifest = files.read_json(made.out / "manifest.json")
    assert manifest["scheme"] == scheme
    for row, part in zip(manifest["members"], parts, strict=True):
        assert row["class_counts"] == np.bincount(part.y, minlength=10).tolist()


def test_a_members_folder_is_complete(trained):
    folder = trained.parts / "ana"
    names = {"ana_X.npy", "ana_Y.npy", "x_test_fed.npy", "y_test_fed.npy", "start.keras", "README.md", "member.json"}
    assert names <= {p.name for p in folder.iterdir()}
    x, y = np.load(folder / "ana_X.npy"), np.load(folder / "ana_Y.npy")
    assert x.dtype == np.uint8
    assert x.shape[1:] == (8, 8)
    assert len(x) == len(y)
    readme = (folder / "README.md").read_text().splitlines()
    assert len(readme) == 3
    assert "fedloom train ana" in readme[1]
    assert (trained.parts / "class_distribution.png").read_bytes()[:4] == b"\x89PNG"
    manifest = files.read_json(trained.parts / "manifest.json")
    assert manifest["members"][0]["sha256"]["ana_X.npy"] == files.sha256(folder / "ana_X.npy")


def test_all_members_get_the_same_start_and_the_seed_decides_it(tmp_path, trained):
    starts = {files.sha256(f / "start.keras") for f in member.folders(trained.parts)}
    assert len(starts) == 1
    again = split("digits", names=["x", "y"], out=tmp_path / "again", model="2nn", seed=3)
    other = split("digits", names=["x", "y"], out=tmp_path / "other", model="2nn", seed=4)
    assert files.sha256(again.out / "x" / "start.keras") in starts
    assert files.sha256(other.out / "x" / "start.keras") not in starts


def test_features_carry_their_scaling_in_the_model(tmp_path):
    iris = load_iris()
    data = Dataset.of(iris.data, iris.target_names[iris.target], name="iris")
    made = split(data, 3, out=tmp_path / "p")
    start = io.load(made.out / made.members[0] / "start.keras")
    assert start.input_high is None
    assert start.n_classes == 3
    assert "Normalization" in json.dumps(start.architecture.to_json())


def test_by_column_names_the_members_after_its_values(tmp_path):
    path = tmp_path / "d.csv"
    rows = [f"{i % 7},{(i * 5) % 11},{'ab'[i % 2]},{['Sur', 'Norte 1'][i % 3 == 0]}" for i in range(60)]
    path.write_text("p,q,kind,hospital\n" + "\n".join(rows))
    made = split(f"{path}:label=kind,column=hospital", scheme="by-column", out=tmp_path / "p")
    assert made.members == ("Norte_1", "Sur")


def test_a_split_with_a_pytorch_factory_brings_its_code(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make(n_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, n_classes))\n"
    )
    made = split("digits", names=["ana", "luis"], out=tmp_path / "p", model=f"{tmp_path / 'net.py'}:make")
    assert (made.out / "ana" / "start.pt").is_file()
    assert (made.out / "ana" / "net.py").is_file()
    assert "--model ana/net.py:make" in (made.out / "ana" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"data": "digist", "clients": 2}, UsageError, "unknown data set 'digist': did you mean 'digits'"),
        ({"data": "digits", "clients": 2, "scheme": "stratifed"}, UsageError, "did you mean 'stratified'"),
        ({"data": "digits", "clients": 2, "model": "cnn-smal"}, UsageError, "did you mean 'cnn-small'"),
        ({"data": "digits", "clients": 2, "model_format": "kears"}, UsageError, "did you mean 'keras'"),
        ({"data": "digits", "clients": 0}, UsageError, "clients is 0"),
        ({"data": "digits", "clients": 3, "names": ["a", "b"]}, UsageError, "2 names are given for 3 clients"),
        ({"data": "digits", "names": ["a", "A"]}, UsageError, "given twice"),
        ({"data": "digits", "names": ["a/b", "c"]}, UsageError, "'a/b' cannot be a folder"),
        ({"data": "digits"}, UsageError, "number of clients is needed"),
        ({"data": "digits", "clients": 200}, DataError, "200"),
        ({"data": "digits", "clients": 5, "scheme": "labels", "options": {"per_client": 11}}, DataError, "11"),
        ({"data": "iris", "clients": 2, "model": "cnn"}, UsageError, "unknown data set"),
    ],
)
def test_what_cannot_be_split_is_refused_and_leaves_nothing(tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        split(arguments.pop("data"), arguments.pop("clients", None), out=tmp_path / "p", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_convolution_needs_images(tmp_path):
    iris = load_iris()
    with pytest.raises(ModelError, match=r"'cnn' needs images .* choose '2nn' or 'mlp'"):
        split(Dataset.of(iris.data, iris.target), 2, out=tmp_path / "p", model="cnn")


def test_an_existing_folder_is_not_overwritten_unasked(tmp_path):
    out = tmp_path / "p"
    split("digits", 2, out=out, model="2nn")
    with pytest.raises(StorageError, match="pass --overwrite"):
        split("digits", 3, out=out, model="2nn")
    split("digits", 3, out=out, model="2nn", overwrite=True)
    assert len(member.folders(out)) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="was not made by 'fedloom split'"):
        split("digits", 2, out=tmp_path / "mine", model="2nn", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_the_notebook_view_shows_the_counts(tmp_path):
    made = split("digits", names=["ana", "luis"], out=tmp_path / "p", model="2nn")
    assert "luis" in made._repr_html_()


def test_the_next_command_names_the_code_that_the_files_need(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = "from torch import nn\ndef build(n_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
    (tmp_path / "net.py").write_text(net)
    made = split("digits", names=["ana", "luis"], model="net.py:build")
    assert made.command == "fedloom train parts/ana --model parts/ana/net.py:build"
    assert "`fedloom train ana --model ana/net.py:build`" in (tmp_path / "parts/ana/README.md").read_text()
    assert split("digits", 2, model="2nn", out="p2").command == "fedloom train p2/client-1"
