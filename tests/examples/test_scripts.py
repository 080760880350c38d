"""The example scripts run in an empty folder: some in a process of their own, those that only train in this one."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fedloom.models import io

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
FILES = [
    ROOT / "tests" / "fixtures" / "keras" / f"{version}/mlp{suffix}"
    for version in ("tf214", "tf215")
    for suffix in (".keras", ".h5")
]


def run(script, *arguments, cwd):
    line = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / script), *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def said(monkeypatch, tmp_path, capsys):
    """Runs the ``main`` of a script here, with other arguments for its simulations; returns the lines it prints."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)

    def run(name, **other):
        script = importlib.import_module(name)
        if other:
            monkeypatch.setattr(script, "COMMON", script.COMMON | other)
        script.main()
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_each_is_short(path):
    assert len(path.read_text().splitlines()) <= 100


def test_python_api(said, tmp_path):
    text = "\n".join(said("python_api"))
    assert "good: The members share a start" in text
    assert "central" in text
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_own_pytorch_model(said):
    assert float(said("own_pytorch_model")[-1].rpartition(" ")[2].rstrip("%")) > 80


def test_simulate_algorithms(said, tmp_path):
    reached = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in said("simulate_algorithms")[:4]}
    assert min(reached[name] for name in ("fedavg", "fedprox", "scaffold")) > 80
    assert (tmp_path / "runs" / "slow" / "report.html").is_file()


def test_private_and_compressed(said):
    lines = said("private_and_compressed", clients=20, per_round=20)  # of 50: masks for all pairs take their time
    rows = {line.split()[0]: (float(line.split()[1].rstrip("%")), float(line.split()[2])) for line in lines}
    assert abs(rows["secure-sums"][0] - rows["plain"][0]) < 0.5
    assert abs(rows["4-bits"][0] - rows["plain"][0]) < 3
    assert rows["largest-1-percent"][1] < rows["plain"][1] / 100
    assert rows["hidden-clients"][0] > 60
    assert "\n".join(lines).count("epsilon") == 2


def test_merge_keras_files(tmp_path):
    done = run("merge_keras_files.py", *FILES, "global.keras", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out of 4 files" in done.stdout
    mean = sum(io.load(path).vector() for path in FILES) / len(FILES)
    assert (io.load(tmp_path / "global.keras").vector() - mean).abs().max() < 1e-6


def test_merge_keras_files_says_what_is_wrong_in_a_line(tmp_path):
    done = run("merge_keras_files.py", FILES[0], FILES[0].with_name("cnn.keras"), "global.keras", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cnn.keras does not fit" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_over_the_network(tmp_path):
    done = run("over_the_network.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sent") == 12
    assert "the simulation of it has the same bits: True" in done.stdout
