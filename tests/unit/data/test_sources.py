"""Sources: names and paths give the same kind of data, split the same way each time."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedloom.data.dataset import Dataset
from fedloom.data.sources import join, load, load_evaluation, load_pair
from fedloom.errors import DataError, UsageError


def test_digits_are_scikit_learns_split_stratified():
    train, test = load_pair("digits")
    assert (train.x.shape, test.x.shape, train.x.dtype, train.high) == ((1438, 8, 8), (359, 8, 8), np.uint8, 16.0)
    digits = load_digits()
    together = load("digits", "all")
    rows = {(*image.ravel(), label) for image, label in zip(together.x, together.y, strict=True)}
    assert rows == {(*image.ravel(), label) for image, label in zip(digits.images, digits.target, strict=True)}
    assert (np.abs(test.counts() - np.bincount(digits.target) * 359 / 1797) < 1).all()
    np.testing.assert_array_equal(load("digits", "test").x, test.x)
    np.testing.assert_array_equal(load("digits", "train").y, train.y)


def test_the_test_digits_are_pinned():
    assert load("digits", "test").y[:12].tolist() == [3, 1, 2, 7, 8, 9, 9, 7, 0, 2, 7, 2]


def test_a_plain_file_is_split_for_training_and_whole_for_evaluation(tmp_path):
    x, y = np.arange(50.0)[:, None] * 100, np.arange(50) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    train, test = load_pair(tmp_path / "a.npz")
    assert (len(train), len(test)) == (40, 10)
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == x[:, 0].tolist()
    assert len(load(tmp_path / "a.npz")) == 40
    assert len(load(tmp_path / "a.npz", "test")) == 10
    assert len(load(tmp_path / "a.npz", "test", test_fraction=0.5)) == 25
    assert load_pair(tmp_path / "a.npz", seed=1)[1].x.tolist() != test.x.tolist()
    assert len(load(tmp_path / "a.npz", "all")) == len(load_evaluation(tmp_path / "a.npz")) == 50


def test_test_samples_that_a_file_sets_apart_are_used(tmp_path):
    x, y = np.arange(50.0)[:, None], np.arange(50) % 2
    np.savez(tmp_path / "a.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])
    assert len(load(tmp_path / "a.npz")) == 45
    assert len(load(tmp_path / "a.npz", "test")) == len(load_evaluation(tmp_path / "a.npz")) == 5
    np.testing.assert_array_equal(load(tmp_path / "a.npz", "all").x, x)


def test_a_data_set_is_a_source_too():
    dataset = Dataset.of(np.zeros((10, 1)), [0, 1] * 5, column=list("ab" * 5))
    assert load(dataset, "all") is load_evaluation(dataset) is dataset
    assert len(load(dataset, "test")) == 2
    assert load(dataset).column.shape == (8,)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("mnst", UsageError, "did you mean 'mnist'"),
        ("fashion_mnist", UsageError, "did you mean 'fashion-mnist'"),
        ("absent.csv", DataError, "no such file or folder"),
        ("some/folder", DataError, "no such file or folder"),
        ("", UsageError, "empty"),
    ],
)
def test_what_is_not_there_is_said(source, kind, message):
    with pytest.raises(kind, match=message):
        load(source)


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="unknown split 'tets': did you mean 'test'"):
        load("digits", "tets")


def test_join_refuses_what_does_not_belong_together():
    with pytest.raises(DataError, match="cannot be joined"):
        join(Dataset.of(np.zeros((2, 1)), [0, 1]), Dataset.of(np.zeros((2, 2)), [0, 1]))


def test_reading_data_loads_neither_torch_nor_keras():
    code = (
        "import sys; from fedloom.data.sources import load; load('digits'); "
        "print([m for m in ('torch', 'keras', 'matplotlib', 'h5py', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
