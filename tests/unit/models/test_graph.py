"""Configurations of both dialects become graphs; architectures compare by what they compute."""

import copy
import json

import pytest

from fedloom.errors import ModelError
from fedloom.models.graph import Graph, first_difference, parse
from fedloom.models.lower import lower

L2 = {"class_name": "L2", "config": {"l2": 0.01}}


def layer(class_name, name, **config):
    return {"class_name": class_name, "config": {"name": name, **config}}


def sequential(*layers, shape=(8, 8, 1)):
    start = layer("InputLayer", "input", batch_shape=[None, *shape])
    return {"class_name": "Sequential", "config": {"name": "s", "layers": [start, *layers]}}


def cnn(prefix="", **conv):
    options = {"filters": 4, "kernel_size": [3, 3], "activation": "relu", **conv}
    return sequential(
        layer("Conv2D", f"{prefix}conv", **options),
        layer("MaxPooling2D", f"{prefix}pool", pool_size=[2, 2]),
        layer("Flatten", f"{prefix}flat"),
        layer("Dense", f"{prefix}out", units=3, activation="softmax"),
    )


KERAS2_SEQUENTIAL = {
    "class_name": "Sequential",
    "config": {
        "name": "sequential_1",
        "layers": [
            layer("InputLayer", "in", batch_input_shape=[None, 8, 8, 1], dtype="float32", sparse=False, ragged=False),
            layer(
                "Conv2D",
                "conv2d_7",
                trainable=True,
                dtype="float32",
                filters=4,
                kernel_size=[3, 3],
                strides=[1, 1],
                padding="valid",
                data_format="channels_last",
                dilation_rate=[1, 1],
                groups=1,
                activation="relu",
                use_bias=True,
                kernel_initializer={"class_name": "GlorotUniform", "config": {"seed": None}},
                bias_initializer={"class_name": "Zeros", "config": {}},
                kernel_regularizer=None,
                bias_regularizer=None,
                activity_regularizer=None,
                kernel_constraint=None,
                bias_constraint=None,
            ),
            layer("BatchNormalization", "bn", axis=[3], momentum=0.99, epsilon=0.001, center=True, scale=True),
            layer("LeakyReLU", "leaky", alpha=0.1),
            layer("Flatten", "flatten", data_format="channels_last"),
            layer("Dense", "dense_9", units=3, activation="hard_sigmoid", use_bias=True),
        ],
    },
}
KERAS2_FUNCTIONAL = {
    "class_name": "Functional",
    "config": {
        "name": "model",
        "trainable": True,
        "layers": [
            {**layer("InputLayer", "x", batch_input_shape=[None, 6]), "name": "x", "inbound_nodes": []},
            {
                **layer("Dense", "shared", units=6, activation="relu"),
                "name": "shared",
                "inbound_nodes": [[["x", 0, 0, {}]], [["shared", 0, 0, {}]]],
            },
            {
                **layer("Concatenate", "join", axis=-1),
                "name": "join",
                "inbound_nodes": [[["shared", 0, 0, {}], ["shared", 1, 0, {}], ["x", 0, 0, {}]]],
            },
            {
                **layer("BatchNormalization", "bn", axis=[1]),
                "name": "bn",
                "inbound_nodes": [[["join", 0, 0, {"training": False}]]],
            },
            {
                **layer("Dense", "out", units=2, activation="softmax"),
                "name": "out",
                "inbound_nodes": [[["bn", 0, 0, {}]]],
            },
        ],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["out", 0, 0]],
    },
}


def test_keras_2_sequential():
    graph = parse(KERAS2_SEQUENTIAL)
    assert graph.signature() == [
        "InputLayer(shape=(8, 8, 1)) <-",
        "Conv2D(filters=4, groups=1, kernel_size=(3, 3), strides=(1, 1), padding=valid, data_format=channels_last, "
        "dilation_rate=(1, 1), use_bias=True) <- 0",
        "activation relu() <- 1",
        "BatchNormalization(axis=3, epsilon=0.001, center=True, scale=True, renorm=False) <- 2",
        "activation leaky_relu(negative_slope=0.1) <- 3",
        "Flatten(data_format=channels_last) <- 4",
        "Dense(units=3, use_bias=True) <- 5",
        "activation hard_sigmoid_keras2() <- 6",
        "output() <- 7",
    ]
    assert list(lower(graph).names.values()) == ["0_conv2d", "1_batchnormalization", "2_dense"]


def test_keras_2_functional_with_a_shared_layer():
    graph = parse(KERAS2_FUNCTIONAL)
    assert [(n.name, n.inputs, n.training) for n in graph.nodes] == [
        ("x", (), None),
        ("shared", ("x",), None),
        ("shared:1", ("shared",), None),
        ("join", ("shared", "shared:1", "x"), None),
        ("bn", ("join",), False),
        ("out", ("bn",), None),
    ]
    assert "Dense(units=6, use_bias=True) weights of 1 <- 2" in graph.signature()
    model = lower(graph)
    assert {n: tuple(p.shape) for n, p in model.named_parameters() if "dense" in n} == {
        "0_dense.weight": (6, 6),
        "0_dense.bias": (6,),
        "2_dense.weight": (2, 18),
        "2_dense.bias": (2,),
    }


