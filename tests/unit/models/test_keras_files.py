import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fedloom.errors import ModelError, UsageError
from fedloom.models import graph
from fedloom.models.keras_backend import import_keras
from fedloom.models.keras_dialect import entries, modern, variables
from fedloom.models.keras_files import KerasFile, from_keras_model, read, to_keras_model, write
from fedloom.models.keras_slow import from_config
from fedloom.models.lower import lower

# Keras' own conversion of a torch tensor, under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

FOLDER = Path(__file__).parents[2] / "fixtures" / "keras"
FIXTURES = sorted(p for p in FOLDER.glob("tf*/*") if p.suffix in {".keras", ".h5"})
MODELS = ("cnn", "mlp", "nested", "recurrent", "skip")


def sample(path):
    arrays = np.load(path.parent / f"{path.name.split('.')[0]}.npz", allow_pickle=False)
    return arrays["x"], arrays["y"]


def predict(model, x):
    with torch.no_grad():
        return model(x, training=False).numpy()


def load(path):
    keras = import_keras()
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def same(a, b):
    assert a.keys() == b.keys()
    for path, arrays in a.items():
        assert [(x.dtype, x.shape) for x in arrays] == [(x.dtype, x.shape) for x in b[path]], path
        assert all(np.array_equal(x, y) for x, y in zip(arrays, b[path], strict=True)), path


