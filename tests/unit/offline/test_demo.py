from __future__ import annotations

import pytest

from fedloom.errors import StorageError, UsageError
from fedloom.offline import demo as module
from fedloom.offline.demo import MARK, Plan, demo
from fedloom.report.comparison import Comparison


def test_the_demo_runs_the_journey_and_writes_one_page(tmp_path, monkeypatch):
    monkeypatch.setitem(module.PLANS, "digits", Plan(3, 1, rounds=2, batch_size=16, lr=3e-3))
    monkeypatch.setattr(module, "NAMES", ("ana", "luis", "carmen"))
    made = demo(out=tmp_path / "d", model="2nn", progress=False)
    assert made.report == tmp_path / "d" / "report.html"
    assert Comparison.load(tmp_path / "d") == made.comparison
    names = {row.name: row for row in made.comparison.rows}
    assert {"ana", "fedavg", "krum", "ensemble", "central", "2 rounds", "fedavg, own starts"} <= set(names)
    assert [r.round for r in made.comparison.rounds] == [1, 2]
    assert made.comparison.rounds[-1].accuracy == names["2 rounds"].counts.accuracy
    assert names["2 rounds"].counts.accuracy > names["fedavg, own starts"].counts.accuracy + 0.2
    assert names["aligned, own starts"].counts.accuracy > names["fedavg, own starts"].counts.accuracy + 0.2
    titles = [f.title for f in made.comparison.findings]
    assert "What the rounds reached" in titles
    assert "Without a shared start the merge fails" in titles
    assert (tmp_path / "d" / "different-starts" / "report.html").is_file()
    assert not made.comparison.refused
    stray = tmp_path / "d" / "stray"
    stray.write_text("of an earlier demo")
    monkeypatch.setattr(module, "split", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        demo(out=tmp_path / "d")
    assert [p.name for p in (tmp_path / "d").iterdir()] == [MARK]


def test_a_folder_that_is_not_the_demos_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="was not made by 'fedloom demo'"):
        demo(out=tmp_path)
    with pytest.raises(StorageError, match=r"thesis\.tex is a file"):
        demo(out=tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_data_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match=r"cifar10.*digits, mnist, fashion-mnist"):
        demo("cifar10", tmp_path / "d")
    assert not (tmp_path / "d").exists()