def test_keras_2_counts_the_construction_of_a_nested_model_as_its_first_call():
    config = copy.deepcopy(KERAS2_FUNCTIONAL)
    start = layer("InputLayer", "i", batch_input_shape=[None, 6])
    inner = {"class_name": "Sequential", "config": {"name": "shared", "layers": [start, layer("Dense", "d", units=6)]}}
    layers = config["config"]["layers"]
    layers[1] = {**inner, "name": "shared", "inbound_nodes": [[["x", 0, 0, {}]], [["shared", 1, 0, {}]]]}
    layers[2]["inbound_nodes"] = [[["shared", 1, 0, {}], ["shared", 2, 0, {}], ["x", 0, 0, {}]]]
    graph = parse(config)
    assert [n.name for n in graph.nodes][:3] == ["x", "shared/d", "shared/d:1"]
    assert graph.nodes[3].inputs == ("shared/d", "shared/d:1", "x")


def test_keras_2_shape_on_the_first_layer_and_layers_as_a_list():
    first = layer("Dense", "d", units=3, batch_input_shape=[None, 5])
    graph = parse({"class_name": "Sequential", "config": [first]})
    assert graph.layers[graph.inputs[0]].config["shape"] == (5,)
    assert parse(sequential(layer("Dense", "e", units=3), shape=(5,))).signature() == graph.signature()


def test_both_dialects_of_hard_sigmoid():
    three = copy.deepcopy(KERAS2_SEQUENTIAL)
    three["config"]["layers"][0]["config"]["batch_shape"] = three["config"]["layers"][0]["config"].pop(
        "batch_input_shape"
    )
    three["config"]["layers"][3]["config"]["negative_slope"] = three["config"]["layers"][3]["config"].pop("alpha")
    assert first_difference(parse(KERAS2_SEQUENTIAL), parse(three)) == (
        "layer 'dense_9' has activation hard_sigmoid_keras2 where layer 'dense_9' has activation hard_sigmoid"
    )


def test_built_shape_of_a_sequential():
    config = {"layers": [layer("Dense", "d", units=2)], "build_input_shape": [None, 4]}
    assert parse({"class_name": "Sequential", "config": config}).signature()[0] == "InputLayer(shape=(4,)) <-"
    with pytest.raises(ModelError, match="no input shape"):
        parse({"class_name": "Sequential", "config": {"layers": [layer("Dense", "d", units=2)]}})


def test_signature_does_not_see_names_or_training():
    plain = parse(cnn())
    other = cnn("other_", kernel_regularizer=L2, kernel_initializer="he_normal", trainable=False)
    other["config"]["layers"].insert(3, layer("Dropout", "drop", rate=0.5))
    other["config"]["layers"].insert(1, layer("RandomFlip", "flip", mode="horizontal"))
    assert parse(other).signature() == plain.signature()
    assert first_difference(plain, parse(other)) is None


def test_an_activation_is_one_thing_as_argument_and_as_layer():
    split = cnn(activation="linear")
    split["config"]["layers"].insert(2, layer("ReLU", "relu", max_value=None, negative_slope=0.0, threshold=0.0))
    assert parse(split).signature() == parse(cnn()).signature()


def test_order_of_layers_in_the_file_does_not_matter():
    shuffled = copy.deepcopy(KERAS2_FUNCTIONAL)
    shuffled["config"]["layers"].reverse()
    assert parse(shuffled).signature() == parse(KERAS2_FUNCTIONAL).signature()
    assert parse(shuffled).nodes == parse(KERAS2_FUNCTIONAL).nodes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": [2, 2]}, "layer 'conv' (Conv2D) has strides (1, 1) where layer 'b_conv' has (2, 2)"),
        ({"activation": "tanh"}, "layer 'conv' has activation relu where layer 'b_conv' has activation tanh"),
        ({"activation": None}, "layer 'conv' has activation relu where layer 'b_pool' has the class MaxPooling2D"),
        ({"filters": 5}, "layer 'conv' (Conv2D) has filters 4 where layer 'b_conv' has 5"),
    ],
)
def test_the_first_difference_is_named(change, message):
    a, b = parse(cnn()), parse(cnn("b_", **change))
    assert a.signature() != b.signature()
    assert first_difference(a, b) == message
    assert first_difference(b, a) is not None


