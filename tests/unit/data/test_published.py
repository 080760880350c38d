"""MNIST and Fashion-MNIST: every usual place is looked at, every byte verified, a closed network explained."""

import gzip
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedloom.data import published
from fedloom.data.published import PUBLISHED, STEMS, cache_dir, load_published
from fedloom.data.sources import load, load_evaluation
from fedloom.errors import DataError

ROOT = Path(os.environ.get("FEDLOOM_DATA", "/nowhere"))
DEAD = ["http://127.0.0.1:9/"]

pytestmark = pytest.mark.mnist
needs_files = pytest.mark.skipif(
    not all((ROOT / name / f"{stem}.gz").exists() for name in PUBLISHED for pair in STEMS.values() for stem in pair),
    reason="FEDLOOM_DATA names no folder with mnist/ and fashion-mnist/",
)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine where nothing is found: an empty home, no environment, an empty working folder."""
    for name in ("FEDLOOM_DATA", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def copy(folder, name="mnist", unpack=False, dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in STEMS["test"]:
        source = ROOT / name / f"{stem}.gz"
        target = stem.replace("-idx", ".idx") if dotted else stem
        if unpack:
            (folder / target).write_bytes(gzip.decompress(source.read_bytes()))
        else:
            shutil.copy(source, folder / f"{target}.gz")


@needs_files
@pytest.mark.parametrize(("name", "first"), [("mnist", [5, 0, 4, 1]), ("fashion-mnist", [9, 0, 0, 3])])
def test_the_real_files(name, first):
    start = time.perf_counter()
    train = load(name, data_dir=ROOT, download=False)
    seconds = time.perf_counter() - start
    assert (train.x.shape, train.x.dtype, train.high) == ((60_000, 28, 28), np.uint8, 255.0)
    assert train.y[:4].tolist() == first
    assert set(train.counts().tolist()) == {6000} if name == "fashion-mnist" else train.counts().sum() == 60_000
    assert train.x.flags.writeable
    assert seconds < 5  # 0.25 s here; the bound is for a loaded machine
    test = load_evaluation(name, ROOT)
    assert len(test) == 10_000
    assert load(name, "all", ROOT).x.shape == (70_000, 28, 28)


@needs_files
@pytest.mark.parametrize(
    ("where", "kwargs"),
    [
        ("given/mnist", {}),
        ("given", {}),
        ("given", {"unpack": True}),
        ("given", {"unpack": True, "dotted": True}),
        ("given/MNIST/raw", {"unpack": True}),
        ("home/.keras/datasets/mnist", {}),
        ("home/data/MNIST/raw", {}),
        ("work/data/MNIST/raw", {}),
        ("cache/fedloom/mnist", {}),
    ],
)
def test_every_usual_place_is_looked_at(bare, where, kwargs):
    copy(bare / where, **kwargs)
    test = load_published("mnist", "test", bare / "given", download=False)
    assert test.y[:3].tolist() == [7, 2, 1]
    with pytest.raises(DataError, match="no files in"):
        load_published("mnist", "train", bare / "given", download=False)


@needs_files
def test_the_environment_and_the_archive_of_keras(bare, monkeypatch):
    copy(bare / "env" / "fashion-mnist", "fashion-mnist")
    monkeypatch.setenv("FEDLOOM_DATA", str(bare / "env"))
    fashion = load_published("fashion-mnist", "test", download=False)
    assert fashion.class_names[fashion.y[0]] == "Ankle boot"
    mnist = load_published("mnist", "test", ROOT)
    folder = bare / "keras" / "datasets"
    folder.mkdir(parents=True)
    np.savez(folder / "mnist.npz", x_test=mnist.x, y_test=mnist.y.astype(np.uint8))
    monkeypatch.setenv("KERAS_HOME", str(bare / "keras"))
    again = load_published("mnist", "test", download=False)
    np.testing.assert_array_equal(again.x, mnist.x)
    mnist.x[7, 3, 3] ^= 1
    np.savez(folder / "mnist.npz", x_test=mnist.x, y_test=mnist.y.astype(np.uint8))
    with pytest.raises(DataError, match=r"mnist\.npz: not the published mnist file"):
        load_published("mnist", "test", download=False)


@needs_files
def test_the_one_data_set_is_never_taken_for_the_other(bare):
    copy(bare / "given", "fashion-mnist")
    with pytest.raises(DataError, match="mnist: no files in"):
        load_published("mnist", "test", bare / "given", download=False)
    assert len(load_published("fashion-mnist", "test", bare / "given", download=False)) == 10_000


@needs_files
def test_a_damaged_file_is_named(bare):
    copy(bare / "given")
    path = bare / "given" / f"{STEMS['test'][0]}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100_000])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: damaged"):
        load_published("mnist", "test", bare / "given", download=False)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1] + b"!", 1))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: not the published mnist file"):
        load_published("mnist", "test", bare / "given", download=False)


def test_a_closed_network_is_explained_in_one_line(bare):
    with pytest.raises(DataError) as error:
        load_published("mnist", "train", bare / "given", mirrors=DEAD)
    text = str(error.value)
    assert "\n" not in text
    for part in (str(bare / "given"), "--data-dir", "FEDLOOM_DATA", "train-images-idx3-ubyte.gz", DEAD[0]):
        assert part in text
    assert not list((bare / "cache").rglob("*.gz"))


@needs_files
def test_what_is_found_nowhere_is_downloaded_once_with_a_progress_bar_and_verified(bare, capsys):
    code = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=0, bind='127.0.0.1')"
    server = subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        cwd=ROOT / "mnist",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = server.stdout.readline().split("port ")[1].split()[0]
        first = load_published("mnist", "test", mirrors=[*DEAD, f"http://127.0.0.1:{port}/"])
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()
    assert sorted(p.name for p in (cache_dir() / "mnist").iterdir()) == sorted(f"{s}.gz" for s in STEMS["test"])
    assert f"{STEMS['test'][0]}.gz" in capsys.readouterr().err
    again = load_published("mnist", "test", mirrors=DEAD)
    np.testing.assert_array_equal(again.x, first.x)


def test_the_cache_folder_is_the_platforms_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "fedloom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    for platform, folder in (("linux", ".cache/fedloom"), ("darwin", "Library/Caches/fedloom")):
        monkeypatch.setattr(published.sys, "platform", platform)
        assert cache_dir() == tmp_path / folder
