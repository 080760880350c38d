"""Arrays from files: what was saved comes back, and a bad file is named in one line."""

import pickle

import h5py
import numpy as np
import pytest

from fedloom.data.readers import read
from fedloom.errors import DataError, FedloomError, UsageError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (20, 5, 4)).astype(np.uint8)
Y = RNG.integers(0, 3, 20)


def equal(dataset, x=X, y=Y):
    np.testing.assert_array_equal(dataset.x, x)
    assert dataset.x.dtype == x.dtype
    np.testing.assert_array_equal(dataset.y, y)


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("x", "y"), ""),
        (("X", "Y"), ""),
        (("x_train", "y_train"), ""),
        (("images", "labels"), ""),
        (("first", "second"), ""),
        (("y", "x"), ":x=y,y=x"),
    ],
)
def test_npz_and_hdf5_find_their_arrays(tmp_path, names, options):
    arrays = dict(zip(names, (X, Y), strict=True))
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    for suffix in ("npz", "h5"):
        dataset, test = read(f"{tmp_path / 'a'}.{suffix}{options}")
        equal(dataset)
        assert (dataset.high, test) == (255.0, None)


def test_test_samples_that_are_set_apart_share_classes_and_scale(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X[:12], y_train=Y[:12] % 2, x_test=X[12:] // 255, y_test=Y[12:])
    train, test = read(tmp_path / "a.npz")
    equal(test, X[12:] // 255, Y[12:])
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert train.high == test.high == 255.0
    texts = np.array(["b", "c", "a", "b"])
    np.savez(tmp_path / "b.npz", x_train=X[:2], y_train=texts[:2], x_test=X[2:4], y_test=texts[2:])
    train, test = read(tmp_path / "b.npz")
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert (train.y.tolist(), test.y.tolist()) == ([1, 2], [0, 1])


def test_hdf5_groups_and_texts(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scans/images"] = X
        file["scans/labels"] = ["cat" if y else "dog" for y in Y]
        file["site"] = Y
    dataset, _ = read(f"{tmp_path / 'a.h5'}:column=site")
    assert dataset.class_names == ("cat", "dog")
    equal(dataset, y=(Y == 0).astype(int))
    np.testing.assert_array_equal(dataset.column, Y)
    equal(read(f"{tmp_path / 'a.h5'}:x=/scans/images,y=site")[0])


def test_npy_pair(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.eye(3)[Y])
    dataset, test = read(f"{tmp_path}/x.npy,{tmp_path}/y.npy:high=none")
    equal(dataset)
    assert dataset.high is test is None


def test_shapes_of_test_inputs_must_be_those_of_the_others(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:, :4], y_test=Y)
    with pytest.raises(DataError, match=r"test inputs of shape \(4, 4\), the others have \(5, 4\)"):
        read(tmp_path / "a.npz")


def test_it_must_be_clear_which_arrays_are_meant(tmp_path):
    np.savez(tmp_path / "a.npz", a=X, b=Y, c=Y)
    with pytest.raises(DataError, match=r"Say so: .*a\.npz:x=NAME,y=NAME \(found: a, b, c\)"):
        read(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"no array 'd' for y \(found: a, b, c\)"):
        read(f"{tmp_path / 'a.npz'}:x=a,y=d")
    with pytest.raises(UsageError, match="x and y are given together"):
        read(f"{tmp_path / 'a.npz'}:x=a")
    with pytest.raises(UsageError, match="did you mean 'x_test'"):
        read(f"{tmp_path / 'a.npz'}:xtest=a")


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_nothing_is_unpickled(tmp_path):
    objects = np.array([Trap(), Trap()], dtype=object)
    np.save(tmp_path / "x.npy", objects)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "a.npz", x=objects, y=Y[:2])
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Trap()))
    for source in (f"{tmp_path}/x.npy,{tmp_path}/y.npy", f"{tmp_path}/a.npz", f"{tmp_path}/raw.npz"):
        with pytest.raises(DataError, match="never unpickled"):
            read(source)
    with pytest.raises(DataError, match=r"a\.npz: array 'x'"):
        read(tmp_path / "a.npz")
    assert not Trap.sprung


@pytest.mark.parametrize("cut", [0, 1, 60, 300])
@pytest.mark.parametrize("suffix", ["npz", "h5", "npy"])
def test_cut_and_foreign_files_are_named(tmp_path, suffix, cut):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        np.savez(path, x=X, y=Y)
    elif suffix == "npy":
        np.save(path, X)
        np.save(tmp_path / "y.npy", Y)
    else:
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = X, Y
    source = f"{path},{tmp_path}/y.npy" if suffix == "npy" else str(path)
    read(source)
    whole = path.read_bytes()
    for data in (whole[:cut], b"\0" * cut + whole[cut // 2 :][::-1]):
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            read(source)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=X, y=Y)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz"):
        read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.npz", "no such file or folder"),
        ("absent.npy,absent.npy", "no such file"),
        ("a.npy", r"give both: X\.npy,Y\.npy"),
        ("a.xyz", "no reader for '.xyz'"),
        ("empty", "no folders in it"),
    ],
)
def test_paths_that_cannot_be_read(tmp_path, name, message):
    (tmp_path / "a.npy").touch()
    (tmp_path / "a.xyz").touch()
    (tmp_path / "empty").mkdir()
    source = ",".join(str(tmp_path / part) for part in name.split(","))
    with pytest.raises(FedloomError, match=message) as error:
        read(source)
    assert isinstance(error.value, DataError | UsageError)
