"""Tables: numbers and categories become features; a bad cell is named by line and column."""

import csv

import numpy as np
import pytest
from sklearn.datasets import load_iris

from fedloom.data.readers import read
from fedloom.errors import DataError, UsageError

IRIS = load_iris()
NAMES = ["sepal length", "sepal width", "petal length", "petal width"]
SPECIES = IRIS.target_names[IRIS.target]


@pytest.fixture
def table(tmp_path):
    def write(text, options="", name="t.csv"):
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return f"{tmp_path / name}{options}"

    return write


def iris_csv(path, delimiter=",", labels=SPECIES):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow([*NAMES, "species"])
        writer.writerows([*row, label] for row, label in zip(IRIS.data, labels, strict=True))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_real_table_comes_back(tmp_path, delimiter):
    iris_csv(tmp_path / "iris.csv", delimiter)
    dataset, test = read(f"{tmp_path / 'iris.csv'}:label=species")
    np.testing.assert_array_equal(dataset.x, IRIS.data.astype(np.float32))
    np.testing.assert_array_equal(dataset.y, IRIS.target)
    assert dataset.class_names == ("setosa", "versicolor", "virginica")
    assert dataset.feature_names == tuple(NAMES)
    assert dataset.high is test is None


def test_the_fast_path_for_numbers_gives_what_the_slow_path_gives(tmp_path):
    iris_csv(tmp_path / "numbers.csv", labels=IRIS.target)
    iris_csv(tmp_path / "texts.csv", labels=[f"class {t}" for t in IRIS.target])
    fast, _ = read(f"{tmp_path / 'numbers.csv'}:label=species")
    slow, _ = read(f"{tmp_path / 'texts.csv'}:label=species")
    np.testing.assert_array_equal(fast.x, slow.x)
    np.testing.assert_array_equal(fast.y, slow.y)
    assert fast.class_names == ("0", "1", "2")


def test_categories_become_one_hot_columns_with_names(table):
    dataset, _ = read(table("colour,size,label\nred,1,a\nblue,2.5,b\nred,3,a\n"))
    assert dataset.feature_names == ("colour=blue", "colour=red", "size")
    assert dataset.x.tolist() == [[0, 1, 1], [1, 0, 2.5], [0, 1, 3]]
    coded, _ = read(table("zip,label\n10,a\n20,b\n", ":categorical=zip"))
    assert coded.feature_names == ("zip=10", "zip=20")


def test_the_column_to_split_by_is_no_feature(table):
    dataset, _ = read(table("ward,age,label\nnorth,1,0\nsouth,2,1\n", ":column=ward"))
    assert dataset.column.tolist() == ["north", "south"]
    assert dataset.feature_names == ("age",)
    numbers, _ = read(table("ward,age,label\n3,1,0\n4,2,1\n", ":column=ward"))
    assert numbers.column.tolist() == ["3", "4"]


def test_pixels_in_a_table_have_their_scale(table):
    head = ",".join(["label", *(f"p{i}" for i in range(64))])
    rows = "\n".join(",".join(["3", *["250"] * 64]) for _ in range(2))
    dataset, _ = read(table(f"{head}\n{rows}\n"))
    assert dataset.high == 255.0


def test_numbers_as_labels_keep_their_value_unless_they_are_codes(table):
    assert read(table("a,label\n1,8\n2,9\n"))[0].y.tolist() == [8, 9]
    codes, _ = read(table("a,label\n1,-1\n2,1\n3,-1\n"))
    assert (codes.y.tolist(), codes.class_names) == ([0, 1, 0], ("-1", "1"))


