from __future__ import annotations

import shutil

import pytest
import torch

import fedloom
from fedloom.data import load_evaluation
from fedloom.errors import ArchitectureError, DataError, MergeError
from fedloom.models import io, sidecar
from fedloom.offline.compare import compare
from fedloom.offline.explain import explain
from fedloom.offline.merge import merge

X = load_evaluation("digits")


def write(path, vector, like):
    io.save(io.load(like).load(vector), path)
    return path


@pytest.fixture
def folder(trained, tmp_path):
    """The members' files alone, without sidecars, as another tool leaves them."""
    for path in trained.different:
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def paths(folder):
    return [folder / f"{name}.keras" for name in ("ana", "luis", "carmen")]


@pytest.fixture
def vectors(paths):
    return torch.stack([io.load(p).vector() for p in paths])


def made(paths, vector, **given):
    return explain(write(paths[0].parent / "global.keras", vector, paths[0]), paths, **given)


def test_a_plain_mean_made_by_merge(trained, tmp_path):
    merge(trained.shared, out=tmp_path / "global.keras", weights=None)
    found = fedloom.explain(tmp_path / "global.keras", trained.shared)
    assert found.sentence == "global is the plain mean of the 3 members"
    assert found.findings[0].level == "good"
    assert found.weights == pytest.approx(dict.fromkeys(("ana", "luis", "carmen"), 1 / 3), abs=1e-3)


def test_a_slip_of_sign_is_a_problem_with_a_command(paths, vectors):
    found = made(paths, 2 * vectors[0] - vectors.mean(0))
    assert found.verdict.kind == "error"
    assert found.findings[0].level == "problem"
    assert "1.67 x ana - 0.33 x each of the others" in found.findings[0].text
    assert "ana + (ana - average), a step away from the average" in found.findings[0].text
    assert found.findings[0].command.startswith("fedloom merge ")
    assert list(found.weights) == ["ana", "luis", "carmen"]


@pytest.mark.parametrize(
    ("weights", "level", "words"),
    [
        ((0, 1, 0), "warning", ("global is luis, not a merge",)),
        ((1, 1, 1), "problem", ("the sum of the members, not their mean", "nobody divided")),
        ((0.2, 0.2, 0.2), "problem", ("times 0.6", "sum to 0.6, not to 1")),
        ((0.5, 0.3, 0.2), "info", ("a weighted mean", "ana counts 0.500")),
        ((0.5, 0.5, 0), "warning", ("the plain mean of 2 of the 3", "carmen counted nothing")),
        ((0.9, 0.3, 0.1), "problem", ("the weights sum to 1.3, not to 1",)),
        ((0.9, 0.5, -0.4), "problem", ("some weights are negative", "moves the model away from that member")),
    ],
)
def test_every_combination_has_its_words(paths, vectors, weights, level, words):
    first = made(paths, torch.tensor(weights, dtype=torch.float32) @ vectors).findings[0]
    assert first.level == level
    for word in words:
        assert word in f"{first.title}. {first.text}"


def test_the_shares_of_the_samples_are_recognised(trained, tmp_path):
    counts = [sidecar.read(p)[0].samples for p in trained.shared]
    vectors = torch.stack([io.load(p).vector() for p in trained.shared])
    shares = torch.tensor(counts, dtype=torch.float32) / sum(counts)
    path = write(tmp_path / "g.keras", shares @ vectors, trained.shared[0])
    assert explain(path, trained.shared).verdict.kind == "mean"  # the parts are nearly of one size
    for name, samples in (("ana", 100), ("luis", 300), ("carmen", 600)):
        own = trained.parts / name / f"{name}.keras"
        shutil.copy(own, tmp_path)
        record = sidecar.read(own)[0]
        sidecar.write(tmp_path / own.name, type(record)(**{**vars(record), "samples": samples}))
    merged = write(tmp_path / "g.keras", torch.tensor([0.1, 0.3, 0.6]) @ vectors, trained.shared[0])
    found = explain(merged, [tmp_path / f"{n}.keras" for n in ("ana", "luis", "carmen")])
    assert "the shares of their samples" in found.findings[0].text


def test_a_robust_rule_is_named(paths, vectors):
    found = made(paths, vectors.median(0).values)
    assert found.sentence == "global is the coordinate median of the members"
    assert not found.exact


