"""What a comparison says of members that are aligned before they are merged."""

from __future__ import annotations

import numpy as np
import pytest

from fedloom.data import load_evaluation
from fedloom.errors import DataError, UsageError
from fedloom.models import io, zoo
from fedloom.offline.compare import compare
from fedloom.offline.merge import merge
from fedloom.offline.split import split
from fedloom.offline.train import train
from fedloom.report.comparison import Comparison

X = load_evaluation("digits")


def run(models, methods=("fedavg", "ensemble"), **given):
    return compare(models, X, **{"methods": methods, "out": None, "progress": False, **given})


def rows(made):
    return {row.name: row for row in made.rows}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def apart(trained, written):
    return run(trained.different, out=written)


def test_aligned_merges_stand_in_the_table_above_the_plain_ones(apart):
    aligned = [row.counts.accuracy for row in apart.of_kind("aligned")]
    assert [row.name for row in apart.of_kind("aligned")][:3] == ["aligned mean", "REPAIR", "least squares"]
    plain, members = rows(apart)["fedavg"].counts.accuracy, [r.counts.accuracy for r in apart.of_kind("member")]
    assert plain < min(members) - 0.05
    assert max(aligned) > plain + 0.1
    assert apart.best().kind == "aligned"
    assert all(row.seconds > 0 for row in apart.of_kind("aligned"))
    (baseline,) = apart.of_kind("baseline")
    assert baseline.name.endswith(", new last layer")
    assert "synthetic inputs, no data" in apart.made["Alignment"]
    assert not apart.refused


def test_the_choice_is_what_merge_writes(apart, trained, tmp_path):
    chosen = next(row for row in apart.of_kind("aligned") if "what 'fedloom merge' takes" in row.note)
    written = merge(trained.different, out=tmp_path / "global.keras", progress=False)
    again = rows(run([*trained.different, written.out], align="none"))["global"]
    assert (again.counts.confusion == chosen.counts.confusion).all()
    assert f"aligned it reaches {chosen.counts.accuracy:.1%}".replace("%", " %") in apart.findings[0].title


def test_the_finding_names_the_command_that_makes_the_file(apart, trained):
    first = apart.findings[0]
    assert first.level == "problem"
    assert first.command.startswith("fedloom merge ")
    assert first.command.endswith("--align auto --out global.keras")
    assert all(str(path) in first.command for path in trained.different)
    assert "common order" in first.text


def test_the_line_has_the_members_at_its_ends_and_no_valley_after_alignment(apart):
    before, after = apart.lines
    assert (before.name, after.name) == ("as they are", "aligned")
    assert before.samples == len(X)
    known = rows(apart)
    for line in (before, after):
        assert line.accuracies[0] == pytest.approx(known[line.first].counts.accuracy, abs=0.005)
        assert line.accuracies[-1] == pytest.approx(known[line.second].counts.accuracy, abs=0.005)
        assert line.losses[0] == pytest.approx(known[line.first].counts.loss, rel=1e-3)
    assert before.barrier > 2 * after.barrier
    assert min(before.accuracies) < min(after.accuracies) - 0.1


def test_the_two_members_are_those_with_the_deepest_valley(trained):
    made = run([trained.shared[0], trained.shared[1], trained.different[2]], align="always")
    assert "carmen" in (made.lines[0].first, made.lines[0].second)


def test_it_survives_the_disk_and_is_on_the_page(apart, written):
    assert Comparison.load(written) == apart
    page = (written / "report.html").read_text(encoding="utf-8")
    assert "Between two members" in page
    assert "k-aligned" in page


def test_members_with_a_shared_start_are_aligned_on_request_only(trained):
    assert not run(trained.shared).of_kind("aligned")
    made = run(trained.shared, align="always")
    assert made.of_kind("aligned")
    said = next(f for f in made.findings if f.title == "They were aligned as well")
    assert "without alignment" in said.text
    assert not any(f.level == "problem" for f in made.findings)


