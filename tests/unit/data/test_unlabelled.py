"""Inputs without labels: from labelled sources, and from files that hold nothing else."""

import numpy as np
import pytest

from fedloom.data.dataset import Dataset
from fedloom.data.sources import load_pair, load_training
from fedloom.data.unlabelled import load_unlabelled
from fedloom.errors import DataError, UsageError

IMAGES = load_pair("digits")[0].x


def test_labels_are_left_aside():
    data = load_unlabelled("digits")
    np.testing.assert_array_equal(data.x, IMAGES)
    assert data.high == 16.0
    assert data.n_classes == 1
    assert not data.y.any()


def test_of_files_with_test_samples_only_the_others_are_used(tmp_path):
    np.savez(
        tmp_path / "a.npz", x_train=IMAGES[:40], y_train=np.arange(40) % 3, x_test=IMAGES[40:60], y_test=[0, 1] * 10
    )
    assert len(load_unlabelled(tmp_path / "a.npz")) == len(load_training(tmp_path / "a.npz")) == 40


def test_a_plain_file_is_used_whole(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES[:40], y=np.arange(40) % 3)
    np.save(tmp_path / "x.npy", IMAGES[:30])
    np.save(tmp_path / "y.npy", np.arange(30) % 3)
    assert len(load_unlabelled(tmp_path / "a.npz")) == 40
    assert len(load_unlabelled(f"{tmp_path}/x.npy,{tmp_path}/y.npy")) == 30


def test_files_of_inputs_alone(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    np.savez(tmp_path / "one.npz", pictures=IMAGES)
    np.savez(tmp_path / "two.npz", good=IMAGES, other=IMAGES[:5])
    for source in (tmp_path / "x.npy", str(tmp_path / "x.npy"), tmp_path / "one.npz", f"{tmp_path}/two.npz:x=good"):
        data = load_unlabelled(source)
        np.testing.assert_array_equal(data.x, IMAGES)
        assert data.high == 16.0
    assert load_unlabelled(f"{tmp_path}/x.npy:high=255").high == 255.0
    assert load_unlabelled(f"{tmp_path}/one.npz:high=none").high is None


def test_a_data_set_is_a_source_too():
    dataset = Dataset.of(IMAGES, np.arange(len(IMAGES)) % 4, column=np.arange(len(IMAGES)))
    assert load_unlabelled(dataset).x is dataset.x


def test_the_limit_draws_by_the_seed_and_keeps_the_order():
    data = Dataset.of(np.arange(1000.0)[:, None], np.zeros(1000))
    drawn = load_unlabelled(data, limit=100).x[:, 0]
    assert len(drawn) == 100
    assert (np.diff(drawn) > 0).all()
    assert drawn[-1] > 900
    np.testing.assert_array_equal(drawn, load_unlabelled(data, limit=100).x[:, 0])
    assert drawn.tolist() != load_unlabelled(data, limit=100, seed=1).x[:, 0].tolist()
    assert len(load_unlabelled(data, limit=5000)) == 1000


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (IMAGES[:1], r"1 unlabelled sample is too few, at least 2 are needed"),
        (IMAGES[:0], r"no samples \(x has shape \(0, 8, 8\)\)"),
        (np.arange(30), r"x has shape \(30,\), one row per sample is expected"),
        (
            np.array([[[0.0, np.nan]], [[1.0, 0.5]]]),
            r"1 value is NaN or infinite, the first in row 0, position \(0, 1\)",
        ),
        (np.array([["a", "b"]] * 3), r"x holds values of type <U1, numbers are expected"),
        (np.float64(3.0), r"x has shape \(\), one row per sample is expected"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_bad_arrays_are_refused_with_the_file(tmp_path, array, message, suffix):
    path = tmp_path / f"bad{suffix}"
    np.savez(path, x=array) if suffix == ".npz" else np.save(path, array)
    with pytest.raises(DataError, match=message) as error:
        load_unlabelled(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_bad_sources_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", one=IMAGES, two=IMAGES, three=IMAGES)
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:1000])
    for source, message in [
        ("absent.npy", "absent.npy: no such file"),
        (f"{tmp_path}/absent.npz", "absent.npz: no such file"),
        (f"{tmp_path}/a.npz", "which arrays are inputs and labels"),
        (f"{tmp_path}/a.npz:x=four", r"no array 'four' for x \(found: one, two, three\)"),
        (f"{tmp_path}/objects.npy", "never unpickled"),
        (f"{tmp_path}/torn.npz", "damaged"),
    ]:
        with pytest.raises(DataError, match=message):
            load_unlabelled(source)
    with pytest.raises(UsageError, match=r"unknown option of an \.npy file 'label'"):
        load_unlabelled(f"{tmp_path}/x.npy:label=a")
    with pytest.raises(UsageError, match="unknown data set 'mnsit'"):
        load_unlabelled("mnsit")
    with pytest.raises(UsageError, match="a limit of 1 unlabelled samples: at least 2 are needed"):
        load_unlabelled("digits", limit=1)


@pytest.mark.mnist
def test_mnist_means_its_training_images():
    data = load_unlabelled("mnist", limit=1000, download=False)
    assert data.x.shape == (1000, 28, 28)
    assert len(load_training("mnist", download=False)) == 60000