def randomise(model, seed=0):
    """Give every variable values of its own: what starts at 0 or 1 would hide an exchange."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.uniform(0.1, 0.9, weight.shape)
        weight.assign(value * rng.choice([-1, 1], weight.shape) if "kernel" in weight.name else value)
    return model


def test_all_fixtures_are_there():
    names = [f"{model}{suffix}" for model in MODELS for suffix in (".h5", ".keras", ".windows.keras")]
    assert sorted(f"{p.parent.name}/{p.name}" for p in FIXTURES) == sorted(
        f"{version}/{name}" for version in ("tf214", "tf215") for name in names
    )
    assert any("\\" in name for name in _names(FOLDER / "tf214" / "cnn.windows.keras"))


def _names(path):
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        return list(file)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda p: f"{p.parent.name}-{p.name}")
class TestKeras2:
    def test_the_internal_model_predicts_what_keras_2_predicted(self, path):
        x, y = sample(path)
        file = read(path)
        recurrent = path.name.startswith("recurrent")
        module = from_config(file.config) if recurrent else lower(graph.parse(file.config))
        module.load_keras(file.weights)
        module.eval()
        with torch.no_grad():
            np.testing.assert_allclose(module.output(torch.from_numpy(x)).numpy(), y, atol=1e-5)

    def test_keras_3_predicts_the_same_from_what_is_written(self, path, tmp_path):
        x, y = sample(path)
        file = read(path)
        for suffix in (".keras", ".h5"):
            target = tmp_path / f"model{suffix}"
            write(target, file)
            np.testing.assert_allclose(predict(load(target), x), y, atol=1e-6)

    def test_written_and_read_again_nothing_changes(self, path, tmp_path):
        file = read(path)
        assert file.keras_version.startswith({"tf214": "2.14", "tf215": "2.15"}[path.parent.name])
        for suffix in (".keras", ".h5"):
            first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
            write(first, file)
            again = read(first)
            same(again.weights, file.weights)
            assert again.config == file.config == modern(file.config)
            assert again.format == suffix[1:]
            write(second, again)
            assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("version", ["tf214", "tf215"])
@pytest.mark.parametrize("model", MODELS)
def test_all_forms_of_a_model_hold_the_same_weights(version, model):
    files = [read(FOLDER / version / f"{model}{suffix}") for suffix in (".keras", ".windows.keras", ".h5")]
    same(files[0].weights, files[1].weights)
    same(files[0].weights, files[2].weights)
    assert files[0].config == files[1].config


def test_arrays_stand_in_the_order_of_layer_weights():
    weights = read(FOLDER / "tf215" / "nested.h5").weights
    shapes = {path: [array.shape for array in arrays] for path, arrays in weights.items()}
    assert shapes["trunk/frozen"] == [(2, 2, 3, 3), (3,)]
    assert [len(arrays) for path, arrays in weights.items() if "batch_norm" in path] == [4, 4]
    weights = read(FOLDER / "tf214" / "skip.keras").weights
    assert [a.shape for a in weights["separable_conv2d"]] == [(3, 3, 4, 1), (1, 1, 4, 4), (4,)]
    assert "add" not in weights
    mean, variance, count = read(FOLDER / "tf214" / "mlp.h5").weights["normalization"]
    assert mean.shape == variance.shape == (6,)
    assert count.shape == ()


def small_models():
    K = import_keras()
    L = K.layers
    rng = np.random.default_rng(5)
    images, table = rng.random((3, 8, 8, 3), dtype="float32"), rng.random((3, 6), dtype="float32")

    x = i = K.Input((8, 8, 3))
    x = L.RandomFlip()(x)
    trunk = K.Sequential([K.Input((8, 8, 3)), L.Conv2D(3, 3, padding="same"), L.BatchNormalization(), L.Dropout(0.5)])
    head = (a := K.Input((8, 8, 3))), L.Conv2D(3, 3, padding="same")(L.LayerNormalization()(a))
    head = K.Model(*head, name="head")
    x = head(trunk(head(trunk(x))))
    shared = L.Conv2D(3, 3, padding="same")
    long = L.Conv2D(3, 3, padding="same")(L.Conv2D(3, 3, padding="same")(x))
    x = L.Add()([shared(x), long, shared(long)])
    x = L.Flatten()(L.SeparableConv2D(2, 3)(x))
    yield "functional", K.Model(i, L.Dense(3, activation="softmax")(x)), images

    yield "deferred", K.Sequential([L.Dense(4, activation="relu"), L.Dense(4), L.PReLU(), L.Dense(3)]), table
    ids = rng.integers(0, 9, (3, 5))
    layers = [K.Input((5,)), L.Embedding(9, 4), L.Conv1D(3, 2), L.GroupNormalization(3), L.GlobalMaxPooling1D()]
    yield "embedding", K.Sequential(layers), ids
    layers = [K.Input((8, 8, 3)), L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(2)]
    yield "half", K.Sequential([*layers[:2], L.Dropout(0.1, dtype="mixed_float16"), *layers[2:]]), images
    inner = K.Sequential([K.Input((6,)), L.Dense(6), L.BatchNormalization(), L.Dense(6, name="mid")])
    bare = L.Bidirectional(L.SimpleRNN(2, use_bias=False, return_sequences=True), merge_mode="sum")
    rows = K.Sequential([K.Input((8, 24)), L.LSTM(3, return_sequences=True), L.GRU(4, reset_after=False)])
    layers = [K.Input((8, 8, 3)), L.Reshape((8, 24)), L.LSTM(24, return_sequences=True), rows, L.Reshape((2, 2)), bare]
    layers = [*layers, L.LSTM(3, dropout=0.2, recurrent_dropout=0.1), L.Dense(3)]
    yield "recurrent", K.Sequential(layers), images
    yield "deep", K.Sequential([K.Input((6,)), K.Sequential([K.Input((6,)), inner, L.Dense(6)]), L.Dense(2)]), table


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_models_of_keras_3_survive_reading_and_writing(suffix, tmp_path):
    for name, model, x in small_models():
        predict(model, x)  # builds what is not built yet
        expected = predict(randomise(model), x)
        saved, ours, bare = (tmp_path / f"{name}{n}{suffix}" for n in range(3))
        model.compile("adam", "mse", metrics=["mae"])
        model.save(saved)
        file = read(saved)
        write(ours, file)
        np.testing.assert_allclose(predict(load(ours), x), expected, atol=1e-6, err_msg=name)
        taken = from_keras_model(model)
        same(taken.weights, file.weights)
        write(bare, taken)
        np.testing.assert_allclose(predict(load(bare), x), expected, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(predict(to_keras_model(file), x), expected, atol=1e-6, err_msg=name)
        if suffix == ".keras":
            with zipfile.ZipFile(saved) as archive:
                before = json.loads(archive.read("config.json"))
            del before["compile_config"]
            assert _unnumbered(read(ours).config) == _unnumbered(before)


def _unnumbered(value):
    if isinstance(value, dict):
        return {k: _unnumbered(v) for k, v in value.items() if k != "shared_object_id"}
    return [_unnumbered(v) for v in value] if isinstance(value, list) else value


def test_frozen_layers_of_a_nested_model_keep_their_weights_in_h5(tmp_path):
    keras = import_keras()
    L = keras.layers
    i = keras.Input((4,))
    x = L.BatchNormalization()(L.Dense(4, trainable=False)(i))
    inner = keras.Model(i, L.BatchNormalization()(L.Dense(4)(x)), name="inner")
    for trainable in (True, False):
        if not trainable:
            inner.trainable = False
        model = randomise(keras.Sequential([keras.Input((4,)), inner, L.Dense(3)]))
        x = np.random.default_rng(0).random((5, 4), dtype="float32")
        model.save(tmp_path / "frozen.h5")
        same(read(tmp_path / "frozen.h5").weights, from_keras_model(model).weights)
        write(tmp_path / "ours.h5", read(tmp_path / "frozen.h5"))
        np.testing.assert_allclose(predict(load(tmp_path / "ours.h5"), x), predict(model, x), atol=1e-6)


def test_bare_weight_names_as_keras_3_0_gives_them(tmp_path):
    keras = import_keras()
    L = keras.layers
    inner = keras.Sequential([keras.Input((4,)), L.BatchNormalization(), L.Dense(4)], name="inner")
    model = randomise(keras.Sequential([keras.Input((4,)), inner, L.Dense(3)]))
    expected, path = from_keras_model(model), tmp_path / "bare.h5"
    write(path, expected)
    with h5py.File(path, "a") as file:
        group = file["model_weights/inner"]
        names = list(group.attrs["weight_names"])
        for name in names:
            group.move(name, name.rpartition("/")[2])
        group.attrs["weight_names"] = [name.rpartition("/")[2] for name in names]
    same(read(path).weights, expected.weights)
    with h5py.File(path, "a") as file:
        file["model_weights/inner"].attrs["weight_names"] = ["kernel", "bias"]
    with pytest.raises(ModelError, match="nested model 'inner' cannot be told apart"):
        read(path)


def test_the_order_of_the_layers_in_a_configuration_does_not_matter(tmp_path):
    keras = import_keras()
    L = keras.layers
    i = keras.Input((4,))
    a = L.Dense(4, name="a")(L.Dense(4, name="b")(i))
    c = L.Dense(4, name="c")(i)
    model = randomise(keras.Model(i, L.Dense(2, name="d")(L.Concatenate()([c, a]))))
    x = np.random.default_rng(0).random((5, 4), dtype="float32")
    file = from_keras_model(model)
    for seed in range(4):
        layers = list(file.config["config"]["layers"])
        np.random.default_rng(seed).shuffle(layers)
        config = {**file.config, "config": {**file.config["config"], "layers": layers}}
        write(tmp_path / "m.keras", replace(file, config=config))
        assert modern(config) == modern(file.config)
        np.testing.assert_array_equal(predict(load(tmp_path / "m.keras"), x), predict(model, x))


@pytest.mark.parametrize("seed", range(8))
def test_layers_are_sorted_as_keras_sorts_them(seed):
    keras = import_keras()
    L = keras.layers
    rng = np.random.default_rng(seed)
    tensors = [keras.Input((2,)), keras.Input((2,))]
    dense = [L.Dense(2) for _ in range(4)]
    for _ in range(12):
        a, b = (tensors[i] for i in rng.integers(0, len(tensors), 2))
        choice = rng.integers(3)
        tensors.append(dense[rng.integers(4)](a) if choice == 0 else L.Dense(2)(a) if choice == 1 else L.Add()([a, b]))
    model = keras.Model(tensors[:2], [L.Concatenate()([*tensors[:2], tensors[-2]]), tensors[-1], tensors[7]])
    names = [layer.name for layer in model.layers]
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    rng.shuffle(config["config"]["layers"])
    assert [entry.path for entry in entries(modern(config))] == names


def test_equal_models_give_equal_bytes_in_another_process(tmp_path):
    source = FOLDER / "tf215" / "skip.keras"
    code = (
        "import sys, hashlib; from fedloom.models.keras_files import read, write\n"
        "for s in ('.keras', '.h5'):\n"
        "    write(sys.argv[2] + s, read(sys.argv[1]))\n"
        "assert not {'keras', 'torch', 'tensorflow'} & set(sys.modules), 'heavy'\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "other")], check=True, env=environment)
    for suffix in (".keras", ".h5"):
        write(tmp_path / f"here{suffix}", read(source))
        digests = {hashlib.sha256((tmp_path / f"{n}{suffix}").read_bytes()).hexdigest() for n in ("here", "other")}
        assert len(digests) == 1


def rewritten(source, target, **members):
    """Copy an archive with members replaced, or left out where the value is None."""
    members = {name.replace("_json", ".json").replace("weights", "model.weights.h5"): v for name, v in members.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = members.get(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def weights_file(source):
    with zipfile.ZipFile(source) as archive:
        return io.BytesIO(archive.read("model.weights.h5"))


def test_group_numbers_with_gaps_as_keras_2_13_leaves_them(tmp_path):
    source = FOLDER / "tf214" / "cnn.keras"
    buffer = weights_file(source)
    with h5py.File(buffer, "a") as file:
        group = file["_layer_checkpoint_dependencies"]
        for name in ("conv2d", "batch_normalization", "dense"):
            group.move(f"{name}_1", f"{name}_2")
    path = rewritten(source, tmp_path / "gaps.keras", weights=buffer.getvalue())
    same(read(path).weights, read(source).weights)


def test_a_file_that_says_h5_may_be_an_archive_and_the_other_way_round(tmp_path):
    (tmp_path / "a.h5").write_bytes((FOLDER / "tf214" / "cnn.keras").read_bytes())
    (tmp_path / "a.keras").write_bytes((FOLDER / "tf214" / "cnn.h5").read_bytes())
    assert (read(tmp_path / "a.h5").format, read(tmp_path / "a.keras").format) == ("keras", "h5")
    same(read(tmp_path / "a.h5").weights, read(tmp_path / "a.keras").weights)


def test_bfloat16_becomes_float32(tmp_path):
    source = tmp_path / "source.keras"
    write(source, read(FOLDER / "tf215" / "mlp.keras"))
    buffer = weights_file(source)
    with h5py.File(buffer, "a") as file:
        group = file["layers/dense/vars"]
        values = group["1"][()]
        del group["1"]
        group.create_dataset("1", data=(values.view(np.uint32) >> 16).astype(np.uint16).view("V2"))
        group["1"].attrs["dtype"] = "bfloat16"
    path = rewritten(source, tmp_path / "brain.keras", weights=buffer.getvalue())
    found = read(path).weights["dense_6"][1]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values, rtol=1e-2)


def test_a_normalization_without_count_is_completed():
    file = read(FOLDER / "tf215" / "mlp.keras")
    x, y = sample(FOLDER / "tf215" / "mlp.keras")
    weights = {path: arrays[:2] if path == "normalization" else arrays for path, arrays in file.weights.items()}
    np.testing.assert_allclose(predict(to_keras_model(replace(file, weights=weights)), x), y, atol=1e-6)


def test_a_sequential_model_of_old_without_input_layer(tmp_path):
    weights = {"dense": [np.eye(2, dtype="float32"), np.ones(2, "float32")]}
    row = {"name": "dense", "units": 2, "batch_input_shape": [None, 2], "activation": "linear"}
    config = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": row}]}
    for suffix in (".keras", ".h5"):
        write(tmp_path / f"old{suffix}", KerasFile(config, weights, "2.1.0"))
        model = load(tmp_path / f"old{suffix}")
        np.testing.assert_array_equal(predict(model, np.zeros((1, 2), "float32")), [[1, 1]])


class TestErrors:
    def refuses(self, path, *words):
        with pytest.raises(ModelError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert caught.value.context["file"] == str(path)
        for word in words:
            assert word in message
        return message

    @pytest.mark.parametrize("name", ["cnn.keras", "cnn.h5"])
    def test_a_file_cut_anywhere(self, name, tmp_path):
        data = (FOLDER / "tf215" / name).read_bytes()
        cuts = {0, 1, 7, 8, 9, 40, 100, 512, 2000, len(data) // 2, len(data) - 22, len(data) - 1}
        path = tmp_path / name
        for cut in sorted(cuts | set(range(0, len(data), len(data) // 40))):
            path.write_bytes(data[:cut])
            self.refuses(path)

    def test_an_archive_with_a_flipped_byte_is_refused_or_the_same(self, tmp_path):
        source = FOLDER / "tf215" / "mlp.keras"
        data, path = source.read_bytes(), tmp_path / "flipped.keras"
        expected = read(source).weights
        for position in np.random.default_rng(0).integers(0, len(data), 150):
            changed = bytearray(data)
            changed[position] ^= 0xFF
            path.write_bytes(changed)
            try:
                found = read(path)
            except ModelError:
                continue
            same(found.weights, expected)

    def test_weights_cut_inside_an_archive(self, tmp_path):
        source = FOLDER / "tf215" / "cnn.keras"
        weights = weights_file(source).getvalue()
        for cut in (0, 4, 100, len(weights) // 2, len(weights) - 1):
            path = rewritten(source, tmp_path / "cut.keras", weights=weights[:cut])
            self.refuses(path, "truncated or damaged")

    def test_missing_members(self, tmp_path):
        source = FOLDER / "tf215" / "cnn.keras"
        self.refuses(rewritten(source, tmp_path / "a.keras", config_json=None), "config.json")
        self.refuses(rewritten(source, tmp_path / "b.keras", weights=None), "model.weights.h5")
        assert read(rewritten(source, tmp_path / "c.keras", metadata_json=None)).keras_version == ""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ("[1]", "no JSON object"),
            ("{}", "class"),
            ('{"class_name": "Mine", "config": {}}', "Mine"),
            ('{"class_name": "Sequential", "config": {}}', "list of layers"),
            ('{"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense"}]}}', "damaged"),
        ],
    )
    def test_damaged_configurations(self, text, words, tmp_path):
        source = FOLDER / "tf215" / "cnn.keras"
        self.refuses(rewritten(source, tmp_path / "a.keras", config_json=text), words)

    def test_missing_and_surplus_weights_name_the_layer(self, tmp_path):
        source = FOLDER / "tf215" / "nested.keras"
        for where, words in (
            (
                "layers/sequential/layers/batch_normalization_1",
                "'trunk/batch_normalization_4' (BatchNormalization) are",
            ),
            ("layers/dense/vars/1", "1 arrays of weights, 2 are expected (kernel, bias)"),
        ):
            buffer = weights_file(source)
            with h5py.File(buffer, "a") as file:
                del file[where]
            self.refuses(rewritten(source, tmp_path / "a.keras", weights=buffer.getvalue()), words)
        path = tmp_path / "a.h5"
        path.write_bytes((FOLDER / "tf215" / "nested.h5").read_bytes())
        with h5py.File(path, "a") as file:
            del file["model_weights/dense_5"]
        self.refuses(path, "'dense_5' (Dense) are missing")

    def test_weights_that_are_not_what_they_claim(self, tmp_path):
        source = tmp_path / "source.keras"
        write(source, read(FOLDER / "tf215" / "mlp.keras"))
        for make, words in (
            (lambda g: g.create_dataset("0", (1 << 20, 1 << 20), "f8", chunks=(64, 64)), "made to harm"),
            (lambda g: g.create_dataset("0", data="text"), "no numbers"),
            (lambda g: g.__setitem__("0", h5py.ExternalLink("/etc/passwd", "/")), "link"),
            (lambda g: g.__setitem__("0", h5py.SoftLink("/layers")), "link"),
            (lambda g: g.create_dataset("0", (2,), "f4", external=[("/etc/passwd", 0, 8)]), "another file"),
        ):
            buffer = weights_file(source)
            with h5py.File(buffer, "a") as file:
                del file["layers/dense/vars/0"]
                make(file["layers/dense/vars"])
            self.refuses(rewritten(source, tmp_path / "a.keras", weights=buffer.getvalue()), words)

    def test_other_files(self, tmp_path):
        self.refuses(tmp_path / "none.keras", "no such file")
        (tmp_path / "saved").mkdir()
        self.refuses(tmp_path / "saved", "folder")
        (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
        self.refuses(tmp_path / "saved", "SavedModel", ".keras")
        (tmp_path / "text.keras").write_text("version https://git-lfs.github.com/spec/v1\n")
        self.refuses(tmp_path / "text.keras", "not a Keras model file")
        torch.save({"a": torch.zeros(2)}, tmp_path / "torch.keras")
        self.refuses(tmp_path / "torch.keras", "PyTorch", ".pt")
        with h5py.File(tmp_path / "data.h5", "w") as file:
            file["x"] = np.zeros(3)
        self.refuses(tmp_path / "data.h5", "no Keras model")

    def test_weights_without_a_model(self, tmp_path):
        model = to_keras_model(read(FOLDER / "tf215" / "mlp.keras"))
        model.save_weights(tmp_path / "mine.weights.h5")
        self.refuses(tmp_path / "mine.weights.h5", "weights without the model", "model.save")

    def test_writing_what_does_not_fit(self, tmp_path):
        file = read(FOLDER / "tf215" / "mlp.keras")
        with pytest.raises(
            ModelError, match=r"b\.keras: the weights of layer 'normalization' \(Normal.*\) are missing"
        ):
            write(tmp_path / "b.keras", replace(file, weights={}))
        with pytest.raises(ModelError, match="'other', which is no layer"):
            write(tmp_path / "b.keras", replace(file, weights={**file.weights, "other": []}))
        with pytest.raises(UsageError, match=r"\.keras"):
            write(tmp_path / "b.kera", file)
        assert list(tmp_path.iterdir()) == []

    def test_code_in_a_file_is_never_run(self, tmp_path):
        keras = import_keras()
        model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1), keras.layers.Dense(2)])
        model.save(tmp_path / "lambda.keras")
        with pytest.raises(ModelError, match="cannot build the model"):
            to_keras_model(read(tmp_path / "lambda.keras"))

    def test_layers_that_hide_their_weights(self, tmp_path):
        keras = import_keras()
        i = keras.Input((3, 4))
        model = keras.Model(i, keras.layers.MultiHeadAttention(1, 2)(i, i))
        model.save(tmp_path / "attention.keras")
        self.refuses(tmp_path / "attention.keras", "MultiHeadAttention", "layers of its own")
        with pytest.raises(ModelError, match="layers of its own"):
            from_keras_model(model)


def test_the_known_variables_are_those_that_keras_makes():
    for _, model, x in small_models():
        predict(model, x)
        file = from_keras_model(model)
        for entry in entries(file.config):
            for leaf in entry.leaves():
                names = variables(leaf)
                if names is not None:
                    assert len(names) == len(file.weights.get(leaf.path, [])), leaf.path
    assert json.dumps(modern(file.config)) == json.dumps(modern(modern(file.config)))