def test_none_leaves_alignment_out(trained):
    made = run(trained.different, align="none")
    assert not made.of_kind("aligned")
    assert not made.lines
    assert made.findings[0].command.startswith("fedloom next-round")


def test_a_single_member_is_nothing_to_align(trained):
    assert not run(trained.different[:1], align="always").lines


def test_unlabelled_inputs_are_used_and_named(trained, tmp_path):
    np.save(tmp_path / "x.npy", np.load(trained.parts / "ana" / "ana_X.npy"))
    made = run(trained.different, unlabelled=tmp_path / "x.npy")
    assert "unlabelled inputs" in made.made["Alignment"]
    assert f"--unlabelled {tmp_path / 'x.npy'}" in made.findings[0].command
    with pytest.raises(DataError, match=r"gone\.npy: no such file"):
        run(trained.different, unlabelled=tmp_path / "gone.npy")


def test_words_that_do_not_fit_are_refused(trained):
    with pytest.raises(UsageError, match=r"did you mean 'always'"):
        run(trained.different, align="allways")
    with pytest.raises(UsageError, match="give only one of the two"):
        run(trained.different, align="none", unlabelled="digits")


def test_a_model_that_cannot_be_looked_into_says_why(tmp_path):
    code = tmp_path / "made.py"
    code.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Linear(64, 32)\n"
        "        self.b = torch.nn.Linear(32, 10)\n"
        "    def forward(self, x):\n"
        "        h = self.a(x.flatten(1)).relu()\n"
        "        return self.b(h if float(h.detach().sum()) > 0 else -h)\n"
        "def make():\n"
        "    return Net()\n"
    )
    parts = split("digits", 2, out=tmp_path / "p", model=f"{code}:make").out
    paths = [train(parts / f"client-{i}", 2, lr=3e-3, fresh_start=True, model=f"{code}:make").path for i in (1, 2)]
    made = run(paths, model=f"{code}:make")
    assert not made.of_kind("aligned")
    assert "aligned merge" in made.refused
    said = next(f for f in made.findings if f.level == "problem")
    assert "Aligning them first is not possible here" in said.text
    assert made.refused["aligned merge"].rstrip(".") in said.text


def test_batch_norm_has_a_third_line(tmp_path):
    parts = split("digits", 2, out=tmp_path / "p", model="mlp").out
    paths = [train(parts / f"client-{i}", 4, lr=3e-3, fresh_start=True).path for i in (1, 2)]
    made = run(paths)
    before, aligned, recalibrated = made.lines
    assert recalibrated.name == "aligned, BatchNorm recalibrated"
    assert before.barrier > aligned.barrier > recalibrated.barrier
    assert recalibrated.losses[0] == aligned.losses[0]


def test_members_of_different_width_are_merged_and_the_plain_methods_refused(trained, tmp_path):
    config = zoo.config("2nn", (8, 8), 10)
    wide = io.from_config(config)
    dense = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")
    dense["config"]["units"] = 120
    narrow = io.from_config(config)
    assert narrow.layout.size < wide.layout.size
    io.initialize(narrow, 1)
    parts = split("digits", 2, out=tmp_path / "p", model=str(io.save(narrow, tmp_path / "narrow.keras"))).out
    path = train(parts / "client-1", 4, lr=3e-3, batch_size=16).path
    made = run([trained.different[0], path])
    assert "fedavg" in made.refused
    assert made.of_kind("aligned"), made.refused
    assert not made.lines
    assert "differ in width; aligned the merge reaches" in made.findings[0].title
    assert max(row.counts.accuracy for row in made.of_kind("aligned")) > 0.7


def test_the_test_set_does_not_choose(apart, trained):
    half = compare(trained.different, X.take(np.arange(0, len(X), 2)), methods=["fedavg"], out=None, progress=False)
    chosen = [[row.name for row in made.rows if "takes" in row.note] for made in (apart, half)]
    assert chosen[0] == chosen[1]
