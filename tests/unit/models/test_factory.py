import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedloom.errors import FedloomError, ModelError, UsageError
from fedloom.models.factory import call_factory, is_keras_model, load_factory, make
from fedloom.models.keras_backend import import_keras
from fedloom.models.probe import arrange, arrangements, probe_torch
from fedloom.models.tf_shim import tensorflow_as_keras

MODELS = Path(__file__).parents[2] / "fixtures" / "models"


def build(reference, shape=(8, 8), classes=10, seed=0, base=MODELS):
    return make(reference, shape, classes, seed, base)


def arrays(model):
    if is_keras_model(model):
        return [w.value.detach() for w in model.weights]
    return list(model.state_dict().values())


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def message(error_class, function, *arguments):
    with pytest.raises(error_class) as info:
        function(*arguments)
    assert "\n" not in str(info.value)
    return str(info.value)


def write(folder, text, name="user.py"):
    (folder / name).write_text(text)
    return folder


# --- files that say tensorflow ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "shape", "classes", "expected"),
    [
        ("TheModel.py:build.build_it", (28, 20), 7, (None, 28, 20, 1)),
        ("TheModel.py:build.build_it", (32, 32, 3), 5, (None, 32, 32, 3)),
        ("TheModel.py:build.build_small", (8, 8), 10, (None, 8, 8)),
        ("TheModel.py:Builder.build", (8, 8), 10, (None, 8, 8)),
        ("tf_styles.py:dense", (30,), 3, (None, 30)),
        ("tf_styles.py:rescaled", (8, 8, 1), 4, (None, 8, 8, 1)),
        ("tf_styles.py:lazy", (8, 6), 4, (None, 8, 6)),
        ("tf_styles.py:deferred", (8, 8), 4, (None, 8, 8, 1)),
        ("tf_styles.py:channels_first", (8, 8), 4, (None, 8, 8)),
        ("tf_styles.py:recurrent", (8, 8), 4, (None, 8, 8)),
        ("notebook_model.py:model", (8, 8), 10, (None, 8, 8)),
        ("keras_plain.py:build", (8, 8), 10, (None, 8, 8)),
    ],
)
def test_keras_files_of_every_style_load(reference, shape, classes, expected):
    modules, path = set(sys.modules), list(sys.path)
    model = build(reference, shape, classes)
    assert is_keras_model(model)
    assert model.input_shape == expected
    assert model.output_shape == (None, classes)
    assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
    assert not any(name in set(sys.modules) - modules for name in ("TheModel", "tf_styles"))
    assert sys.path == path
    assert not any(type(finder).__module__.startswith("fedloom") for finder in sys.meta_path)
    x = np.zeros((2, *expected[1:]), "float32")
    assert tuple(model(x).shape) == (2, classes)


def test_the_first_import_of_keras_may_be_the_users():
    code = f"""if True:
        import random, sys, torch
        from pathlib import Path
        from fedloom.models.factory import make
        assert "keras" not in sys.modules
        for reference in ("keras_plain.py:build", "TheModel.py:build.build_it"):
            before = random.getstate(), torch.get_rng_state().tolist()
            first, second = (make(reference, (8, 8), 10, 1, Path({str(MODELS)!r})) for _ in range(2))
            assert (random.getstate(), torch.get_rng_state().tolist()) == before
            assert all(torch.equal(a.value, b.value) for a, b in zip(first.weights, second.weights, strict=True))
            assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
            import keras
            from keras.src.utils.module_utils import tensorflow
            assert keras.config.backend() == "torch" and not tensorflow.available
            keras.saving.serialize_keras_object(first)
            assert "tensorflow" not in sys.modules
    """
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_settings_of_keras_that_a_file_changes_are_put_back():
    keras = import_keras()
    build("tf_styles.py:channels_first")
    assert (keras.config.image_data_format(), keras.config.floatx()) == ("channels_last", "float32")


def test_layer_names_do_not_depend_on_what_was_built_before():
    names = [[layer.name for layer in build("TheModel.py:build.build_it").layers] for _ in range(2)]
    assert names[0] == names[1]


