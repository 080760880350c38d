"""A member's part: what was handed out is what is read, with its classes and scale."""

import json

import numpy as np
import pytest

from fedloom.data.readers import read
from fedloom.data.sources import load, load_evaluation
from fedloom.errors import DataError, UsageError

TRAIN, TEST = load("digits"), load("digits", "test")


def write(folder, name="ana", train=TRAIN, test=TEST, about=True):
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}_X.npy", train.x)
    np.save(folder / f"{name}_Y.npy", train.y)
    if test is not None:
        np.save(folder / "x_test_fed.npy", test.x)
        np.save(folder / "y_test_fed.npy", test.y)
    if about:
        said = {"client": name, "class_names": train.class_names, "high": train.high}
        (folder / "member.json").write_text(json.dumps(said))
    return folder


def test_shapes_dtypes_classes_and_scale_are_kept(tmp_path):
    few = TRAIN.take(TRAIN.y < 3)
    back, back_test = read(write(tmp_path / "ana", train=few))
    for dataset, expected in ((back, few), (back_test, TEST)):
        np.testing.assert_array_equal(dataset.x, expected.x)
        assert dataset.x.dtype == np.uint8
        np.testing.assert_array_equal(dataset.y, expected.y)
        assert (dataset.class_names, dataset.high) == (expected.class_names, 16.0)
    np.testing.assert_array_equal(load_evaluation(tmp_path / "ana").y, TEST.y)


def test_a_part_without_its_description_is_read_from_its_numbers(tmp_path):
    train, test = read(write(tmp_path / "ana", about=False))
    assert train.class_names == test.class_names == tuple("0123456789")
    assert train.high == test.high == 16.0


def test_a_part_without_test_samples(tmp_path):
    assert read(write(tmp_path / "ana", test=None))[1] is None


def test_what_is_wrong_with_a_part_is_named(tmp_path):
    (write(tmp_path / "a", "a") / "a_Y.npy").unlink()
    with pytest.raises(DataError, match=r"a_Y\.npy: no such file"):
        read(tmp_path / "a")
    write(tmp_path / "b", "b")
    write(tmp_path / "b", "c")
    with pytest.raises(DataError, match=r"found b_X\.npy, c_X\.npy"):
        read(tmp_path / "b")
    with pytest.raises(UsageError, match="unknown option"):
        read(f"{tmp_path / 'b'}:high=255")


@pytest.mark.parametrize("said", [{}, {"class_names": "abc", "high": 1}, {"class_names": ["0"], "high": "x"}])
def test_an_edited_description_is_refused(tmp_path, said):
    write(tmp_path / "d")
    (tmp_path / "d" / "member.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match=r"member\.json: class_names, high"):
        read(tmp_path / "d")
