"""A folder of images per class."""

import numpy as np
import pytest
from PIL import Image

from fedloom.data.readers import read
from fedloom.errors import DataError, UsageError

RNG = np.random.default_rng(0)


def save(path, shape=(6, 5), mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return pixels


def test_grey_images_come_back_by_sorted_class(tmp_path):
    pixels = [save(tmp_path / "dog" / "1.png"), save(tmp_path / "cat" / "b.png"), save(tmp_path / "cat" / "a.png")]
    (tmp_path / "cat" / ".DS_Store").touch()
    (tmp_path / "readme.txt").touch()
    dataset, test = read(tmp_path)
    np.testing.assert_array_equal(dataset.x, np.stack([pixels[2], pixels[1], pixels[0]]))
    assert (dataset.x.dtype, dataset.y.tolist(), dataset.class_names) == (np.uint8, [0, 0, 1], ("cat", "dog"))
    assert (dataset.high, test) == (255.0, None)


def test_one_coloured_image_makes_all_of_them_rgb(tmp_path):
    grey, coloured = save(tmp_path / "a" / "1.png"), save(tmp_path / "b" / "1.png", (6, 5, 3))
    dataset, _ = read(tmp_path)
    np.testing.assert_array_equal(dataset.x, [np.stack([grey] * 3, axis=-1), coloured])
    assert read(f"{tmp_path}:color=grey")[0].x.shape == (2, 6, 5)
    assert read(f"{tmp_path}:color=rgb,size=7x9")[0].x.shape == (2, 9, 7, 3)


def test_transparency_and_palettes_become_rgb(tmp_path):
    save(tmp_path / "a" / "1.png", (6, 5, 4))
    save(tmp_path / "a" / "2.gif", (6, 5, 3), "P")
    assert read(tmp_path)[0].x.shape == (2, 6, 5, 3)


def test_train_and_test_folders(tmp_path):
    for part, label in (("train", "a"), ("train", "b"), ("test", "b")):
        save(tmp_path / part / label / "1.png")
    train, test = read(tmp_path)
    assert (train.y.tolist(), test.y.tolist()) == ([0, 1], [1])
    assert train.class_names == test.class_names == ("a", "b")
    save(tmp_path / "test" / "c" / "1.png")
    with pytest.raises(DataError, match=r"'c' is none of the classes \(a, b\)"):
        read(tmp_path)


def test_resized_test_images_have_the_size_of_the_others(tmp_path):
    save(tmp_path / "train" / "a" / "1.png")
    save(tmp_path / "test" / "a" / "1.png", (9, 9))
    with pytest.raises(DataError, match=r"images of 9x9, those in train have 5x6"):
        read(tmp_path)
    train, test = read(f"{tmp_path}:size=4x8")
    assert train.x.shape == test.x.shape == (1, 8, 4)


def test_sizes_that_differ_are_refused_with_both_and_the_way_out(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "a" / "2.png", (7, 5))
    with pytest.raises(DataError, match=r"2\.png: 5x7 pixels, but .*1\.png has 5x6; resize them: .*:size=5x6"):
        read(tmp_path)
    assert read(f"{tmp_path}:size=28")[0].x.shape == (2, 28, 28)


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_a_damaged_image_is_named(tmp_path, cut):
    save(tmp_path / "a" / "1.png", (40, 40))
    save(tmp_path / "a" / "2.png", (40, 40))
    path = tmp_path / "a" / "2.png"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"2\.png: a damaged image"):
        read(tmp_path)


def test_sixteen_bits_are_not_cut_to_eight(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 60_000, dtype=np.uint16)).save(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match=r"1\.png: more than 8 bits"):
        read(tmp_path)


def test_a_class_without_images_is_refused(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"no images .* of class 'b'"):
        read(tmp_path)


@pytest.mark.parametrize("options", ["size=0", "size=4x", "size=axb", "size=-3x4", "size=99999", "color=blue"])
def test_options_that_are_none_are_refused(tmp_path, options):
    save(tmp_path / "a" / "1.png")
    if options == "size=4x":
        assert read(f"{tmp_path}:{options}")[0].input_shape == (4, 4)
        return
    with pytest.raises(UsageError, match="is expected"):
        read(f"{tmp_path}:{options}")
