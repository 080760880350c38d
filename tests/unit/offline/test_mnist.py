"""The exercise that teams do by hand, on MNIST: with a shared start the average of five models works, without it fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedloom.offline.compare import compare
from fedloom.offline.split import split
from fedloom.offline.train import train

FOLDER = Path(os.environ.get("FEDLOOM_DATA", "/nowhere")) / "mnist"

pytestmark = [
    pytest.mark.mnist,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="FEDLOOM_DATA names no folder with mnist/"),
]


def test_five_members_one_merge(tmp_path):
    made = split("mnist", 5, out=tmp_path / "parts", model="2nn")
    found = {}
    for fresh in (False, True):
        files = []
        for name in made.members:
            out = tmp_path / f"fresh-{fresh}" / f"{name}.keras"
            files.append(train(made.out / name, 2, batch_size=64, fresh_start=fresh, out=out).path)
        found[fresh] = compare(files, "mnist", methods=["fedavg", "median", "ensemble"], out=None, progress=False)
    shared, apart = ({row.name: row.counts.accuracy for row in found[fresh].rows} for fresh in (False, True))
    members = [row.counts.accuracy for row in found[True].rows if row.kind == "member"]
    assert min(members) > 0.91
    assert min(shared["fedavg"], shared["median"]) > 0.93
    assert max(apart["fedavg"], apart["median"]) < min(members) - 0.2
    assert apart["ensemble"] > min(members)
    assert found[True].findings[0].level == "problem"
    assert "start" in found[True].findings[0].title
    assert all(finding.level in ("good", "info") for finding in found[False].findings)
