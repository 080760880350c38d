"""Every command line of the journey, as people type it."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, run

from fedloom import __version__
from fedloom.cli.app import app
from fedloom.compress import CODECS
from fedloom.config.tables import MECHANISMS
from fedloom.merging import METHODS
from fedloom.models import io
from fedloom.models.zoo import TITLES
from fedloom.partition import SCHEMES


def shell(line):
    """Run a command line after what a shell does with it: quotes and patterns."""
    words = shlex.split(line)
    assert words[0] == "fedloom"
    return run(*[path for w in words[1:] for path in (sorted(map(str, Path().glob(w))) if "*" in w else [w])])


def test_the_journey_as_the_readme_tells_it(empty, capsys):
    names = "ana,luis,carmen,diego,elena,mateo"
    assert shell(f"fedloom split digits --clients 6 --names {names} --scheme stratified --model 2nn --out parts/") == 0
    said = capsys.readouterr().out
    assert "6 folders in parts; every one holds the same start (2nn, " in said
    assert "fedloom train parts/ana" in said
    for name in names.split(","):
        line = "--epochs 5 --optimizer adam --lr 1e-3 --batch-size 32 --prox-mu 0.01"
        assert shell(f"fedloom train parts/{name} {line}") == 0
        said = capsys.readouterr().out
        assert "macro avg" in said
        assert f"parts/{name}/{name}.keras" in said.splitlines()[-1]
        for suffix in (".keras", ".json"):
            (empty / f"{name}{suffix}").write_bytes((empty / "parts" / name / f"{name}{suffix}").read_bytes())
    assert json.loads((empty / "ana.json").read_text())["local"]["prox_mu"] == 0.01
    assert shell("fedloom merge *.keras --method median --out global.keras") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "median of 6 models: global.keras"
    (empty / "global.keras").rename(empty / "global.merged")
    for file, end in (("x_test.npy", "x_test_fed.npy"), ("y_test.npy", "y_test_fed.npy")):
        (empty / file).write_bytes((empty / "parts" / "ana" / end).read_bytes())
    assert shell("fedloom compare *.keras --data x_test.npy,y_test.npy --train-central parts/") == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "report: comparison/report.html"
    for word in ("ana", "fedavg", "ensemble", "central", "The members share a start"):
        assert word in said
    assert (empty / "comparison" / "report.html").is_file()
    assert shell("fedloom next-round parts/ --models *.keras --method fedavg") == 0
    assert capsys.readouterr().out.startswith("round 1: parts/rounds/round_001.keras, and as start in 6 folders")
    assert shell("fedloom train parts/ana --epochs 1") == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_merges(method, team, capsys):
    line = "fedloom merge ana.keras luis.keras carmen.keras --out global.keras --previous parts/ana/start.keras"
    weights = " --weights 0.5,0.3,0.2" if method == "weighted" else ""
    assert shell(f"{line} --method {method}{weights}") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[-1] == f"{method} of 3 models: global.keras"
    assert np.isfinite(io.load("global.keras").vector().numpy()).all()


def test_weights_are_shown_as_shares(team, capsys):
    assert run("merge", "ana.keras", "luis.keras", "--method", "weighted", "--weights", "0.9,0.1", "--out", "g.pt") == 0
    assert "weights: ana 0.900, luis 0.100" in capsys.readouterr().out


def test_weights_by_accuracy(team, capsys):
    line = "fedloom merge ana.keras luis.keras --method weighted --weights accuracy --data x_test.npy,y_test.npy"
    assert shell(f"{line} --out global.keras") == 0


def test_an_option_of_the_method(team):
    names = [f"{n}.keras" for n in ("ana", "luis", "carmen")]
    assert run("merge", *names, "--method", "trimmed-mean", "--set", "k=1", "--out", "a.keras") == 0
    assert run("merge", *names, "--method", "median", "--out", "b.keras") == 0
    a, b = (io.load(f"{n}.keras").vector() for n in "ab")
    assert np.allclose(a, b, atol=1e-6)


def test_next_round_searches_the_folders_by_itself(team, capsys):
    assert run("next-round", "parts", "--method", "fedadam", "--set", "lr=0.01") == 0
    assert "round 1" in capsys.readouterr().out


def test_a_fresh_start_says_what_it_costs(team, capsys):
    assert run("train", "parts/ana", "--epochs", 1, "--fresh-start", "--out", "fresh.keras") == 0
    said = capsys.readouterr().out
    assert "note: fresh start" in said
    assert "chance level" in said
    assert run("merge", "fresh.keras", "luis.keras", "--out", "global.keras") == 0
    said = capsys.readouterr().out
    assert "The members do not share a start" in said
    assert "The members were aligned before merging" in said
    assert run("merge", "fresh.keras", "luis.keras", "--align", "none", "--out", "plain.keras") == 0
    assert "problem: The members do not share a start" in capsys.readouterr().out


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "by-column"])
def test_every_scheme_splits(scheme, empty, capsys):
    assert run("split", "digits", "-n", 5, "--scheme", scheme, "--model", "2nn") == 0
    assert json.loads((empty / "parts" / "manifest.json").read_text())["scheme"] == scheme
    assert "client-5" in capsys.readouterr().out


def test_options_of_the_schemes_arrive(empty):
    assert (
        run("split", "digits", "-n", 3, "--scheme", "dirichlet", "--alpha", "0.1", "--min-size", 5, "--model", "2nn")
        == 0
    )
    assert json.loads((empty / "parts" / "manifest.json").read_text())["options"] == {"alpha": 0.1, "min_size": 5}


def test_a_table_split_by_a_column(empty, capsys):
    rows = [f"{k % 7},{k * k % 5},{'north' if k % 3 else 'south'},{'yes' if k % 2 else 'no'}" for k in range(60)]
    (empty / "visits.csv").write_text("\n".join(["age,visits,clinic,ill", *rows]) + "\n")
    assert run("split", "visits.csv:label=ill", "--scheme", "by-column", "--column", "clinic") == 0
    assert "fedloom train parts/north" in capsys.readouterr().out
    assert run("train", "parts/north", "--epochs", 1) == 0


def test_folders_with_brackets_are_printed_as_they_are(empty, capsys):
    assert run("split", "digits", "-n", 2, "--model", "2nn", "--out", "[red]team[3]") == 0
    assert "2 folders in [red]team[3];" in capsys.readouterr().out
    assert run("train", "[red]team[3]/client-1", "--epochs", 1) == 0
    assert "[red]team[3]/client-1/client-1.keras" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", METHODS),
        ("schemes", SCHEMES),
        ("models", TITLES),
        ("codecs", CODECS.keys() - {"int"}),
        ("privacy", set(MECHANISMS) - {"none"}),
    ],
)
def test_lists_hold_every_name(what, names, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run("list", what) == 0
    said = capsys.readouterr().out
    assert [n for n in names if not any(line.startswith(f" {n} ") for line in said.splitlines())] == []


@pytest.mark.parametrize("command", ["", *app.commands])
def test_help_explains_every_option(command, capsys):
    assert run(*command.split(), "--help") == 0
    said = capsys.readouterr().out
    chosen = app.commands[command] if command else app
    assert max(map(len, said.splitlines())) <= 110
    for one in chosen.params:
        if one.param_type_name == "option":
            assert one.opts[-1] in said
            assert one.help, f"{command} {one.opts[-1]} has no help"


def test_without_a_command_the_help_is_shown(capsys):
    assert run() == 0
    assert "next-round" in capsys.readouterr().out


def test_the_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"fedloom, version {__version__}"


def test_a_normal_run_prints_nothing_on_stderr(team):
    """Also with a Keras model, whose libraries like to warn."""
    line = [*COMMAND, "compare", "ana.keras", "luis.keras", "--data", "x_test.npy,y_test.npy", "--methods", "fedavg"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_terminal_without_unicode(team, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    line = [*COMMAND, "compare", "ana.keras", "--data", "x_test.npy,y_test.npy", "--methods", "fedavg"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "accuracy" in done.stdout
