"""The files of recipes/: each can be run as it stands, its results hold what it promises, and a short version learns."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tomllib
from pathlib import Path

import pytest

from fedloom.config import Config
from fedloom.config.conflicts import conflicts
from fedloom.errors import UsageError
from fedloom.simulation.simulate import simulate

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
FOLDER = Path(os.environ.get("FEDLOOM_DATA", "/nowhere")) / "mnist"


@pytest.fixture
def tools(monkeypatch):
    """What records results: benchmarks/_recorded.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_recorded")


@pytest.fixture
def command(monkeypatch, tools):
    """The command benchmarks/recipes.py."""
    return importlib.import_module("recipes").main


@pytest.fixture
def copy(tmp_path):
    """A copy of two recipes, to write into."""
    place = tmp_path / "recipes"
    place.mkdir()
    for name in ("README.md", "li-mnist-2-labels.toml", "mcmahan-2nn-iid-10.toml"):
        shutil.copy(ROOT / "recipes" / name, place)
    return place


def fake(folder, config, accuracies, **start):
    """The folder of a run that found these accuracies."""
    rows = [{"event": "start", "torch": "2.13.0", **start}, {"event": "plan", "chosen": "loop"}]
    rows += [{"event": "round", "round": i, "accuracy": a} for i, a in enumerate(accuracies, 1)]
    folder.mkdir()
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_all_are_there():
    names = {path.stem for path in RECIPES}
    for data in ("mnist", "fashion-mnist"):
        assert {f"li-{data}-{skew}" for skew in ("iid", "dirichlet", "2-labels", "3-labels")} <= names
    assert {f"mcmahan-2nn-{skew}-{count}" for skew in ("iid", "shards") for count in (10, 100)} <= names
    assert {"mcmahan-cnn-iid-e1", "mcmahan-cnn-iid-e5"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_is_a_run_with_published_figures(path, tools):
    cells = tools.cells(path)
    assert {cell.algorithm for cell in cells} == set(cells[0].recipe.published)
    for cell in cells:
        assert not list(conflicts(cell.config))
        assert cell.recipe.paper
        assert cell.recipe.tolerance > 0
        assert cell.recipe.target == cell.config.evaluation.target
        assert cell.recipe.target is None or cell.config.run.rounds + 1 > cell.recipe.bar(cell.algorithm)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_result_is_within_the_tolerance_or_the_remark_says_why_not(path, tools):
    for cell in tools.cells(path):
        row = cell.recipe.result.get(cell.algorithm)
        told = cell.algorithm in cell.recipe.remark.lower()
        assert row is None or cell.recipe.within(cell.algorithm, row["value"]) or told


def test_the_table_is_that_of_the_files(tools, tmp_path):
    place = tmp_path / "recipes"
    shutil.copytree(ROOT / "recipes", place)
    tools.write_summary(place)
    assert (place / "README.md").read_text() == (ROOT / "recipes" / "README.md").read_text()


def test_a_finished_run_is_recorded_and_comments_stay(tools, command, copy, tmp_path, capsys):
    path = copy / "li-mnist-2-labels.toml"
    before = path.read_text()
    cell = next(cell for cell in tools.cells(path) if cell.algorithm == "scaffold")
    run = fake(tmp_path / "run", cell.config.override(seed=3, plan="loop", threads=1), [0.9] * 49 + [0.9712])
    assert command(["--from", str(run), "--recipes", str(copy)]) == 0
    after = path.read_text()
    found = {"value": 97.12, "seed": 3, "rounds": 50, "plan": "loop", "torch": "2.13.0"}
    assert tomllib.loads(after)["recipe"]["result"]["scaffold"] == found
    assert [line for line in before.splitlines() if line not in after.splitlines()] == []
    assert Config.read(path) == cell.config.override(algorithm="fedavg")
    assert "| `scaffold` | 96.92 % | 95.92 % | 97.12 % | yes |" in (copy / "README.md").read_text()
    assert "97.12 % | yes" in capsys.readouterr().out


def test_another_configuration_is_refused(tools, command, copy, tmp_path, capsys):
    cell = tools.cells(copy / "li-mnist-2-labels.toml")[0]
    run = fake(tmp_path / "run", cell.config.override(lr=0.02), [0.97] * 50)
    assert command(["--from", str(run), "--recipes", str(copy)]) == UsageError.exit_code
    assert (
        "li-mnist-2-labels with fedavg, but training.lr is 0.02 there and 0.01 in the recipe" in capsys.readouterr().err
    )


def test_options_that_are_left_out_have_their_defaults(tools, copy):
    cell = next(c for c in tools.cells(copy / "li-mnist-2-labels.toml") if c.algorithm == "fedprox")
    assert tools.differences(cell, cell.config.override(algorithm="fedprox:mu=0.01")) == []
    assert tools.differences(cell, cell.config.override(algorithm="fedprox:mu=0.1")) != []


def test_a_run_that_is_not_finished_is_refused(tools, command, copy, tmp_path, capsys):
    cell = tools.cells(copy / "li-mnist-2-labels.toml")[0]
    run = fake(tmp_path / "run", cell.config, [0.97] * 49)
    assert command(["--from", str(run), "--recipes", str(copy)]) == UsageError.exit_code
    assert "not finished: 49 of 50 rounds" in capsys.readouterr().err


def test_rounds_to_the_target_lie_on_a_straight_line_of_the_best_so_far(tools, copy, tmp_path):
    cell = tools.cells(copy / "mcmahan-2nn-iid-10.toml")[0]
    run = fake(tmp_path / "run", cell.config, [0.90, 0.96, 0.95, 0.98])
    assert tools.result(cell, run)["value"] == 3.5
    missed = fake(tmp_path / "missed", cell.config.override(rounds=3), [0.90, 0.96, 0.95])
    assert tools.result(cell, missed)["value"] == float("inf")


def test_results_replace_each_other(tools):
    text = "[recipe.published]\nfedavg = 1 # theirs\n\n# the grid\n[grid]\nseed = [1]\n"
    once = tools.with_result(text, "fedavg", {"value": 2.0})
    twice = tools.with_result(
        tools.with_result(once, "fednova", {"value": 4.0}), "fedavg", {"value": 3.0, "plan": "loop"}
    )
    assert once == text.replace("theirs\n", "theirs\n\n[recipe.result]\nfedavg = { value = 2.0 }\n")
    assert tomllib.loads(twice)["recipe"]["result"] == {
        "fedavg": {"value": 3.0, "plan": "loop"},
        "fednova": {"value": 4.0},
    }
    assert "# theirs" in twice
    assert "# the grid\n[grid]" in twice


def test_a_grid_is_for_sweep_unless_one_run_of_it_is_chosen(tmp_path):
    path = ROOT / "recipes" / "li-mnist-iid.toml"
    with pytest.raises(UsageError, match=r"fedloom sweep .*or choose one of its runs with --algorithm"):
        simulate(path, out=tmp_path / "run", progress=False)
    small = {"data": "digits", "model": "2nn", "rounds": 1, "epochs": 1, "plan": "loop", "progress": False}
    made = simulate(path, algorithm="fedprox:mu=0.1", out=tmp_path / "run", **small)
    assert made.config.algorithm.options == {"mu": 0.1}


@pytest.mark.mnist
@pytest.mark.skipif(not FOLDER.is_dir(), reason="FEDLOOM_DATA names no folder with mnist/")
def test_a_short_version_learns_and_skew_makes_it_harder(tmp_path):
    found = {}
    for skew in ("iid", "shards"):
        path = ROOT / "recipes" / f"mcmahan-2nn-{skew}-10.toml"
        made = simulate(path, rounds=4, plan="loop", threads=1, out=tmp_path / skew, progress=False)
        found[skew] = [record.accuracy for record in made.records]
    assert found["iid"][-1] >= 0.9
    assert 0.5 <= max(found["shards"]) < found["iid"][-1] - 0.05
