"""The command line in this process, and a small team that it made from the embedded digits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import NAMES, run, tree

Refuse = Callable[..., str]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with parts/, each member trained, and the test set as a pair of files. Not to be changed."""
    folder = tmp_path_factory.mktemp("journey")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run("split", "digits", "--names", ",".join(NAMES), "--model", "2nn", "--out", "parts") == 0
        for name in NAMES:
            assert run("train", f"parts/{name}", "--epochs", "3", "--lr", "3e-3", "--batch-size", "16") == 0
            shutil.copy(f"parts/{name}/{name}.keras", ".")
            shutil.copy(f"parts/{name}/{name}.json", ".")
        shutil.copy("parts/ana/x_test_fed.npy", "x_test.npy")
        shutil.copy("parts/ana/y_test_fed.npy", "y_test.npy")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def team(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change, and the folder that the test stands in."""
    shutil.copytree(made, tmp_path / "team")
    monkeypatch.chdir(tmp_path / "team")
    return tmp_path / "team"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test stands in."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Check that a command line is refused: exit code, one line that says why, and not one file touched."""

    def check(code: int, words: tuple[str, ...], *arguments: object) -> str:
        capsys.readouterr()
        before = tree(Path.cwd())
        assert run(*arguments) == code
        said = capsys.readouterr()
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("fedloom: ")
        assert said.out == ""
        for word in words:
            assert word in said.err, said.err
        assert tree(Path.cwd()) == before
        return said.err

    return check


@pytest.fixture
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The first 200 of scikit-learn's digits: x (200, 8, 8) of 0 to 16, y (200,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images[:200], data.target[:200]