def test_what_tensorflow_alone_has_is_named_with_the_line():
    text = message(ModelError, build, "tf_styles.py:data_api")
    assert "tf.data is not available" in text
    line = next(i for i, s in enumerate((MODELS / "tf_styles.py").read_text().splitlines(), 1) if "tf.data." in s)
    assert f"tf_styles.py, line {line} in data_api" in text


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from tensorflow import data", "data"),
        ("import tensorflow.data", "tf.data"),
        ("from tensorflow.python.keras import layers", "tf.python"),
        ("import tensorflow.compat.v1 as tf", "tf.compat"),
        ("import tensorflow as tf; tf.constant(1)", "tf.constant"),
        ("from tensorflow.keras.layers import NoSuchLayer", "NoSuchLayer"),
        ("import tensorflow as tf; tf.keras.layers.NoSuchLayer", "tf.keras.layers.NoSuchLayer"),
        ("import tensorflow.keras.backend as K; K.sum([1])", "tf.reduce_sum"),
    ],
)
def test_missing_names_of_tensorflow(tmp_path, line, name):
    text = message(ModelError, load_factory, "user.py:f", write(tmp_path, "\n" + line + "\ndef f(): ..."))
    assert f"{tmp_path / 'user.py'}, line 2" in text
    assert name in text
    assert "without TensorFlow" in text


def use_tensorflow_and_fail():
    with tensorflow_as_keras():
        import tensorflow as tf

        assert tf.keras.layers.Dense is import_keras().layers.Dense
        assert not hasattr(tf, "Tensor")
        assert tf.__version__.startswith("2.")
        raise RuntimeError


def test_the_stand_in_leaves_no_trace_on_error():
    before = set(sys.modules)
    with pytest.raises(RuntimeError):
        use_tensorflow_and_fail()
    assert "tensorflow" not in sys.modules
    assert before <= set(sys.modules)


def test_a_real_tensorflow_is_hidden_and_comes_back(tmp_path, monkeypatch):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import tensorflow

        assert tensorflow.real
        build("TheModel.py:build.build_small")
        assert sys.modules["tensorflow"] is tensorflow
    finally:
        del sys.modules["tensorflow"]


def test_keras_believes_that_tensorflow_is_absent_inside():
    keras = import_keras()
    from keras.src.utils.module_utils import tensorflow as lazy

    with tensorflow_as_keras():
        import tensorflow as tf

        model = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(2)])
        keras.saving.serialize_keras_object(model)
        assert not lazy.available
    assert lazy.module is None


# --- references -------------------------------------------------------------------------------------------------------


def test_module_references():
    assert load_factory("torch.nn:Linear").target is nn.Linear
    assert isinstance(build("torch.nn:Flatten"), nn.Flatten)
    text = message(UsageError, load_factory, "torch.nn.functional:crossentropy")
    assert "did you mean 'cross_entropy'" in text
    assert "no module 'no_such_module'" in message(UsageError, load_factory, "no_such_module.sub:f")


def test_a_module_beside_the_base_is_found(tmp_path):
    write(tmp_path, "from torch import nn\ndef f(n_classes): return nn.Linear(2, n_classes)", "beside_base.py")
    assert build("beside_base:f", base=tmp_path).out_features == 10
    assert "beside_base" not in sys.modules


def test_an_edited_file_is_read_again(tmp_path):
    write(tmp_path, "from torch import nn\nfrom part import N\ndef f(): return nn.Linear(2, N)")
    for n in (3, 4):
        write(tmp_path, f"N = {n}", "part.py")
        os.utime(tmp_path / "part.py", (n * 1000, n * 1000))
        assert build("user.py:f", base=tmp_path).out_features == n


@pytest.mark.parametrize("reference", ["a.py", "a.py:", ":f", "C:\\x\\a.py", "a.py:f()", "a.py:f..g", ""])
def test_malformed_references(reference):
    assert "file.py:function" in message(UsageError, load_factory, reference)


def test_windows_paths():
    text = message(ModelError, load_factory, "C:\\x\\file.py:fn")
    assert "C:\\x\\file.py: no such file" in text.replace(f"{Path()}/", "")
    assert isinstance(build("models\\torch_nets.py:Conv", base=MODELS.parent), nn.Module)
    assert isinstance(build(f"{MODELS / 'torch_nets.py'}:Conv", base=Path("/nowhere")), nn.Module)


