"""The whole gallery: its page, its numbers, and its command."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import fedloom
from fedloom.cli import main
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError, StorageError, UsageError
from fedloom.leakage import lessons as training
from fedloom.leakage.gallery import Scene
from fedloom.leakage.inversion import Effort
from fedloom.leakage.page import png
from fedloom.leakage.protections import PROTECTIONS
from fedloom.models import io
from fedloom.training.local import LocalConfig


@pytest.fixture(scope="module")
def short():
    """Lessons of one epoch."""
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "REFERENCES", 1)
    lessons = [training.Lesson(o.name, o.title, o.many, LocalConfig(1, 100), o.privacy) for o in training.LESSONS]
    patch.setattr(training, "LESSONS", tuple(lessons))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def found(short, tmp_path_factory):
    """The gallery on the digits, with little effort."""
    folder = tmp_path_factory.mktemp("leak") / "out"
    return fedloom.leak("digits", model="2nn", out=folder, effort=Effort(20, 1), progress=False)


def test_the_gallery_shows_that_noise_and_crowds_hide(found):
    by = {attempt.protection.name: attempt for attempt in found.divisions}
    assert by["plain"].psnr[0] > 60
    assert by["clipped"].psnr[0] > 60
    assert by["noise-1"].verdict == "nothing"
    assert by["sum-of-100"].psnr[0] < by["plain"].psnr[0] - 30
    assert by["sum-of-100"].pictures == 100
    assert [a.protection for a in found.searches] == list(PROTECTIONS)
    assert by["plain"].labels == 1


def test_the_page_needs_nothing_but_itself(found):
    page = found.report.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4 * len(PROTECTIONS)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    body = re.sub(r"<style>.*?</style>|<script>.*?</script>|base64,[^\"]*", "", page, flags=re.DOTALL)
    assert not re.search(r"\bnan\b|\binf\b|None", body)
    for heading in ("From an update back to the picture", "Without any search", "What helps, and what it costs"):
        assert heading in page


def test_the_numbers_are_there_and_strict_json(found):
    kept = json.loads((found.folder / "leak.json").read_text(), parse_constant=pytest.fail)
    assert [row["protection"]["name"] for row in kept["inversion"]] == [p.name for p in PROTECTIONS]
    assert [row["name"] for row in kept["membership"]] == ["few", "few-private", "many", "many-private"]
    assert kept["inversion"][0]["psnr"] == pytest.approx(found.searches[0].psnr.tolist())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="was not made by"):
        fedloom.leak("digits", out=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("code", "word", "arguments"),
    [
        (2, "unknown data set", ("digit",)),
        (2, "unknown model", ("digits", "--model", "lenett")),
        (2, "9 images", ("digits", "--images", "9")),
        (2, "is not a valid integer", ("digits", "--images", "x")),
        (7, "is a file", ("digits", "--out", "file")),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, code, word, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as done:
        main(["leak", *arguments, "--quiet"])
    said = capsys.readouterr().err
    assert done.value.code == code
    assert said.count("\n") == 1
    assert word in said


def test_tables_and_small_data_are_refused(tmp_path):
    table = Dataset.of(np.random.default_rng(0).normal(size=(300, 5)), np.arange(300) % 3)
    with pytest.raises(UsageError, match="no pictures"):
        fedloom.leak(table, out=tmp_path / "a", progress=False)
    pictures = Dataset.of(np.zeros((50, 8, 8), dtype=np.uint8), np.arange(50) % 2)
    with pytest.raises(DataError, match="50 samples"):
        Scene.of(io.create("2nn", pictures, 0), pictures, 1, 0)


def test_a_victim_has_pictures_of_different_classes():
    data = fedloom.load_data("digits")
    scene = Scene.of(io.create("2nn", data, 0), data, 4, 1)
    assert len(set(data.y[scene.victim])) == 4
    assert len(scene.others) == 99
    assert not set(scene.others) & set(scene.victim)


def test_lessons_without_private_training_say_why(short):
    data = fedloom.load_data("digits")
    model = io.create("mlp", data, 0)
    made = list(training.lessons(model, model.vector(), data))
    assert [isinstance(one, str) for one in made] == [False, True, False, True]
    assert "batch" in made[1]


def test_colours_and_grey_become_pictures():
    assert png(np.zeros((3, 3))).startswith("data:image/png;base64,iVBOR")
    assert png(np.full((3, 3, 1), np.nan)) == png(np.zeros((3, 3)))
    assert png(np.zeros((3, 3, 3))) != png(np.zeros((3, 3)))
