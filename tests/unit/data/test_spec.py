"""Spec: paths with options, told apart from drive letters and from files that are called like that."""

import pytest

from fedloom.data.spec import Spec, parse
from fedloom.errors import UsageError


@pytest.mark.parametrize(
    ("text", "path", "options"),
    [
        ("a.csv", "a.csv", {}),
        ("a.csv:label=kind", "a.csv", {"label": "kind"}),
        ("a.h5:x=images,y=labels", "a.h5", {"x": "images", "y": "labels"}),
        ("x.npy,y.npy", "x.npy,y.npy", {}),
        ("x.npy,y.npy:high=255", "x.npy,y.npy", {"high": "255"}),
        (r"C:\data\a.csv", r"C:\data\a.csv", {}),
        (r"C:\data\a.csv:label=the kind", r"C:\data\a.csv", {"label": "the kind"}),
        ("C:/data/x.npy,C:/data/y.npy:high=1", "C:/data/x.npy,C:/data/y.npy", {"high": "1"}),
        ("a.csv:label=http://x:y", "a.csv", {"label": "http://x:y"}),
        ("odd:name.csv", "odd:name.csv", {}),
        ("a.csv:drop=", "a.csv", {"drop": ""}),
    ],
)
def test_a_source_is_taken_apart(text, path, options):
    assert parse(text) == Spec(path, options)


def test_a_file_that_exists_wins(tmp_path):
    odd = tmp_path / "a.csv:label=b"
    odd.write_text("")
    assert parse(odd) == Spec(str(odd), {})


def test_what_is_wrong_is_refused():
    with pytest.raises(UsageError, match="'label' is given twice"):
        parse("a.csv:label=a,label=b")
    with pytest.raises(UsageError, match="empty"):
        parse("")
    with pytest.raises(UsageError, match="did you mean 'label'"):
        parse("a.csv:lable=a").expect("a CSV file", ("label", "drop"))


@pytest.mark.parametrize(("text", "high"), [("255", 255.0), ("1", 1.0), ("none", None), ("guess", "guess")])
def test_the_scale_can_be_said(text, high):
    assert parse(f"a.npz:high={text}").high() == high


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much", ""])
def test_a_scale_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="positive number"):
        parse(f"a.npz:high={text}").high()