def test_unknown_names_are_told_what_is_there():
    text = message(UsageError, load_factory, "TheModel.py:build.built_it", MODELS)
    assert "did you mean 'build_it'" in text
    text = message(UsageError, load_factory, "torch_nets.py:softmax_mpl", MODELS)
    assert "did you mean 'softmax_mlp'" in text
    assert "Head" not in text
    assert "not a function" in message(UsageError, load_factory, "torch_nets.py:softmax_mlp.__name__", MODELS)


# --- the user's errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\ny = (", ["line 2", "SyntaxError"]),
        ("def f():\nreturn 1", ["line 2", "IndentationError"]),
        ("import math\n\nimport nowhere_to_be_found.sub", ["line 3", "nowhere_to_be_found", "pip install"]),
        ("x = {}\nx['k']", ["line 2", "KeyError: 'k'"]),
        ("import sys\nsys.exit('bye')", ["line 2", "SystemExit: bye"]),
        ("import part", ["part.py, line 1", "ZeroDivisionError"]),
        ("raise ValueError('first\\nsecond')", ["line 1", "ValueError: first"]),
    ],
)
def test_errors_while_loading_are_one_line(tmp_path, code, words):
    write(tmp_path, "1 / 0", "part.py")
    with pytest.raises(ModelError) as info:
        load_factory("user.py:f", write(tmp_path, code))
    text = str(info.value)
    assert "\n" not in text
    assert str(tmp_path) in text
    assert all(word in text for word in words), text
    assert info.value.__cause__ is not None
    assert not isinstance(info.value.__cause__, FedloomError)


def test_errors_while_building_are_one_line():
    line = next(i for i, s in enumerate((MODELS / "torch_nets.py").read_text().splitlines(), 1) if "1 / (" in s)
    text = message(ModelError, build, "torch_nets.py:fails")
    assert text.endswith(f"torch_nets.py, line {line} in fails: ZeroDivisionError: division by zero")
    text = message(ModelError, build, "TheModel.py:build.build_it", (4, 4), -3)
    assert "TheModel.py, line" in text
    assert "in build_it" in text


def test_an_unknown_required_argument_is_named():
    text = message(ModelError, build, "torch_nets.py:unknown_argument")
    assert "'backbone'" in text
    assert "num_classes=10" in text


def test_what_is_no_model_is_named():
    assert "a dict" in message(ModelError, build, "torch_nets.py:not_a_model")
    assert "did you mean TheModel.py:build.build_it" in message(ModelError, build, "TheModel.py:build")


# --- arguments --------------------------------------------------------------------------------------------------------


def taken(function, shape=(28, 20), classes=10):
    seen = {}

    def record(**named):
        seen.update(named)
        return nn.Identity()

    call_factory(function(record), shape, classes)
    return seen


def test_arguments_are_filled_by_their_usual_names():
    def shapes(record):
        return lambda input_shape, shape, in_shape, image_shape: record(
            a=input_shape, b=shape, c=in_shape, d=image_shape
        )

    assert set(taken(shapes).values()) == {(28, 20)}

    def classes(record):
        return lambda num_classes, n_classes, classes, nclasses, num_labels, out_features: record(
            a=num_classes, b=n_classes, c=classes, d=nclasses, e=num_labels, f=out_features
        )

    assert set(taken(classes).values()) == {10}

    def sizes(record):
        return lambda width, height, depth, in_features, in_channels: record(
            w=width, h=height, d=depth, f=in_features, c=in_channels
        )

    assert taken(sizes) == {"w": 20, "h": 28, "d": 1, "f": 560, "c": 1}
    assert taken(sizes, (3, 28, 20)) == {"w": 20, "h": 28, "d": 3, "f": 1680, "c": 3}
    assert taken(sizes, (28, 20, 4)) == {"w": 20, "h": 28, "d": 4, "f": 2240, "c": 4}


def test_positional_only_variable_and_keyword_only_parameters():
    def factory(record):
        def inner(n_classes, hidden=3, /, *extra, shape, **options):
            return record(n=n_classes, h=hidden, extra=extra, s=shape, o=options)

        return inner

    assert taken(factory) == {"n": 10, "h": 3, "extra": (), "s": (28, 20), "o": {}}