def test_differences_of_depth_input_and_wiring():
    longer = cnn()
    longer["config"]["layers"].append(layer("Dense", "extra", units=3))
    assert "'extra'" in str(first_difference(parse(cnn()), parse(longer)))
    wide = parse(sequential(layer("Flatten", "f"), shape=(9, 8, 1)))
    assert first_difference(parse(sequential(layer("Flatten", "f"))), wide) == (
        "layer 'input' (InputLayer) has shape (8, 8, 1) where layer 'input' has (9, 8, 1)"
    )
    rewired, untied = copy.deepcopy(KERAS2_FUNCTIONAL), copy.deepcopy(KERAS2_FUNCTIONAL)
    rewired["config"]["layers"][2]["inbound_nodes"][0].reverse()
    assert "'join' (Concatenate) takes its input from" in str(
        first_difference(parse(KERAS2_FUNCTIONAL), parse(rewired))
    )
    layers = untied["config"]["layers"]
    twin = {
        **layer("Dense", "twin", units=6, activation="relu"),
        "name": "twin",
        "inbound_nodes": [[["shared", 0, 0, {}]]],
    }
    layers[1]["inbound_nodes"].pop()
    layers.append(twin)
    layers[2]["inbound_nodes"][0][1][0:2] = ["twin", 0]
    assert "do not share" in str(first_difference(parse(KERAS2_FUNCTIONAL), parse(untied)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (layer("Lambda", "mine", function=["4wEAAAA", None, None]), r"'mine' \(Lambda\).*Python code"),
        (layer("LSTM", "memory", units=3), r"'memory' \(LSTM\) cannot be lowered.*PyTorch factory"),
        ({**layer("Dense", "own", units=3), "module": "my.code", "registered_name": "my>Dense"}, r"'own' \(Dense\)"),
        (layer("RandomCrop", "crop", height=3, width=3), r"'crop' \(RandomCrop\)"),
        (layer("Dense", "d", units=3, activation="my_function"), "'d' has the activation 'my_function'"),
        (layer("Dense", "d", units=3, activation={"class_name": "function", "config": "f"}), "activation 'f'"),
        (layer("Dense", "d", units=-3), r"'d' \(Dense\) has units = -3"),
        (layer("Dense", "d"), r"'d' \(Dense\) has no 'units'"),
        (layer("Conv2D", "c", filters=2, kernel_size=[3, 3, 3]), "kernel_size"),
        (layer("Conv2D", "c", filters=2, kernel_size=3, padding="full"), "padding = 'full'"),
        (layer("Embedding", "e", input_dim=5, output_dim=3, mask_zero=True), "mask_zero = True"),
        (layer("BatchNormalization", "b", renorm=True), "renorm = True"),
        (layer("BatchNormalization", "b", axis=[1, 2]), "axis"),
        (layer("LayerNormalization", "l", rms_scaling=True), "rms_scaling = True"),
        (layer("UpSampling2D", "u", interpolation="bicubic"), "bicubic"),
        (layer("Softmax", "s", axis=[1, 2]), "'s' .* axis"),
    ],
)
def test_what_cannot_be_lowered_is_named(bad, message):
    with pytest.raises(ModelError, match=message):
        parse(sequential(bad))


def test_nested_layers_are_refused_by_path():
    inner = {"class_name": "Sequential", "config": {"name": "in", "layers": [layer("GRU", "g", units=2)]}}
    with pytest.raises(ModelError, match=r"'in/g' \(GRU\)"):
        parse(sequential(inner, shape=(4, 2)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c["config"].pop("layers"),
        lambda c: c["config"].update(layers=[1, 2]),
        lambda c: c["config"]["layers"][0]["config"].update(batch_input_shape="abc"),
        lambda c: c["config"]["layers"][2].update(inbound_nodes=[[["nowhere", 0, 0, {}]]]),
        lambda c: c["config"]["layers"][1].update(inbound_nodes=[[["out", 0, 0, {}]]]),
        lambda c: c["config"]["layers"][1].update(inbound_nodes=[[]]),
        lambda c: c["config"]["layers"][3].update(inbound_nodes=[[["join", 0, 0, {"training": True}]]]),
        lambda c: c["config"].update(output_layers=[["x", 0]]),
        lambda c: c["config"].update(output_layers=None),
        lambda c: c.update(class_name="MyModel"),
        lambda c: c.update(config=None),
    ],
)
def test_damaged_configurations_are_one_line(damage):
    config = copy.deepcopy(KERAS2_FUNCTIONAL)
    damage(config)
    with pytest.raises(ModelError) as caught:
        parse(config)
    assert "\n" not in str(caught.value)


def test_calls_that_no_output_needs_are_left_out():
    config = copy.deepcopy(KERAS2_FUNCTIONAL)
    aside = {**layer("Dense", "aside", units=9), "name": "aside", "inbound_nodes": [[["x", 0, 0, {}]]]}
    config["config"]["layers"].insert(1, aside)
    graph = parse(config)
    assert isinstance(graph, Graph)
    assert "aside" not in graph.layers
    assert graph.signature() == parse(KERAS2_FUNCTIONAL).signature()


def test_parsing_leaves_the_configuration_alone():
    before = json.dumps(KERAS2_FUNCTIONAL)
    lower(parse(KERAS2_FUNCTIONAL))
    assert json.dumps(KERAS2_FUNCTIONAL) == before