def test_spreadsheets(table):
    dataset, _ = read(table("\ufeffa;b;label\r\n1,5;2;x\r\n\r\n2,5;3;y\r\n"))
    assert dataset.feature_names == ("a", "b")
    assert dataset.x.tolist() == [[1.5, 2], [2.5, 3]]
    quoted, _ = read(table('"a, b",label\n"1","x, y"\n2,z\n'))
    assert quoted.feature_names == ("a, b",)
    assert quoted.class_names == ("x, y", "z")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b,label\n1,2,x\n1,,y\n3,2,x\n", "", "column 'b' has 1 missing value, in line 3"),
        ("a,label\n1,x\nNaN,y\nna,x\n", "", "column 'a' has 2 missing values, the first in line 3"),
        ("a,label\n1,2\n3,nan\n", "", "column 'label' has 1 missing value, in line 3"),
        ("a,b,label\n1,2,x\n1,2\n", "", "line 3 has 2 values for 3 columns"),
        ("a,b,label\n1,2,0\n1,2,0,4\n", "", "line 3 has 4 values for 3 columns"),
        ("a,label\n1,x\n2,y\n3o,x\n", "", "column 'a' holds numbers, but line 4 has '3o'"),
        ("a,label\n1,2.5\n", "", r"label 2\.5 in line 2, column 'label', is not a whole number"),
        ("a,label\n1e39,2\n", "", "1 value is NaN or infinite, the first in line 2, column 'a'"),
        ("a,label\n1e400,x\n", "", "infinite, the first in line 2, column 'a'"),
        ("a,label\n", "", "a header and no rows"),
        ("", "", "an empty file"),
        ("label\n1\n", "", r"one column \('label'\)"),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "", "the first line holds data"),
        ("1,2\n3,4\n", "", "the first line holds data"),
        ("a,a,label\n1,2,3\n", "", "two columns are called 'a'"),
        (",a,label\n0,2,3\n", "", r"column 1 has no name .*:drop=#1"),
        ("label,a\nx,1\n", ":drop=a", "no column is left"),
        (b"a,label\n\xff\xfe,1\n", "", "not UTF-8"),
        ('a,label\n"1,2\n', "", "line 2"),
        ("a" * 200_000, "", "field larger than field limit"),
        ("a,label\n1," + "x" * 200_000, "", "line 2: field larger than field limit"),
        (b"\x00\x01\x02", "", "one column"),
    ],
)
def test_bad_tables_are_refused_with_line_and_column(table, text, options, message):
    with pytest.raises(DataError, match=message) as error:
        read(table(text, options))
    assert "t.csv" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (":label=speceis", "did you mean 'species'"),
        ("", r"which column is the label\? Say so: .*t\.csv:label=NAME \(columns: species, a, b\)"),
        (":label=species,drop=c", "unknown column of .* 'c'"),
        (":label=species,column=c", "unknown column of .* 'c'"),
        (":label=species,categorical=c", "unknown column of .* 'c'"),
        (":lable=species", "did you mean 'label'"),
    ],
)
@pytest.mark.parametrize("cell", ["1", "x"])
def test_unknown_columns_are_refused(table, options, message, cell):
    with pytest.raises(UsageError, match=message):
        read(table(f"species,a,b\n0,{cell},2\n1,{cell},3\n", options))


def test_dropped_columns_may_hold_anything(table):
    dataset, _ = read(table(",a,note,label\n0,1,,x\n1,2,hm,y\n", ":drop=#1+note"))
    assert dataset.feature_names == ("a",)


def test_identifiers_are_no_categories(table):
    rows = "\n".join(f"patient {i},{i},{i % 2}" for i in range(300))
    with pytest.raises(DataError, match="column 'id' has 300 different texts"):
        read(table(f"id,a,label\n{rows}\n"))


class TestParquet:
    @pytest.fixture
    def write(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")

        def write(columns, options=""):
            pq.write_table(pa.table(columns), tmp_path / "t.parquet")
            return f"{tmp_path / 't.parquet'}{options}"

        return write

    def test_a_real_table_comes_back(self, write):
        columns = dict(zip(NAMES, IRIS.data.T, strict=True)) | {"species": SPECIES.tolist(), "big": [True, False] * 75}
        dataset, _ = read(write(columns, ":label=species,column=big"))
        np.testing.assert_array_equal(dataset.x, IRIS.data.astype(np.float32))
        np.testing.assert_array_equal(dataset.y, IRIS.target)
        assert dataset.feature_names == tuple(NAMES)

    def test_categories(self, write):
        import pyarrow as pa

        colours = pa.array(["red", "blue", "red"]).dictionary_encode()
        dataset, _ = read(write({"colour": colours, "label": [0, 1, 1]}))
        assert dataset.feature_names == ("colour=blue", "colour=red")
        assert dataset.x.tolist() == [[0, 1], [1, 0], [0, 1]]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"a": [1, None], "label": [0, 1]}, "column 'a' has 1 missing value, in row 1"),
            ({"a": [1.0, float("nan")], "label": [0, 1]}, "1 value is NaN or infinite, the first in row 1, column 'a'"),
            ({"a": [[1], [2]], "label": [0, 1]}, "column 'a' is of type list.*:drop=a"),
            ({"a": [1, 2], "label": [0.5, 1]}, r"label 0\.5 in row 0, column 'label'"),
        ],
    )
    def test_bad_columns_are_refused(self, write, columns, message):
        with pytest.raises(DataError, match=message):
            read(write(columns))

    def test_damaged_files_are_named(self, write, tmp_path):
        source = write({"a": [1, 2], "label": [0, 1]})
        whole = (tmp_path / "t.parquet").read_bytes()
        for data in (b"", whole[: len(whole) // 2], b"a,label\n1,2\n"):
            (tmp_path / "t.parquet").write_bytes(data)
            with pytest.raises(DataError, match=r"t\.parquet: damaged"):
                read(source)