def test_defaults_stay_unless_they_do_not_fit():
    def factory(record):
        def inner(
            n_classes=2, input_shape=(28, 20, 1), width=64, depth=16, channels=(8, 16), in_channels=None, bias=True
        ):
            return record(n=n_classes, s=input_shape, w=width, d=depth, c=channels, i=in_channels, b=bias)

        return inner

    kept = {"w": 64, "d": 16, "c": (8, 16), "b": True}
    assert taken(factory) == {"n": 10, "s": (28, 20, 1), "i": 1, **kept}
    assert taken(factory, (32, 32, 3)) == {"n": 10, "s": (32, 32, 3), "i": 3, **kept}


# --- chance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    ["torch_nets.py:Conv", "TheModel.py:build.build_it", "notebook_model.py:model", "tf_styles.py:deferred"],
)
def test_the_seed_decides_the_weights(reference):
    a, b, c = (arrays(build(reference, seed=seed)) for seed in (1, 1, 2**62 + 2))
    assert equal(a, b)
    assert not equal(a, c)


@pytest.mark.parametrize(
    "reference", ["torch_nets.py:one_output", "TheModel.py:build.build_it", "keras_plain.py:build"]
)
def test_global_generators_do_not_move(reference):
    keras = import_keras()

    def state():
        numpy = np.random.get_state()  # noqa: NPY002
        return random.getstate(), numpy[1].tobytes(), numpy[2], torch.get_rng_state().numpy().tobytes()

    keras.utils.set_random_seed(5)
    before = state()
    expected = keras.random.normal((3,))
    keras.utils.set_random_seed(5)
    build(reference)
    assert state() == before
    assert torch.equal(keras.random.normal((3,)), expected)
    assert torch.get_default_dtype() == torch.float32


# --- what a module takes and gives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "data", "shape", "kind"),
    [
        ("torch_nets.py:Conv", (28, 28), (1, 28, 28), "logits"),
        ("torch_nets.py:Conv", (28, 28, 1), (1, 28, 28), "logits"),
        ("torch_nets.py:Conv", (8, 8, 3), (3, 8, 8), "logits"),
        ("torch_nets.py:LogSoftmaxNet", (28, 28), (28, 28), "logits"),
        ("torch_nets.py:softmax_mlp", (28, 28), (784,), "probabilities"),
        ("torch_nets.py:softmax_mlp", (30,), (30,), "probabilities"),
        ("torch_nets.py:last_channel", (28, 28), (28, 28, 1), "logits"),
        ("torch_nets.py:lazy", (28, 28), (1, 28, 28), "logits"),
    ],
)
def test_the_input_shape_and_output_are_found(reference, data, shape, kind):
    module = build(reference, data).train()
    before = torch.get_rng_state()
    assert probe_torch(module, data) == (shape, kind)
    assert torch.equal(before, torch.get_rng_state())
    assert all(inner.training for inner in module.modules())
    y = module.eval()(arrange(torch.rand(3, *data), shape))
    assert y.shape == (3, 10)


def test_probing_changes_no_array():
    module = build("torch_nets.py:softmax_mlp")
    before = [a.clone() for a in arrays(module)]
    probe_torch(module, (8, 8))
    assert equal(before, arrays(module))


def test_lazy_layers_get_their_weights_from_the_seed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [build("torch_nets.py:lazy") for _ in range(3)]
    for module, seed in zip(modules, (1, 1, 2), strict=True):
        probe_torch(module, (8, 8), seed)
    a, b, c = map(arrays, modules)
    assert equal(a, b)
    assert not equal(a, c)


def test_a_module_that_fits_nothing_is_refused_with_each_attempt():
    text = message(ModelError, probe_torch, nn.Linear(5, 2), (8, 8))
    assert all(f"{shape}: " in text for shape in arrangements((8, 8)))
    assert "one number per sample" in message(ModelError, probe_torch, build("torch_nets.py:one_output"), (8, 8))


def test_arranging_moves_channels_and_reshapes_the_rest():
    x = torch.arange(2 * 4 * 5 * 3.0).reshape(2, 4, 5, 3)
    first = arrange(x, (3, 4, 5))
    assert torch.equal(first[1, 2], x[1, :, :, 2])
    assert torch.equal(arrange(first, (4, 5, 3)), x)
    assert torch.equal(arrange(x, (60,))[1], x[1].flatten())
    with pytest.raises(ModelError, match=r"\(4, 5, 3\)"):
        arrange(x, (61,))
