"""``fedloom explain`` on the command line."""

from __future__ import annotations

import torch
from command_line import run

from fedloom.models import io

THREE = ("ana.keras", "luis.keras", "carmen.keras")
MODEL, DATA = 4, 3


def write(name, weights):
    vectors = torch.stack([io.load(f).vector() for f in THREE])
    io.save(io.load(THREE[0]).load(torch.tensor(weights) @ vectors), name)


def test_a_plain_mean(team, capsys):
    write("global.keras", [1 / 3, 1 / 3, 1 / 3])
    assert run("explain", "global.keras", *THREE) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "good: global is the plain mean of the 3 members." in said.out
    for name in ("ana", "luis", "carmen"):
        assert f"{name:14}   0.333" in said.out


def test_a_slip_of_sign(team, capsys):
    write("global.keras", [5 / 3, -1 / 3, -1 / 3])
    assert run("explain", "global.keras", "*.keras") == 0
    said = capsys.readouterr().out
    assert "problem: global is no average of the members: some weights are negative." in said
    assert "1.67 x ana - 0.33 x each of the others" in said
    assert "1.667" in said
    assert "-0.333" in said
    assert "fedloom merge " in said


def test_one_member_in_disguise(team, capsys):
    write("global.keras", [0.0, 1.0, 0.0])
    assert run("explain", "global.keras", *THREE) == 0
    said = capsys.readouterr().out
    assert "warning: global is luis, not a merge." in said
    assert "-0.000" not in said


def test_bad_input(team, refuse):
    write("global.keras", [0.5, 0.5, 0.0])
    refuse(DATA, ("global.keras", "at least two files", "ana.keras"), "explain", "global.keras", "ana.keras")
    refuse(2, ("Missing argument",), "explain", "global.keras")
    refuse(MODEL, ("nothing.keras", "no such file"), "explain", "nothing.keras", *THREE)
    refuse(2, (".txt",), "explain", "x.txt", *THREE)


def test_another_architecture_is_named(team, refuse):
    write("global.keras", [0.5, 0.5, 0.0])
    assert run("split", "digits", "-n", 2, "--model", "mlp", "--out", "others") == 0
    members = (*THREE, "others/client-1/start.keras")
    (team / "others" / "client-1" / "start.keras").rename(team / "other.keras")
    refuse(MODEL, ("other.keras", "layer"), "explain", "global.keras", *members[:3], "other.keras")
