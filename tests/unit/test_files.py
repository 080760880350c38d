from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from fedloom import files, rng
from fedloom.errors import DataError, StorageError


def write_half(path):
    with files.atomic(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208


def test_no_space_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(StorageError, match="no space left") as caught, files.atomic(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 7
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "x").write_text("a file")
    with pytest.raises(StorageError, match="a file stands where a folder is expected"):
        files.write_text(tmp_path / "x" / "y.txt", "text")


def test_tensors_and_metadata_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"w": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor([3])}
    files.write_tensors(path, arrays, {"k": "v"})
    back, metadata = files.read_tensors(path)
    assert metadata == {"k": "v"}
    assert all(torch.equal(back[k], arrays[k]) for k in arrays)


def test_the_library_reads_every_type_and_shape_that_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    types = [getattr(torch, name.removeprefix("torch.")) for name in files._NAMES]
    arrays = {f"ä {kind}": (3 * torch.rand(5, 3)).to(kind).T for kind in types}
    arrays |= {"none": torch.zeros(0, 4), "one": torch.tensor(2.5), "part": torch.arange(9.0)[1:8:2]}
    files.write_tensors(path, arrays, {"k": 'a "text" ü'})
    found = safetensors.torch.load(path.read_bytes())
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name].double(), value.double())
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"k": 'a "text" ü'}


def test_numbers_that_the_format_does_not_have_are_named(tmp_path):
    with pytest.raises(DataError, match=r"'w' holds torch\.complex64"):
        files.write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2, dtype=torch.complex64)}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_truncated_file_is_named(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"w": torch.ones(50)}, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.safetensors: truncated"):
        files.read_tensors(path)


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"loss": float("nan"), "rows": (1.5, float("inf"))})
    assert files.read_json(tmp_path / "a.json") == {"loss": None, "rows": [1.5, None]}


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000], ids=["cut", "list", "empty", "deep"])
def test_bad_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")


def test_chance_is_the_same_in_another_process():
    code = "from fedloom import rng; print(rng.stream(7, 'a', 1).integers(1 << 40), rng.derive(7, 'a', 1))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert there.split() == [str(rng.stream(7, "a", 1).integers(1 << 40)), str(rng.derive(7, "a", 1))]


def test_paths_of_chance_do_not_collide():
    seeds = {
        rng.derive(s, *p) for s in range(3) for p in [("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1,)]
    }
    assert len(seeds) == 21


def test_what_a_kill_left_half_written_is_tidied(tmp_path):
    (tmp_path / "inside").mkdir()
    code = "import os, sys\nfrom fedloom import files\nwith files.atomic(sys.argv[1]): os.kill(os.getpid(), 9)"
    for name in ("a.toml", "inside/b.bin"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=False)
    (tmp_path / ".mine.toml").write_text("mine")
    left = [path for path in tmp_path.rglob(".*") if files.is_temporary(path)]
    assert sorted(path.suffix for path in left) == [".bin", ".toml"]
    files.tidy(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".mine.toml"]
