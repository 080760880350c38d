"""Bad input: one clear line, the exit code of its class, and not one file touched or half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import COMMAND, run

from fedloom import files
from fedloom.models import io

USAGE, DATA, MODEL, MERGE, TRAINING, STORAGE = 2, 3, 4, 5, 6, 7
THREE = ("ana.keras", "luis.keras", "carmen.keras")
TEST = "x_test.npy,y_test.npy"


def save(name, x, y):
    np.save(f"{name}_x.npy", x)
    np.save(f"{name}_y.npy", y)
    return f"{name}_x.npy,{name}_y.npy"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("splitt", ("'splitt'", "did you mean 'split'?")),
        ("next-raund", ("did you mean 'next-round'?",)),
        ("train parts/ana --optimiser adam", ("--optimiser", "Did you mean '--optimizer'?", "fedloom train --help")),
        ("train parts/ana --epochs five", ("--epochs", "'five'")),
        ("train parts/ana --epochs 0", ("epochs is 0",)),
        ("train parts/ana --lr -1", ("lr is -1",)),
        ("train parts/ana --lr nan", ("lr is nan",)),
        ("train parts/ana --prox-mu -0.1", ("prox_mu is -0.1",)),
        ("train parts/ana --optimizer adm", ("did you mean 'adam'?",)),
        ("train parts/ana --precision float23", ("did you mean 'float32'?",)),
        ("train parts/ana --device cudda", ("'cudda'",)),
        ("train parts/ana --out ana.kers", ("'.kers'", "did you mean '.keras'?")),
        ("train", ("Missing argument 'FOLDER'",)),
        ("split mnsit -n 3 --out new", ("data set 'mnsit'", "did you mean 'mnist'?")),
        ("split digits -n 3 --out new --scheme dirichelt", ("did you mean 'dirichlet'?",)),
        ("split digits -n 3 --out new --alpha 1", ("alpha",)),
        ("split digits -n 3 --out new --model 2nm", ("model '2nm'", "did you mean '2nn'?")),
        ("split digits -n 3 --out new --format kreas", ("did you mean 'keras'?",)),
        ("split digits -n 3 --out new --names ana,luis", ("2 names", "3 clients")),
        ("split digits -n 2 --out new --names ana,../luis", ("'../luis'",)),
        ("split digits -n 0 --out new", ("clients is 0",)),
        ("split digits -n 2 --out new --column a", ("digits has no columns",)),
        ("merge ana.keras --method fedavgg --out g.keras", ("method 'fedavgg'", "did you mean 'fedavg'?")),
        ("merge ana.keras luis.keras --out g.kers", ("'.kers'",)),
        ("merge ana.keras luis.keras", ("Missing option '--out'",)),
        ("merge ana.keras luis.keras --method median --set trm=1 --out g.keras", ("'trm'",)),
        ("merge ana.keras luis.keras --method trimmed-mean --set k --out g.keras", ("--set k", "NAME=NUMBER")),
        ("merge ana.keras luis.keras --method weighted --weights a,b --out g.keras", ("--weights a,b",)),
        ("merge ana.keras luis.keras --method weighted --weights 1 --out g.keras", ("1 weights", "2 models")),
        ("merge ana.keras luis.keras --method weighted --out g.keras", ("--weights",)),
        (
            "merge ana.keras luis.keras --method weighted --weights 0.9,0.9 --out g.keras",
            ("sum to 1.8, not to 1", "proportions: 0.5,0.5"),
        ),
        (f"compare ana.keras luis.keras --data {TEST} --methods median,fedavgg", ("did you mean 'fedavg'?",)),
        ("compare ana.keras luis.keras", ("Missing option '--data'",)),
        ("compare ana.keras --data fashion-mnits", ("did you mean 'fashion-mnist'?",)),
        ("next-round parts --method krumm", ("did you mean 'krum'?",)),
        ("demo --dataset digit", ("did you mean 'digits'?",)),
        ("list metods", ("did you mean 'methods'?",)),
    ],
)
def test_unknown_names_and_values(line, words, team, refuse):
    refuse(USAGE, words, *line.split())


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        (DATA, "train parts", ("parts: holds no member.json", "parts/ana")),
        (DATA, "train nowhere", ("nowhere: no such folder",)),
        (DATA, "merge nowhere.keras --out g.keras", ("nowhere.keras: no such file",)),
        (DATA, "merge *.pt --out g.keras", ("*.pt matches no file",)),
        (DATA, "compare ana.keras --data gone.npz", ("gone.npz: no such file",)),
        (DATA, f"compare ana.keras --data {TEST} --train-central ana.keras", ("ana.keras", "manifest.json")),
        (DATA, "next-round nowhere", ("nowhere: holds no manifest.json",)),
        (DATA, "split gone.csv -n 2 --out new", ("gone.csv: no such file",)),
        (DATA, "split digits -n 2000 --out new", ("2000", "1438")),
        (DATA, "split digits -n 200 --out new", ("200",)),
        (STORAGE, "split digits -n 2 --out parts", ("parts exists", "--overwrite")),
        (STORAGE, "split digits -n 2 --out .", ("choose another --out",)),
        (STORAGE, "demo --out parts", ("parts exists and was not made by 'fedloom demo'",)),
        (MERGE, "merge ana.keras luis.keras --method weighted --weights 0,0 --out g.keras", ("zero",)),
        (MERGE, "merge ana.keras luis.keras --method weighted --weights nan,1 --out g.keras", ("ana.keras is nan",)),
        (MERGE, "merge ana.keras luis.keras --method weighted --weights -1,2 --out g.keras", ("ana.keras is -1",)),
        (MERGE, "merge ana.keras luis.keras --method bulyan --out g.keras", ("bulyan needs at least 3 models",)),
        (MERGE, "merge ana.keras luis.keras --method fedadam --out g.keras", ("--previous",)),
        (MERGE, "next-round parts --method ensemble", ("ensemble",)),
    ],
)
def test_what_is_missing_or_makes_no_sense(code, line, words, team, refuse):
    refuse(code, words, *line.split())


class TestModelFiles:
    def test_another_architecture_names_the_first_difference(self, team, refuse):
        assert run("split", "digits", "-n", 2, "--model", "mlp", "--out", "other") == 0
        shutil.copy("other/client-1/start.keras", "other.keras")
        for code, *line in (
            (MODEL, "merge", "ana.keras", "other.keras", "--out", "global.keras"),
            (MODEL, "next-round", "parts", "--models", "ana.keras", "other.keras"),
            (MODEL, "merge", "ana.keras", "luis.keras", "--previous", "other.keras", "--out", "g.keras"),
            (MODEL, "compare", "ana.keras", "--start", "other.keras", "--data", TEST),
        ):
            refuse(code, ("other.keras", "ana.keras", "200", "512"), *line)

    def test_the_same_layers_with_other_shapes(self, team, refuse):
        torch.save({"net.weight": torch.zeros(3, 4)}, "a.pt")
        torch.save({"net.weight": torch.zeros(3, 5)}, "b.pt")
        words = ("b.pt does not fit a.pt", "'net.weight'", "(3, 4)", "(3, 5)")
        refuse(MODEL, words, "merge", "a.pt", "b.pt", "--out", "g.pt")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    @pytest.mark.parametrize("suffix", [".keras", ".h5", ".pt", ".safetensors"])
    def test_a_cut_file(self, suffix, share, team, refuse):
        io.save(io.load("luis.keras"), f"luis{suffix}")
        Path("luis.json").unlink()
        data = Path(f"luis{suffix}").read_bytes()
        Path(f"luis{suffix}").write_bytes(data[: int(share * len(data))])
        refuse(MODEL, (f"luis{suffix}",), "merge", f"luis{suffix}", "ana.keras", "--out", "g.keras")
        refuse(MODEL, (f"luis{suffix}",), "compare", "ana.keras", f"luis{suffix}", "--data", TEST, "--out", "c")

    @pytest.mark.parametrize("name", ["text.keras", "text.h5", "text.pt", "text.safetensors"])
    def test_a_wrong_file(self, name, team, refuse):
        Path(name).write_text("version https://git-lfs.github.com/spec/v1\n" * 9)
        refuse(MODEL, (name,), "merge", name, "ana.keras", "--out", "g.keras")

    def test_code_in_a_pickle_is_not_run(self, team, refuse):
        class Evil:
            def __reduce__(self):
                return os.system, ("touch harmed",)

        torch.save({"a": Evil()}, "evil.pt")
        refuse(MODEL, ("evil.pt",), "merge", "evil.pt", "--out", "g.pt")

    def test_a_pytorch_model_cannot_become_a_keras_file(self, team, refuse):
        build = "def build(input_shape, n_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, n_classes))\n"
        Path("net.py").write_text(f"from torch import nn\n\n{build}")
        assert run("split", "digits", "-n", 2, "--model", "net.py:build", "--out", "torch") == 0
        line = ("train", "torch/client-1", "--model", "net.py:build", "--epochs", 2)
        refuse(MODEL, ("client-1.keras: a PyTorch model",), *line, "--out", "client-1.keras")
        refuse(MODEL, ("--model", "net.py:build"), *line[:2])
        assert run(*line) == 0

    def test_a_damaged_sidecar(self, team, refuse):
        Path("luis.json").write_text("{")
        refuse(DATA, ("luis.json",), "merge", "ana.keras", "luis.keras", "--out", "g.keras")

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_weights_that_are_not_finite(self, bad, team, refuse):
        model = io.load("luis.keras")
        vector = model.vector()
        vector[model.layout.size - 3] = bad
        io.save(model.load(vector), "luis.keras")
        words = ("luis.keras: array '2_dense.bias' holds 1 NaN or infinite",)
        for method in ("fedavg", "median", "ensemble"):
            refuse(MERGE, words, "merge", "ana.keras", "luis.keras", "--method", method, "--out", "g.keras")
        refuse(MERGE, words, "compare", "ana.keras", "luis.keras", "--data", TEST, "--out", "c")
        refuse(MERGE, words, "next-round", "parts", "--models", *THREE)
        words = ("luis.keras: array '2_dense.bias'",)
        line = ("merge", "ana.keras", "carmen.keras", "--method", "fedavgm", "--previous", "luis.keras")
        refuse(MERGE, words, *line, "--out", "g.keras")

    def test_a_start_that_is_not_finite(self, team, refuse):
        model = io.load("parts/ana/start.keras")
        io.save(model.load(model.vector() * np.nan), "parts/ana/start.keras")
        refuse(MODEL, ("parts/ana/start.keras",), "train", "parts/ana")


class TestData:
    def test_labels_outside_the_models_classes(self, team, refuse):
        x, y = np.load("x_test.npy"), np.load("y_test.npy")
        y[7] = 10
        refuse(
            DATA,
            ("more_x.npy,more_y.npy", "label 10 in row 7", "10 classes"),
            "compare",
            *THREE,
            "--data",
            save("more", x, y),
        )
        y[7] = -1
        refuse(DATA, ("less_y.npy", "-1"), "compare", *THREE, "--data", save("less", x, y))

    def test_a_model_with_too_few_classes(self, team, refuse, digits):
        x, y = digits
        few = save("few", x[y < 5], y[y < 5])
        assert run("split", few, "-n", 2, "--model", "2nn", "--out", "five") == 0
        refuse(MODEL, ("5", "10"), "split", "digits", "-n", 2, "--model", "five/client-1/start.keras", "--out", "new")

    @pytest.mark.parametrize("bad", [np.nan, -np.inf])
    def test_numbers_that_are_not_finite(self, bad, team, refuse, digits):
        x, y = digits
        x = x.copy()
        x[5, 3, 3] = bad
        source = save("holes", x, y)
        refuse(DATA, ("holes_x.npy", "row 5"), "split", source, "-n", 2, "--out", "new")
        refuse(DATA, ("holes_x.npy", "row 5"), "compare", *THREE, "--data", source, "--out", "c")

    def test_another_shape(self, team, refuse):
        y = np.load("y_test.npy")
        source = save("wide", np.zeros((len(y), 9, 9)), y)
        refuse(DATA, ("(9, 9)", "(8, 8)"), "compare", *THREE, "--data", source, "--out", "c")
        refuse(DATA, ("wide_x.npy", "ana"), "compare", *THREE, "--data", "wide_x.npy,y_test.npy,ana", "--out", "c")

    def test_inputs_and_labels_of_different_numbers(self, team, refuse):
        source = save("odd", np.load("x_test.npy"), np.load("y_test.npy")[:-1])
        refuse(DATA, ("odd_x.npy", "359", "358"), "compare", *THREE, "--data", source, "--out", "c")

    def test_no_samples(self, team, refuse):
        source = save("none", np.zeros((0, 8, 8)), np.zeros(0, np.int64))
        refuse(DATA, ("none_x.npy",), "split", source, "-n", 2, "--out", "new")
        refuse(DATA, ("none_x.npy",), "compare", *THREE, "--data", source, "--out", "c")
        Path("empty.csv").write_text("a,b,label\n")
        refuse(DATA, ("empty.csv",), "split", "empty.csv:label=label", "-n", 2, "--out", "new")

    def test_an_empty_part(self, team, refuse):
        folder = Path("parts/ana")
        np.save(folder / "ana_X.npy", np.zeros((0, 8, 8), np.uint8))
        np.save(folder / "ana_Y.npy", np.zeros(0, np.int64))
        about = files.read_json(folder / "member.json")
        about["checksums"] = {}
        files.write_json(folder / "member.json", about)
        refuse(DATA, ("ana",), "train", "parts/ana")
        refuse(DATA, ("ana",), "compare", *THREE, "--data", TEST, "--train-central", "parts", "--out", "c")

    @pytest.mark.parametrize("name", ["ana_X.npy", "ana_Y.npy", "x_test_fed.npy", "start.keras", "member.json"])
    def test_a_file_of_the_part_that_is_missing_cut_or_exchanged(self, name, team, refuse):
        path = Path("parts/ana") / name
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        refuse(MODEL if name == "start.keras" else DATA, (str(path),), "train", "parts/ana")
        other = Path("parts/luis") / name.replace("ana", "luis")
        if name in ("ana_X.npy", "ana_Y.npy"):
            shutil.copy(other, path)
            refuse(DATA, (str(path), "checksum"), "train", "parts/ana")
        path.unlink()
        refuse(MODEL if name == "start.keras" else DATA, ("parts/ana", name), "train", "parts/ana")

    def test_python_objects_are_not_unpickled(self, team, refuse):
        np.save("x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        refuse(DATA, ("x.npy", "never unpickled"), "compare", *THREE, "--data", "x.npy,y_test.npy", "--out", "c")

    def test_training_that_diverges(self, team, refuse):
        refuse(TRAINING, ("ana", "loss"), "train", "parts/ana", "--optimizer", "sgd", "--lr", "1e30", "--epochs", "3")


class TestStorage:
    WRITERS = (
        ("split", "digits", "-n", "2", "--model", "2nn", "--out", "{}/new"),
        ("train", "parts/ana", "--epochs", "1", "--out", "{}/ana.keras"),
        ("merge", *THREE, "--out", "{}/g.keras"),
        ("merge", *THREE, "--method", "ensemble", "--out", "{}/g.pt"),
        ("compare", *THREE, "--data", TEST, "--methods", "fedavg", "--out", "{}/c"),
        ("demo", "--out", "{}/demo"),
    )

    @pytest.mark.parametrize("line", WRITERS, ids=lambda line: line[0])
    def test_a_file_in_the_way(self, line, team, refuse):
        said = refuse(STORAGE, ("ana.json",), *(word.format("ana.json") for word in line))
        assert "folder" in said or "directory" in said

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    @pytest.mark.parametrize("line", WRITERS, ids=lambda line: line[0])
    def test_a_folder_that_is_not_writable(self, line, team, refuse):
        Path("locked").mkdir(mode=0o500)
        refuse(STORAGE, ("locked", "ermission"), *(word.format("locked") for word in line))

    @pytest.mark.parametrize("line", [WRITERS[0], WRITERS[2], ("next-round", "parts")], ids=lambda line: line[0])
    def test_no_space_left(self, line, team, full_disk, refuse):
        with full_disk(100_000):
            said = refuse(STORAGE, (), *(word.format(".") for word in line))
        assert said.startswith("fedloom: cannot write ")


def test_a_stopped_training_goes_on_and_ends_with_the_same_model(team):
    line = ["train", "parts/ana", "--epochs", "12", "--batch-size", "2", "--out", "whole.keras"]
    assert run(*line) == 0
    line[-1] = "stopped.keras"
    kept = Path(".stopped.checkpoint.safetensors")
    running = subprocess.Popen(
        [*COMMAND, *line],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no threads here
    )
    end = time.monotonic() + 100
    while not kept.exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    out, error = running.communicate(timeout=60)
    assert running.returncode == 130, (out, error)
    assert error.startswith("fedloom: stopped;")
    assert error.count("\n") == 1
    assert sorted(p.name for p in team.glob("*stopped*")) == [kept.name]
    assert run(*line) == 0
    assert not kept.exists()
    assert torch.equal(io.load("stopped.keras").vector(), io.load("whole.keras").vector())


def test_what_was_trained_is_kept_when_the_model_cannot_be_written(team, capsys):
    line = ["train", "parts/ana", "--epochs", "3", "--out", "kept.keras"]
    Path("kept.keras").mkdir()
    assert run(*line) == STORAGE
    assert "cannot write kept.keras: a folder of that name is in the way" in capsys.readouterr().err
    state, _ = files.read_tensors(".kept.checkpoint.safetensors")
    assert state["progress"][0] == 2
    Path("kept.keras").rmdir()
    assert run(*line) == 0
    assert sorted(p.name for p in team.glob("*kept*")) == [
        "kept.json",
        "kept.keras",
        "kept_curves.png",
        "kept_report.txt",
    ]


def test_a_pipe_that_is_closed_early_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run([*COMMAND, "list", "methods"], stdout=gone, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("line", ["--debug train parts", "train --debug parts", "train parts --debug"])
def test_debug_shows_the_traceback_wherever_it_stands(line, team, capsys):
    assert run(*line.split()) == DATA
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "fedloom: parts: holds no member.json" in said.splitlines()[-1]
