from __future__ import annotations

import sys

import pytest
from chains import LAYOUT

from fedloom import compress
from fedloom.compress import CODECS, parse
from fedloom.errors import MissingDependency, UsageError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("int4", "int4:1024"),
        ("int:4:16", "int4:16"),
        ("int:bits=4", "int4:1024"),
        (" topk:1% |int8| zstd ", "topk:0.01 | int8:1024 | zstd:3"),
        ("topk:1", "topk:1 | float32"),
        ("topk:1.0", "topk:1.0 | float32"),
        ("qsgd:norm=max", "qsgd:4:512:max"),
        ("qsgd:8:bucket=64", "qsgd:8:64:l2"),
        ("zstd:-3", "float32 | zstd:-3"),
        ("rotate|rotate:4|sign", "rotate:8192 | rotate:4 | sign:1024"),
    ],
)
def test_what_is_read(text, name):
    assert parse(text).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a codec's name is missing"),
        ("topk:0.1 |", "a codec's name is missing"),
        ("topkk:0.1", "unknown codec 'topkk': did you mean 'topk'"),
        ("in8", "did you mean 'int8'"),
        ("int8 | topk:0.1", "topk cannot stand behind int8; a chain is transforms, then one number format, then"),
        ("zstd | int8", "int8 cannot stand behind zstd"),
        ("int8 | int4", "not one number format twice"),
        ("zstd | zstd", "not one lossless stage twice"),
        ("int9", "bits = 9; a whole number from 1 to 8"),
        ("int0", "bits = 0"),
        ("int", "int: bits is missing; write it as in int4"),
        ("topk", "topk: kept is missing"),
        ("topk:0", "kept = 0"),
        ("topk:0.0", "kept = 0.0"),
        ("topk:-3", "kept = -3"),
        ("topk:nan", "kept = nan"),
        ("topk:200%", "kept = 200%"),
        ("topk:many", "a share such as 0.01 or 1%, or a count"),
        ("mask:5", "share = 5"),
        ("subsample", "share is missing"),
        ("qsgd:1", "bits = 1"),
        ("qsgd:norm=l1", "unknown norm of qsgd 'l1'"),
        ("qsgd:4:bits=4", "bits is given twice"),
        ("qsgd:buckett=4", "did you mean 'bucket'"),
        ("sign:0", "bucket = 0"),
        ("sign:3:4", "nothing is known about '4'; sign takes bucket"),
        ("float32:3", "float32 has no options"),
        ("rotate:3", "block = 3; a power of two"),
        ("zstd:20", "level = 20"),
        ("lowrank:4", "lowrank needs the shapes"),
        ("powersgd", "powersgd needs the shapes"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_matrices_come_first():
    with pytest.raises(UsageError, match="powersgd must come first"):
        parse("rotate | powersgd", LAYOUT)


def test_zstd_that_is_not_installed_is_named_before_the_first_update(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependency, match=r"fedloom\[compression\]"):
        parse("int8 | zstd")
    parse("int8")


@pytest.mark.parametrize("name", CODECS)
def test_the_table_says_what_the_stages_are(name):
    kind = CODECS[name]
    written = {"int": "int4", "topk": "topk:0.1", "randomk": "randomk:0.1", "mask": "mask:0.1"}
    codec = parse(written.get(name, "subsample:0.1" if name == "subsample" else name), LAYOUT)
    assert codec.unbiased == kind.unbiased
    assert kind.title
    assert all(option.help for option in kind.options.values())


def test_the_surface_is_there():
    assert all(hasattr(compress, name) for name in compress.__all__)
