import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fedloom.errors import ArchitectureError, ModelError
from fedloom.layout import Layout
from fedloom.models.factory import make
from fedloom.models.keras_backend import import_keras
from fedloom.models.keras_slow import KerasModule, from_config

MODELS = Path(__file__).parents[2] / "fixtures" / "models"
keras = import_keras()
layers = keras.layers


def recurrent():
    return make("tf_styles.py:recurrent", (8, 8), 5, base=MODELS)


def with_state():
    inner = keras.Sequential(
        [layers.Input((8,)), layers.Dense(6, kernel_regularizer="l2"), layers.BatchNormalization()]
    )
    x = inputs = layers.Input((8, 8))
    x = layers.GRU(8)(x)
    x = layers.Dropout(0.5)(inner(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", activity_regularizer=None)(x))


def get_weights(layer):
    return [w.value.detach().numpy() for w in layer.weights]


def probabilities(model, x):
    return model(x, training=False).detach()


@pytest.mark.parametrize("build", [recurrent, with_state])
def test_outputs_are_those_of_keras(build):
    model = build()
    module = KerasModule(model).eval()
    x = torch.randn(6, 8, 8)
    with torch.no_grad():
        assert torch.allclose(module.output(x), probabilities(model, x), atol=1e-6)
        assert torch.allclose(module(x).softmax(1), probabilities(model, x), atol=1e-6)
    assert module.input_shape == (8, 8)
    assert module.n_classes == module(x).shape[1]


def test_names_do_not_depend_on_the_layers_names():
    a, b = KerasModule(recurrent()), KerasModule(make("tf_styles.py:recurrent", (8, 8), 5, base=MODELS))
    config = recurrent().get_config()
    for i, layer in enumerate(config["layers"]):
        layer["config"]["name"] = f"other_{i}"
    c = from_config({"class_name": "Sequential", "config": config})
    assert Layout.of(a).digest == Layout.of(b).digest == Layout.of(c).digest
    assert Layout.of(a).names[0] == "0_lstm.0_kernel"


def test_one_training_step_changes_every_trainable_array_and_the_statistics():
    torch.manual_seed(0)
    module = KerasModule(with_state()).train()
    before = {name: array.clone() for name, array in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    loss = torch.nn.functional.cross_entropy(module(torch.randn(16, 8, 8)), torch.arange(16) % 3)
    (loss + module.regularization()).backward()
    optimizer.step()
    after = module.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still <= {"1_dense.1_bias"}  # a bias before BatchNormalization has no gradient but for rounding


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    module = KerasModule(recurrent()).train()
    x, y = torch.randn(32, 8, 8), torch.arange(32) % 5
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        assert (module.eval()(x).argmax(1) == y).float().mean() > 0.8


def test_dropout_follows_the_seed_of_pytorch():
    module = KerasModule(recurrent()).train()
    x = torch.randn(4, 8, 8)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(module(x).detach())
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    module.eval()
    assert torch.equal(module(x), module(x))


def test_the_module_is_a_function_of_its_arrays():
    module = KerasModule(with_state()).eval()
    x = torch.randn(3, 8, 8)
    other = {name: array.detach() + 0.1 for name, array in module.state_dict().items()}
    expected = copy.deepcopy(module)
    expected.load_state_dict(other)
    with torch.no_grad():
        assert torch.equal(functional_call(module, other, (x,)), expected(x))
        assert not torch.equal(module(x), expected(x))


def test_the_layout_reads_and_writes_it():
    module = KerasModule(with_state())
    layout = Layout.of(module)
    assert layout.size - layout.trainable == 12
    vector = torch.randn(layout.size)
    layout.write(module, vector)
    assert torch.equal(layout.read(module), vector)


def test_weights_come_and_go():
    source, target = KerasModule(with_state()), KerasModule(with_state())
    target.load_weights(source.weights())
    assert all(np.array_equal(a, b) for a, b in zip(source.weights(), target.weights(), strict=True))
    target = KerasModule(recurrent())
    other = make("tf_styles.py:recurrent", (8, 8), 5, 1, MODELS)
    target.load_weights(get_weights(other))
    x = torch.randn(4, 8, 8)
    assert torch.allclose(target.eval().output(x), probabilities(other, x), atol=1e-6)
    again = KerasModule(recurrent())
    again.load_keras(target.to_keras())
    assert all(np.array_equal(a, b) for a, b in zip(again.weights(), target.weights(), strict=True))


def test_fresh_weights_follow_the_seed():
    module = KerasModule(with_state())
    layout = Layout.of(module)
    before = random.getstate(), torch.get_rng_state()
    vectors = []
    for seed in (1, 1, 2):
        module.initialize(seed)
        vectors.append(layout.read(module))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_rebuilding_moves_no_global_generator():
    config = keras.saving.serialize_keras_object(recurrent())
    before = random.getstate(), torch.get_rng_state()
    from_config(config)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_weights_by_layer_have_keras_order_and_nested_paths():
    model = with_state()
    arrays = KerasModule(model).to_keras()
    assert [path.count("/") for path in arrays] == [0, 1, 1, 0]
    for layer in model.layers:
        if layer.weights and not hasattr(layer, "layers"):
            assert all(np.array_equal(a, b) for a, b in zip(arrays[layer.name], get_weights(layer), strict=True))


def test_weights_that_do_not_fit_are_named():
    module = KerasModule(recurrent())
    weights = module.weights()
    with pytest.raises(ArchitectureError, match=r"0_lstm\.0_kernel.*\(3, 3\).*\(8, 24\)"):
        module.load_weights([np.zeros((3, 3)), *weights[1:]])
    with pytest.raises(ArchitectureError, match=r"5 arrays, 4"):
        module.load_weights(weights[1:])
    arrays = module.to_keras()
    arrays.pop(next(path for path in arrays if path.startswith("lstm")))
    with pytest.raises(ArchitectureError, match="layer 'lstm"):
        module.load_keras(arrays)


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
def test_one_unit_becomes_two_logits(activation):
    model = keras.Sequential([layers.Input((8, 8)), layers.LSTM(4), layers.Dense(1, activation=activation)])
    module = KerasModule(model).eval()
    x = torch.randn(5, 8, 8)
    with torch.no_grad():
        logits, y = module(x), module.output(x)
    assert module.n_classes == logits.shape[1] == 2
    expected = y if activation == "sigmoid" else y.sigmoid()
    assert torch.allclose(logits.softmax(1)[:, 1:], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("last", "logits"),
    [
        (lambda x: layers.Softmax()(layers.Dense(3)(x)), False),
        (lambda x: layers.Activation("softmax")(layers.Dense(3)(x)), False),
        (lambda x: layers.Average()([layers.Dense(3, "softmax")(x), layers.Dense(3, "softmax")(x)]), False),
        (keras.Sequential([layers.Dense(3, "softmax")]), False),
        (layers.Dense(3), True),
        (layers.Dense(3, "log_softmax"), True),
        (lambda x: layers.Add()([layers.Dense(3)(x), layers.Dense(3)(x)]), True),
    ],
)
def test_probabilities_are_told_from_logits(last, logits):
    inputs = layers.Input((8, 8))
    model = keras.Model(inputs, last(layers.LSTM(4)(inputs)))
    module = KerasModule(model).eval()
    assert module.logits is logits
    x = torch.randn(5, 8, 8)
    with torch.no_grad():
        expected = module.output(x) if not logits else module.output(x).softmax(1)
        assert torch.allclose(module(x).softmax(1), expected, atol=1e-6)


def test_code_in_a_lambda_is_refused():
    model = keras.Sequential([layers.Input((4,)), layers.Lambda(lambda x: x * 2), layers.Dense(2)])
    config = keras.saving.serialize_keras_object(model)
    with pytest.raises(ModelError, match="Lambda") as info:
        from_config(config)
    assert "\n" not in str(info.value)


def function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("activation", function("builtins", "print")),
        ("activation", function("os", "system")),
        ("kernel_initializer", {"module": "subprocess", "class_name": "Popen", "config": {"args": "ls"}}),
        ("kernel_regularizer", {"module": "keras.utils", "class_name": "get_file", "config": {}}),
        ("kernel_constraint", {"module": "keras.layersX", "class_name": "Dense", "config": {}}),
        ("activation", {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}}),
        (
            "activation",
            {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
        ),
        ("activation", {"class_name": "__lambda__", "config": {"value": "x"}}),
    ],
)
def test_what_is_not_keras_own_is_never_handed_to_keras(where, value):
    config = keras.saving.serialize_keras_object(keras.Sequential([layers.Input((4, 2)), layers.LSTM(3)]))
    config["config"]["layers"][1]["config"][where] = value
    with pytest.raises(ModelError, match="none of Keras' own layers"):
        from_config(config)


def test_classes_that_the_users_own_code_has_registered_are_taken():
    @keras.saving.register_keras_serializable("fedloom_test")
    class Doubled(layers.Layer):
        def call(self, x):
            return 2 * x

    model = keras.Sequential([layers.Input((8, 8)), layers.LSTM(3, "elu"), Doubled(), layers.Dense(2)])
    config = keras.saving.serialize_keras_object(model)
    compiled = {"optimizer": {"module": "os", "class_name": "system", "config": {}}}  # not looked at
    assert from_config({**config, "compile_config": compiled}).n_classes == 2


def test_what_cannot_be_rebuilt_is_refused():
    with pytest.raises(ModelError, match="NoSuchLayer"):
        from_config({"class_name": "NoSuchLayer", "config": {}, "module": "keras.layers", "registered_name": None})
    with pytest.raises(ModelError, match="a Dense, not a model"):
        from_config(keras.saving.serialize_keras_object(layers.Dense(2)))
    inputs = layers.Input((8,))
    with pytest.raises(ModelError, match="one input and one output"):
        KerasModule(keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)]))
    with pytest.raises(ModelError, match="score per class"):
        KerasModule(keras.Sequential([layers.Input((8, 8)), layers.LSTM(4, return_sequences=True)]))
