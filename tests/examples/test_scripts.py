"""The example scripts run, in an empty folder, in a process of their own."""

from __future__ import annotations

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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_each_is_short(path):
    assert len(path.read_text().splitlines()) <= 100


def test_python_api(tmp_path):
    done = run("python_api.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "good: The members share a start" in done.stdout
    assert "central" in done.stdout
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_own_pytorch_model(tmp_path):
    done = run("own_pytorch_model.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    share = float(done.stdout.strip().splitlines()[-1].rpartition(" ")[2].rstrip("%"))
    assert share > 80


def test_simulate_algorithms(tmp_path):
    done = run("simulate_algorithms.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reached = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in done.stdout.splitlines()[:4]}
    assert min(reached[name] for name in ("fedavg", "fedprox", "scaffold")) > 80
    assert (tmp_path / "runs" / "slow" / "report.html").is_file()


def test_private_and_compressed(tmp_path):
    done = run("private_and_compressed.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {
        line.split()[0]: (float(line.split()[1].rstrip("%")), float(line.split()[2]))
        for line in done.stdout.splitlines()
    }
    assert abs(rows["secure-sums"][0] - rows["plain"][0]) < 0.5
    assert abs(rows["4-bits"][0] - rows["plain"][0]) < 3
    assert rows["largest-1-percent"][1] < rows["plain"][1] / 100
    assert rows["hidden-clients"][0] > 60
    assert done.stdout.count("epsilon") == 2


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
