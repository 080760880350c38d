"""``fedloom simulate`` and ``fedloom sweep``, typed."""

from __future__ import annotations

import json

import pytest
from command_line import run

import fedloom

SMALL = ("--clients", 6, "--per-round", 2, "--rounds", 2, "--plan", "loop")


def test_simulate_runs_and_says_what_came_of_it(empty, capsys):
    assert run("simulate", "digits", *SMALL, "--holdout", 0.2) == 0
    said = capsys.readouterr()
    assert "final accuracy" in said.out
    assert "folder: runs/digits-fedavg-1" in said.out
    assert "round 2/2" in said.err  # plain lines: this is no terminal
    assert fedloom.load_model(empty / "runs/digits-fedavg-1/best.keras").n_classes == 10
    assert run("simulate", "digits", *SMALL, "--quiet", "--algorithm", "fedprox", "--set", "mu=0.1") == 0
    assert capsys.readouterr().err == ""
    assert "mu = 0.1" in (empty / "runs/digits-fedprox-1/config.toml").read_text()


def test_flags_override_the_file_and_a_folder_goes_on(empty, capsys):
    (empty / "exp.toml").write_text(
        "[data]\nsource='digits'\nclients=6\n[sampling]\nper_round='50%'\n[run]\nrounds=9\n"
    )
    assert run("simulate", "exp.toml", "--rounds", 1, "--out", "a", "--plan", "loop", "--quiet") == 0
    assert run("simulate", "a", "--resume", "--rounds", 3, "--quiet") == 0
    rows = [json.loads(line) for line in (empty / "a/events.jsonl").read_text().splitlines()]
    assert [(r["round"], r["asked"]) for r in rows if r["event"] == "round"] == [(1, 3), (2, 3), (3, 3)]
    assert [r["rounds"] for r in rows if r["event"] == "end"] == [3]


def test_sweep_prints_its_table(empty, capsys):
    grid = ("--grid", "algorithm=fedavg,fedprox:mu=0.1", "--grid", "seed=0,1")
    assert run("sweep", "digits", *SMALL, *grid, "--out", "s", "--quiet") == 0
    said = capsys.readouterr().out
    assert "fedprox:mu=0.1" in said
    assert "±" in said
    assert len(list(empty.glob("s/*/events.jsonl"))) == 4


def test_every_conflict_has_its_line(empty, capsys):
    assert run("simulate", "digits", "--clients", 5, "--deadline", 3, "--workers", 2) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "fedloom: 3 things are wrong with this run:"
    assert all(line.startswith("  - ") for line in lines[1:])
    assert len(lines) == 4
    assert not list(empty.iterdir())


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (("per_round is 10, but there are only 5",), ("simulate", "digits", "--clients", 5)),
        (("'x'", "a whole number"), ("simulate", "digits", "--clients", "x")),
        (("did you mean 'scaffold'",), ("simulate", "digits", "--algorithm", "scafold")),
        (("unknown model",), ("simulate", "digits", "--model", "2n")),
        (("--set mu", "NAME=VALUE"), ("simulate", "digits", "--set", "mu")),
        (("given twice",), ("simulate", "digits", "--set", "mu=1", "--set", "mu=2")),
        (("--resume needs the folder",), ("simulate", "digits", "--resume")),
        (("a sweep needs a grid",), ("sweep", "digits")),
        (("did you mean 'seed'",), ("sweep", "digits", "--grid", "sede=1")),
        (("unknown list 'algorithm'", "did you mean 'algorithms'"), ("list", "algorithm")),
    ],
)
def test_bad_input_is_one_line(empty, refuse, words, arguments):
    refuse(2, words, *arguments)


def test_a_missing_file_and_a_grid_are_refused(empty, refuse):
    refuse(3, ("none.toml: no such file",), "simulate", "none.toml")
    (empty / "exp.toml").write_text("[grid]\nseed=[1]\n")
    refuse(2, ("has a [grid]", "fedloom sweep exp.toml"), "simulate", "exp.toml")


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("algorithms", "scaffold"),
        ("attacks", "sign-flip"),
        ("networks", "mobile"),
        ("plans", "vmap"),
        ("codecs", "int1 ... int8"),
        ("privacy", "skellam"),
    ],
)
def test_the_catalogue_knows_the_names(what, word, capsys):
    assert run("list", what) == 0
    assert word in capsys.readouterr().out


def test_the_help_names_every_key_of_the_configuration(capsys):
    from fedloom.config.values import flags

    assert run("simulate", "--help") == 0
    said = capsys.readouterr().out
    for name in flags():
        assert name == "data" or f"--{name.replace('_', '-')} " in said
