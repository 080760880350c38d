"""The command line, run in this process."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from fedloom.cli import main

NAMES = ("ana", "luis", "carmen")
COMMAND = [sys.executable, "-m", "fedloom"]


def run(*arguments: object) -> int:
    """Run a command line; returns its exit code."""
    with pytest.raises(SystemExit) as done:
        main([str(a) for a in arguments])
    assert isinstance(done.value.code, int)
    return done.value.code


def tree(folder: Path) -> dict[str, str]:
    """The checksum of every file below a folder, hidden ones included."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
