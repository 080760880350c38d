"""A small team on the embedded digits, trained once per test session (and worker)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedloom.offline.split import split
from fedloom.offline.train import train

NAMES = ("ana", "luis", "carmen")


@dataclass(frozen=True)
class Team:
    parts: Path
    apart: Path

    @property
    def shared(self) -> list[Path]:
        return [self.parts / n / f"{n}.keras" for n in NAMES]

    @property
    def different(self) -> list[Path]:
        return [self.apart / f"{n}.keras" for n in NAMES]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Team:
    """A team of three with a shared start, and the same three from different starts. Not to be changed."""
    root = tmp_path_factory.mktemp("team")
    parts, apart = root / "parts", root / "apart"
    split("digits", names=NAMES, out=parts, model="2nn", seed=3)
    for name in NAMES:
        train(parts / name, 4, batch_size=16, lr=3e-3)
        train(parts / name, 4, batch_size=16, lr=3e-3, fresh_start=True, out=apart / f"{name}.keras")
    return Team(parts, apart)


@pytest.fixture
def team(trained, tmp_path) -> Team:
    """A copy of the team that a test may change."""
    shutil.copytree(trained.parts.parent, tmp_path / "team")
    return Team(tmp_path / "team" / "parts", tmp_path / "team" / "apart")
