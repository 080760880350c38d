import io
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedloom.errors import ModelError, StorageError, UsageError
from fedloom.models.torch_files import read_state, write_state

SUFFIXES = [".pt", ".pth", ".safetensors"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def refused(path, *words):
    with pytest.raises(ModelError) as info:
        read_state(path)
    message = str(info.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    return message


def same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_state_dict_survives_and_loads_in_pytorch(tmp_path, net, suffix):
    net.train()(torch.randn(4, 1, 4, 4))
    state = net.state_dict()
    state["0.weight"] = state["0.weight"].half()
    state["3.weight"] = state["3.weight"].double()
    state["3.bias"] = state["3.bias"].bfloat16()
    path = tmp_path / ("net" + suffix)
    write_state(path, state, {"fedloom": '{"kind": "bare"}'})
    arrays, metadata = read_state(path)
    same(dict(sorted(arrays.items())), dict(sorted(state.items())))
    assert metadata == {"fedloom": '{"kind": "bare"}'}
    assert arrays["1.num_batches_tracked"].item() == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    net.load_state_dict(torch.load(path, weights_only=True) if suffix != ".safetensors" else arrays)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_metadata(tmp_path, suffix):
    write_state(tmp_path / ("a" + suffix), {"w": torch.ones(2).t().expand(3, 2).t()}, {})
    arrays, metadata = read_state(tmp_path / ("a" + suffix))
    assert arrays["w"].shape == (2, 3)
    assert metadata == {}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoints_are_unwrapped(tmp_path, net, key, legacy):
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    checkpoint = {"epoch": 3, key: net.state_dict(), "optimizer": optimizer.state_dict(), "note": "best"}
    torch.save(checkpoint, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    same(read_state(tmp_path / "a.pt")[0], net.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapper_prefixes_are_taken_off(tmp_path, net, prefix):
    state = {prefix + name: array for name, array in net.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    same(read_state(tmp_path / "a.pt")[0], net.state_dict())
    same(read_state(tmp_path / "a.pt", expected=list(state))[0], state)


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    same(read_state(tmp_path / "a.pt")[0], state)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("where", ["whole", "entry", "wrapped"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickled_code_is_never_run(tmp_path, monkeypatch, form, where):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "boom", tmp_path / "bad.pt"
    bomb = Bomb(marker)
    content = {"whole": bomb, "entry": {"w": torch.ones(2), "x": bomb}, "wrapped": {"state_dict": {"w": bomb}}}[where]
    if form == "pickle":
        path.write_bytes(pickle.dumps(bomb if where == "whole" else {"x": bomb}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_model_is_refused_with_what_to_do(tmp_path, net, legacy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(net, tmp_path / "net.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "net.pt", "torch.nn.modules.container.Sequential", "torch.save(model.state_dict(), 'net.pt')")


def test_a_torchscript_program_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "s.pt"))
    refused(tmp_path / "s.pt", "TorchScript", "state_dict")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ["no arrays"]),
        ([torch.ones(1)], ["a list"]),
        (torch.ones(3), ["a Tensor"]),
        ({"epoch": 1, "loss": 0.5}, ["'epoch'", "int"]),
        ({"w": torch.ones(1), "epoch": 1}, ["'epoch'", "int"]),
        ({"w": torch.ones(1, dtype=torch.complex64)}, ["'w'", "complex64"]),
        ({"w": torch.eye(2).to_sparse()}, ["'w'", "sparse"]),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", *words)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncation_is_refused(tmp_path, net, suffix):
    path = tmp_path / ("net" + suffix)
    write_state(path, net.state_dict(), {})
    whole = path.read_bytes()
    for size in {0, 1, 7, 8, 9, 64, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:size])
        refused(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damage")


@settings(max_examples=150, deadline=None)
@given(legacy=st.booleans(), flips=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=6))
def test_damaged_bytes_give_arrays_or_one_line(folder, legacy, flips):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3, 2), "n": torch.tensor(3)}, buffer, _use_new_zipfile_serialization=not legacy)
    data = bytearray(buffer.getvalue())
    for place, value in flips:
        data[place % len(data)] = value
    path = folder / "damaged.pt"
    path.write_bytes(data)
    message = str(path)
    try:
        read_state(path)
    except ModelError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_foreign_and_missing_files(tmp_path, suffix):
    path = tmp_path / ("a" + suffix)
    refused(path, "no such file")
    path.write_text("<html>404</html>" * 50)
    refused(path)
    path.unlink()
    path.mkdir()
    refused(path)


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.ptt.*did you mean '\.pt"):
        read_state(tmp_path / "a.ptt")
    with pytest.raises(UsageError):
        write_state(tmp_path / "a", {}, {})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / ("a" + suffix)
    write_state(path, {"w": torch.ones(1)}, {})
    (tmp_path / "plain").write_text("")
    with pytest.raises(StorageError):
        write_state(tmp_path / "plain" / path.name, {"w": torch.zeros(1)}, {})
    assert read_state(path)[0]["w"].item() == 1


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, full_disk, suffix):
    with full_disk(4096), pytest.raises(StorageError, match="cannot write"):
        write_state(str(tmp_path / "a") + suffix, {"w": torch.zeros(10000)}, {})
    assert list(tmp_path.iterdir()) == []
