"""Dataset: what people have becomes one form, and what is wrong is said with row and column."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_iris

from fedloom.data.dataset import Dataset, guess_high, split_off
from fedloom.errors import DataError

DIGITS = load_digits()
IMAGES = Dataset.of(DIGITS.images.astype(np.uint8), DIGITS.target, name="digits")


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 2, 1], dtype=np.uint8),
        np.array([[0], [2], [1]]),
        np.array([0.0, 2.0, 1.0]),
        np.eye(3)[[0, 2, 1]],
        np.eye(3, dtype=bool)[[0, 2, 1]],
    ],
)
def test_labels_of_every_usual_kind_become_ids(labels):
    dataset = Dataset.of(np.zeros((3, 2)), labels)
    assert dataset.y.dtype == np.int64
    assert dataset.y.tolist() == [0, 2, 1]
    assert dataset.class_names == ("0", "1", "2")


def test_texts_become_sorted_classes_and_keep_to_the_names_that_are_given():
    texts = np.array(["pear", "apple", "pear"])
    assert Dataset.of(np.zeros((3, 2)), texts).class_names == ("apple", "pear")
    named = Dataset.of(np.zeros((3, 2)), texts, class_names=["pear", "fig", "apple"])
    assert named.y.tolist() == [0, 2, 0]
    with pytest.raises(DataError, match=r"'apple' is none of the classes \(pear, fig\)"):
        Dataset.of(np.zeros((3, 2)), texts, class_names=["pear", "fig"])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((0, 2)), [], r"no samples \(x has shape \(0, 2\)\)"),
        (np.zeros((2, 0)), [0, 1], "no samples"),
        (np.zeros((3, 2)), [0, 1], "3 inputs but 2 labels"),
        (np.zeros(3), [0, 1, 1], "one row per sample"),
        (np.zeros((2, 2), dtype=object), [0, 1], "Python objects"),
        (np.zeros((2, 2), dtype=complex), [0, 1], "complex128"),
        (np.zeros((2, 2)), [0, -1], "labels outside 0 to 0, the first is -1 in row 1"),
        (np.zeros((2, 2)), [0.5, 1], "label 0.5 in row 0 is not a whole number"),
        (np.zeros((2, 2)), [0, np.nan], "label nan in row 1"),
        (np.zeros((2, 2)), np.array([0, None]), "labels holds Python objects"),
        (np.zeros((2, 2)), [[1, 0], [1, 1]], "not one-hot: row 1"),
        (np.zeros((2, 2)), np.zeros((2, 2, 2), dtype=int), r"labels of shape \(2, 2, 2\)"),
        (np.zeros((2, 2)), [0, 2_000_000], "labels up to 2000000 are no class numbers"),
    ],
)
def test_bad_data_are_refused_in_one_line(x, y, message):
    with pytest.raises(DataError, match=message) as error:
        Dataset.of(x, y, name="mine")
    assert str(error.value).startswith("mine: ")
    assert "\n" not in str(error.value)


def test_nan_and_infinity_are_counted_and_the_first_is_placed():
    x = np.zeros((5000, 3))
    x[4500, 2], x[4999, 0] = np.nan, -np.inf
    with pytest.raises(DataError, match="2 values are NaN or infinite, the first in row 4500, column 2"):
        Dataset.of(x, np.zeros(5000))
    with pytest.raises(DataError, match="row 4500, column 'age'"):
        Dataset.of(x, np.zeros(5000), feature_names=["a", "b", "age"])
    image = np.zeros((2, 4, 5), dtype=np.float32)
    image[1, 3, 2] = np.nan
    with pytest.raises(DataError, match=r"1 value is NaN or infinite, the first in row 1, position \(3, 2\)"):
        Dataset.of(image, [0, 1])
    with pytest.raises(DataError, match="infinite"):
        Dataset.of(np.array([[1e39]]), [0])  # no float32 can hold it


@pytest.mark.parametrize(
    ("x", "high"),
    [
        (DIGITS.images, 16.0),
        (DIGITS.data, 16.0),
        (DIGITS.images.astype(np.uint8), 16.0),
        (DIGITS.images / 16, 1.0),
        (np.full((2, 28, 28, 1), 255, dtype=np.uint8), 255.0),
        (np.full((2, 784), 255, dtype=np.uint8), 255.0),
        (np.full((2, 784), 255.0), 255.0),
        (np.full((2, 3072), 255), 255.0),
        (np.full((2, 28, 28), 254.5, dtype=np.float32), 255.0),
        (np.full((2, 28, 28), 3.5), None),
        (np.full((2, 28, 28), 60_000, dtype=np.uint16), 65535.0),
        (np.full((2, 8, 8), 60_000), None),
        (np.full((2, 28, 28), -0.5), None),
        (load_iris().data, None),
        (np.full((2, 4), 200), None),
        (np.full((2, 4), 0.3), 1.0),
        (np.full((2, 28, 28), True), 1.0),
    ],
)
def test_the_full_scale_is_guessed(x, high):
    assert guess_high(x) == high


def test_a_mismatch_of_scales_is_said():
    assert IMAGES.scale_note(16.0) is None
    assert IMAGES.scale_note(None) is None
    assert "0 to 16, the model expects 0 to 1" in IMAGES.scale_note(1.0)


def test_take_keeps_what_belongs_together():
    dataset = Dataset.of(DIGITS.images, DIGITS.target, column=DIGITS.target % 3)
    part = dataset.take([5, 1, 9], name="part")
    np.testing.assert_array_equal(part.x, DIGITS.images[[5, 1, 9]])
    assert part.y.tolist() == DIGITS.target[[5, 1, 9]].tolist()
    assert part.column.tolist() == (DIGITS.target % 3)[[5, 1, 9]].tolist()
    assert (part.class_names, part.high, part.name) == (dataset.class_names, 16.0, "part")
    assert len(dataset.take(dataset.y == 3)) == np.count_nonzero(DIGITS.target == 3)


def test_counts_have_a_place_for_classes_that_do_not_occur():
    part = IMAGES.take(IMAGES.y < 2)
    assert part.counts().tolist() == [178, 182, 0, 0, 0, 0, 0, 0, 0, 0]


def test_with_classes_fits_the_data_to_a_model():
    few = Dataset.of(np.zeros((3, 2)), [0, 1, 4])
    assert few.with_classes(7).class_names == tuple("0123456")
    with pytest.raises(DataError, match="label 4 in row 2 lies outside the model's 3 classes"):
        few.with_classes(3)


def test_feature_names_and_column_must_fit():
    with pytest.raises(DataError, match="1 feature names for 2 columns"):
        Dataset.of(np.zeros((3, 2)), [0, 1, 1], feature_names=["a"])
    with pytest.raises(DataError, match="3 inputs but 2 values of the column"):
        Dataset.of(np.zeros((3, 2)), [0, 1, 1], column=["a", "b"])


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=4, max_size=80),
    fraction=st.floats(0.15, 0.85),
    seed=st.integers(0, 99),
)
def test_split_off_is_a_stratified_partition(labels, fraction, seed):
    dataset = Dataset.of(np.arange(len(labels))[:, None], labels)
    rest, off = split_off(dataset, fraction, seed)
    assert sorted([*rest.x[:, 0], *off.x[:, 0]]) == list(range(len(labels)))
    assert len(off) == round(len(labels) * fraction)
    assert (np.abs(off.counts() - dataset.counts() * len(off) / len(dataset)) < 1).all()
    np.testing.assert_array_equal(split_off(dataset, fraction, seed)[1].x, off.x)


def test_split_off_refuses_what_would_leave_a_side_empty():
    with pytest.raises(DataError, match="2 samples are too few"):
        split_off(Dataset.of(np.zeros((2, 1)), [0, 1]), 0.1)
    with pytest.raises(DataError, match="between 0 and 1"):
        split_off(IMAGES, 1.0)