def test_a_layer_of_its_own_is_named_as_keras_has_it(paths, vectors):
    merged, layout = vectors.mean(0), io.load(paths[0]).layout
    last = next(where for name, where, _ in layout.slices() if name == "2_dense.weight")
    merged[last] = vectors[1][last]
    found = made(paths, merged)
    assert found.sentence == "global is the plain mean of the 3 members, except in dense_2"
    assert found.findings[0].level == "warning"
    assert found.findings[1].title == "Layer 'dense_2' is made otherwise"
    assert "those of luis" in found.findings[1].text


def test_a_model_trained_further_is_no_combination(paths, vectors):
    torch.manual_seed(0)
    drift = 0.3 * vectors.std(0) * torch.randn(vectors.shape[1]).sign() * 3
    found = made(paths, vectors.mean(0) + drift)
    assert found.verdict.kind == "something else"
    assert "no combination of these members" in found.sentence
    assert "trained further" in found.findings[0].text


def test_the_global_model_itself_and_other_merges_are_left_out(folder, paths, vectors):
    path = write(folder / "global.keras", vectors.mean(0), paths[0])
    write(folder / "other_global.keras", vectors[0] + vectors[1], paths[0])
    merge(paths, "median", out=folder / "med.keras")
    found = explain(path, str(folder / "*.keras"))
    assert sorted(found.members) == ["ana", "carmen", "luis"]
    assert found.verdict.kind == "mean"


def test_it_reads_well_in_a_notebook(paths, vectors):
    page = made(paths, vectors.mean(0))._repr_html_()
    assert "global is the plain mean of the 3 members" in page
    assert "carmen    0.333" in page


def test_fewer_than_two_members_are_refused(paths, vectors):
    path = write(paths[0].parent / "global.keras", vectors.mean(0), paths[0])
    for members in ([paths[0]], [paths[0], path]):
        with pytest.raises(DataError, match=r"at least two files are needed, found only .*ana.keras"):
            explain(path, members)
    with pytest.raises(DataError, match="name the members"):
        explain(path, [])
    with pytest.raises(DataError, match="no such file"):
        explain(path, [paths[0], paths[0].with_name("nobody.keras")])


def test_another_architecture_is_refused_by_its_layer(folder, paths, vectors):
    path = write(folder / "global.keras", vectors.mean(0), paths[0])
    io.save(io.create("mlp", X), folder / "other.keras")
    with pytest.raises(ArchitectureError, match=r"other.keras does not fit .*global.keras: .*layer"):
        explain(path, [*paths, folder / "other.keras"])


def test_nan_is_refused_by_file_and_array(folder, paths, vectors):
    path = write(folder / "global.keras", vectors.mean(0) * torch.nan, paths[0])
    with pytest.raises(MergeError, match=r"global.keras: array '0_dense.weight' holds"):
        explain(path, paths)


def test_arrays_alone_are_explained_without_code(folder, paths, vectors):
    for path in [*paths, write(folder / "global.keras", vectors.mean(0), paths[0])]:
        torch.save(dict(io.load(path).module.state_dict()), path.with_suffix(".pt"))
    members = [p.with_suffix(".pt") for p in paths]
    assert explain(folder / "global.pt", members).verdict.kind == "mean"


def test_the_code_of_a_pytorch_model_may_be_given(tmp_path):
    code = tmp_path / "net.py"
    code.write_text(
        "from torch import nn\ndef make(input_shape, n_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    models = [io.create(f"{code}:make", X, seed) for seed in range(3)]
    paths = [io.save(model, tmp_path / f"m{i}.pt") for i, model in enumerate(models)]
    mean = torch.stack([m.vector() for m in models]).mean(0)
    path = io.save(models[0].load(mean), tmp_path / "global.pt")
    assert explain(path, paths, model_code=f"{code}:make").verdict.kind == "mean"


def test_compare_says_what_a_global_model_is(folder, paths, vectors):
    path = write(folder / "global.keras", 2 * vectors[0] - vectors.mean(0), paths[0])
    table = compare([*paths, path], X, methods=["fedavg"], out=None, progress=False)
    assert [row.name for row in table.of_kind("global")] == ["global"]
    assert [row.name for row in table.of_kind("member")] == ["ana", "luis", "carmen"]
    said = [f for f in table.findings if f.title.startswith("global is ")]
    assert [f.level for f in said] == ["problem"]
    assert "1.67 x ana" in said[0].text


def test_compare_is_silent_where_the_members_cannot_tell(folder, paths, vectors):
    path = write(folder / "global.keras", vectors.mean(0), paths[0])
    table = compare([paths[0], path], X, methods=["fedavg"], out=None, progress=False)
    assert not [f for f in table.findings if f.title.startswith("global is ")]
