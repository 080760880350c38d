"""Every layer that is lowered gives what Keras gives, on random weights and inputs."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedloom.errors import ModelError
from fedloom.layout import Layout
from fedloom.models.graph import parse
from fedloom.models.keras_backend import import_keras
from fedloom.models.lower import LoweredModel, lower

keras = import_keras()
L = keras.layers
IMAGE, LINE, FLAT = (9, 8, 6), (11, 6), (7,)


def config_of(model):
    return {"class_name": type(model).__name__, "config": json.loads(model.to_json())["config"]}


def leaves(model, prefix=""):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def weights_of(model):
    found = {path: [v.value.detach().cpu().numpy().copy() for v in layer.weights] for path, layer in leaves(model)}
    return {path: arrays for path, arrays in found.items() if arrays}


def randomise(model, seed=0):
    chance = np.random.default_rng(seed)
    for _, layer in leaves(model):
        layer.set_weights(
            [
                np.abs(chance.normal(1, 0.3, w.shape)) + 0.1
                if "variance" in w.name
                else np.asarray(5)
                if w.name == "count"
                else chance.normal(0, 0.4, w.shape)
                for w in layer.weights
            ]
        )
        if isinstance(layer, L.Normalization) and layer.input_mean is None:
            layer.finalize_state()
    return model


def lowered(model) -> LoweredModel:
    module = lower(parse(config_of(model)))
    module.load_keras(weights_of(model))
    return module.eval()


def inputs_for(model, batch=5, seed=1):
    shape = [7 if n is None else n for n in model.input_shape[1:]]
    chance = np.random.default_rng(seed)
    if any(isinstance(layer, L.Embedding) for _, layer in leaves(model)):
        return chance.integers(0, 20, (batch, *shape)).astype(np.float32)
    return chance.normal(0, 1.5, (batch, *shape)).astype(np.float32)


def assert_same(model, x=None, tolerance=1e-5):
    x = inputs_for(model) if x is None else x
    with torch.no_grad():
        expected = model(torch.from_numpy(x), training=False).cpu().numpy()
    module = lowered(model)
    with torch.inference_mode():
        found = module.output(torch.from_numpy(x)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)
    return module


def one(shape, *layers):
    return randomise(keras.Sequential([keras.Input(shape), *layers]))


ACTIVATIONS = [
    "relu",
    "relu6",
    "tanh",
    "sigmoid",
    "hard_sigmoid",
    "softmax",
    "softplus",
    "softsign",
    "elu",
    "selu",
    "gelu",
    "silu",
    "swish",
    "mish",
    "leaky_relu",
    "exponential",
    "linear",
    "log_softmax",
    "celu",
    "hard_silu",
    "hard_tanh",
    "hard_shrink",
    "soft_shrink",
    "tanh_shrink",
    "log_sigmoid",
    "squareplus",
]

CASES = {
    "dense": (FLAT, lambda: [L.Dense(4)]),
    "dense without bias": (FLAT, lambda: [L.Dense(4, use_bias=False, activation="relu")]),
    "dense on an image": (IMAGE, lambda: [L.Conv2D(4, 3), L.Dense(5, activation="softmax")]),
    "dense on a line": (LINE, lambda: [L.Dense(5, activation="tanh")]),
    "conv1d": (LINE, lambda: [L.Conv1D(4, 3, activation="relu")]),
    "conv1d same strides": (LINE, lambda: [L.Conv1D(4, 4, strides=3, padding="same")]),
    "conv1d causal dilated": (LINE, lambda: [L.Conv1D(4, 3, padding="causal", dilation_rate=2)]),
    "conv1d causal strides": (LINE, lambda: [L.Conv1D(4, 3, padding="causal", strides=2)]),
    "conv1d groups": (LINE, lambda: [L.Conv1D(4, 3, groups=2, use_bias=False)]),
    "conv1d channels first": (LINE, lambda: [L.Conv1D(4, 3, data_format="channels_first")]),
    "conv2d": (IMAGE, lambda: [L.Conv2D(4, 3)]),
    "conv2d same": (IMAGE, lambda: [L.Conv2D(4, 3, padding="same", activation="relu")]),
    "conv2d same even kernel": (IMAGE, lambda: [L.Conv2D(4, (2, 4), padding="same")]),
    "conv2d same strides": (IMAGE, lambda: [L.Conv2D(4, 3, strides=2, padding="same")]),
    "conv2d same uneven strides": (IMAGE, lambda: [L.Conv2D(4, (5, 2), strides=(3, 2), padding="same")]),
    "conv2d dilated": (IMAGE, lambda: [L.Conv2D(4, (3, 2), dilation_rate=(2, 3))]),
    "conv2d same dilated": (IMAGE, lambda: [L.Conv2D(4, (3, 2), dilation_rate=(2, 3), padding="same")]),
    "conv2d groups": (IMAGE, lambda: [L.Conv2D(9, 3, groups=3)]),
    "conv2d channels first": (IMAGE, lambda: [L.Conv2D(4, 3, strides=2, padding="same", data_format="channels_first")]),
    "conv2d mixed formats": (IMAGE, lambda: [L.Conv2D(4, 3), L.Conv2D(5, 2, data_format="channels_first")]),
    "depthwise": (IMAGE, lambda: [L.DepthwiseConv2D(3, depth_multiplier=2, strides=2, padding="same")]),
    "depthwise channels first": (IMAGE, lambda: [L.DepthwiseConv2D((2, 3), data_format="channels_first")]),
    "depthwise1d": (LINE, lambda: [L.DepthwiseConv1D(3, depth_multiplier=2, padding="same")]),
    "separable": (IMAGE, lambda: [L.SeparableConv2D(5, 3, depth_multiplier=2, padding="same", activation="relu")]),
    "separable strides": (IMAGE, lambda: [L.SeparableConv2D(5, (3, 3), strides=2, use_bias=False)]),
    "separable1d": (LINE, lambda: [L.SeparableConv1D(5, 3, padding="same", depth_multiplier=3)]),
    "batch norm": (IMAGE, lambda: [L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()]),
    "batch norm flat": (FLAT, lambda: [L.BatchNormalization(epsilon=0.01)]),
    "batch norm line": (LINE, lambda: [L.BatchNormalization(center=False)]),
    "batch norm axis 1": (IMAGE, lambda: [L.BatchNormalization(axis=1, scale=False)]),
    "batch norm axis 3": (IMAGE, lambda: [L.BatchNormalization(axis=3, scale=False, center=False)]),
    "layer norm": (FLAT, lambda: [L.LayerNormalization()]),
    "layer norm image": (IMAGE, lambda: [L.Conv2D(4, 3), L.LayerNormalization(epsilon=1e-5, center=False)]),
    "layer norm axes": (IMAGE, lambda: [L.LayerNormalization(axis=[-1, -2])]),
    "max pool 1d": (LINE, lambda: [L.MaxPooling1D(2)]),
    "max pool 1d same": (LINE, lambda: [L.MaxPooling1D(3, strides=2, padding="same")]),
    "max pool": (IMAGE, lambda: [L.MaxPooling2D(2)]),
    "max pool same": (IMAGE, lambda: [L.MaxPooling2D((3, 2), padding="same")]),
    "max pool overlapping": (IMAGE, lambda: [L.MaxPooling2D(3, strides=1, padding="same")]),
    "max pool channels first": (IMAGE, lambda: [L.MaxPooling2D(2, data_format="channels_first")]),
    "average pool 1d": (LINE, lambda: [L.AveragePooling1D(2, padding="same")]),
    "average pool": (IMAGE, lambda: [L.AveragePooling2D((3, 2), strides=(1, 2))]),
    "average pool same": (IMAGE, lambda: [L.AveragePooling2D(3, strides=1, padding="same")]),
    "average pool same pairs": (IMAGE, lambda: [L.AveragePooling2D(2, padding="same")]),
    "global max 1d": (LINE, lambda: [L.GlobalMaxPooling1D()]),
    "global average 1d keepdims": (LINE, lambda: [L.GlobalAveragePooling1D(keepdims=True)]),
    "global average 1d first": (LINE, lambda: [L.GlobalAveragePooling1D(data_format="channels_first")]),
    "global max": (IMAGE, lambda: [L.GlobalMaxPooling2D(keepdims=True)]),
    "global average": (IMAGE, lambda: [L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(3)]),
    "global average first": (IMAGE, lambda: [L.GlobalAveragePooling2D(data_format="channels_first", keepdims=True)]),
    "flatten": (IMAGE, lambda: [L.Conv2D(4, 3), L.Flatten(), L.Dense(3)]),
    "flatten line": (LINE, lambda: [L.Conv1D(4, 3), L.Flatten(), L.Dense(3)]),
    "flatten channels first": (IMAGE, lambda: [L.Conv2D(4, 3), L.Flatten(data_format="channels_first"), L.Dense(3)]),
    "reshape": (IMAGE, lambda: [L.Conv2D(4, 2), L.Reshape((-1, 4)), L.Conv1D(3, 2)]),
    "reshape to image": (FLAT, lambda: [L.Dense(12), L.Reshape((2, 3, 2)), L.Conv2D(3, 2)]),
    "permute": (IMAGE, lambda: [L.Conv2D(4, 2), L.Permute((3, 1, 2)), L.Conv2D(3, 2)]),
    "permute line": (LINE, lambda: [L.Permute((2, 1)), L.Dense(2)]),
    "dropout": (FLAT, lambda: [L.Dense(5), L.Dropout(0.5), L.GaussianDropout(0.3), L.AlphaDropout(0.1), L.Dense(3)]),
    "spatial dropout": (IMAGE, lambda: [L.Conv2D(4, 3), L.SpatialDropout2D(0.5), L.Conv2D(3, 1)]),
    "spatial dropout 1d": (LINE, lambda: [L.SpatialDropout1D(0.5), L.GaussianNoise(0.5)]),
    "relu limits": (FLAT, lambda: [L.ReLU(max_value=1.5, negative_slope=0.1, threshold=0.3)]),
    "relu 6": (IMAGE, lambda: [L.Conv2D(4, 3), L.ReLU(6.0)]),
    "relu slope": (IMAGE, lambda: [L.ReLU(negative_slope=0.2)]),
    "relu zero": (FLAT, lambda: [L.ReLU(max_value=0.0, negative_slope=0.5)]),
    "leaky relu": (IMAGE, lambda: [L.LeakyReLU(), L.LeakyReLU(negative_slope=0.01)]),
    "elu": (FLAT, lambda: [L.ELU(alpha=0.5)]),
    "prelu": (IMAGE, lambda: [L.Conv2D(4, 3), L.PReLU()]),
    "prelu shared": (IMAGE, lambda: [L.PReLU(shared_axes=[1, 2])]),
    "softmax": (LINE, lambda: [L.Softmax()]),
    "softmax axis": (IMAGE, lambda: [L.Conv2D(4, 3), L.Softmax(axis=1)]),
    "softmax image": (IMAGE, lambda: [L.Conv2D(4, 3), L.Activation("softmax")]),
    "layer as argument": (FLAT, lambda: [L.Dense(5, activation=L.LeakyReLU(negative_slope=0.1))]),
    "rescaling": (IMAGE, lambda: [L.Rescaling(1 / 127.5, offset=-1.0), L.Conv2D(4, 3)]),
    "rescaling channels": (LINE, lambda: [L.Rescaling([1.0, 2, 3, 4, 5, 6], offset=[0.5] * 6)]),
    "normalization": (LINE, lambda: [L.Normalization(), L.Dense(3)]),
    "normalization scalar": (IMAGE, lambda: [L.Normalization(axis=None)]),
    "normalization axes": (IMAGE, lambda: [L.Normalization(axis=(1, -1))]),
    "normalization given": (LINE, lambda: [L.Normalization(mean=[1.0, 2, 3, 4, 5, 6], variance=[4.0] * 6)]),
    "normalization given scalar": (FLAT, lambda: [L.Normalization(mean=2.0, variance=9.0, invert=True)]),
    "embedding": ((7,), lambda: [L.Embedding(20, 5), L.Conv1D(4, 3), L.GlobalMaxPooling1D(), L.Dense(2)]),
    "embedding open length": ((None,), lambda: [L.Embedding(20, 5), L.GlobalAveragePooling1D(), L.Dense(1)]),
    "open image": ((None, None, 3), lambda: [L.Conv2D(4, 3, strides=2, padding="same"), L.GlobalMaxPooling2D()]),
    "zero padding": (IMAGE, lambda: [L.ZeroPadding2D(((1, 2), (0, 3))), L.Conv2D(4, 3)]),
    "zero padding first": (IMAGE, lambda: [L.ZeroPadding2D(2, data_format="channels_first")]),
    "zero padding 1d": (LINE, lambda: [L.ZeroPadding1D((1, 2))]),
    "cropping": (IMAGE, lambda: [L.Conv2D(4, 1), L.Cropping2D(((1, 2), (0, 3)))]),
    "cropping 1d": (LINE, lambda: [L.Cropping1D((1, 2))]),
    "up sampling": (IMAGE, lambda: [L.UpSampling2D((2, 3)), L.Conv2D(4, 3)]),
    "up sampling bilinear": (IMAGE, lambda: [L.UpSampling2D(2, interpolation="bilinear")]),
    "up sampling 1d": (LINE, lambda: [L.UpSampling1D(3)]),
    "augmentation": (
        IMAGE,
        lambda: [
            *(L.RandomFlip(), L.RandomRotation(0.2), L.RandomZoom(0.2), L.RandomTranslation(0.1, 0.1)),
            *(L.RandomContrast(0.2), L.RandomBrightness(0.2), L.Conv2D(3, 3)),
        ],
    ),
    "activity regularization": (FLAT, lambda: [L.Dense(3), L.ActivityRegularization(0.1), L.Identity()]),
    **{f"activation {name} layer": (FLAT, lambda n=name: [L.Activation(n)]) for name in ACTIVATIONS},
    **{f"activation {name}": (IMAGE, lambda n=name: [L.Conv2D(4, 2, activation=n)]) for name in ACTIVATIONS},
}


@pytest.mark.parametrize("case", CASES)
def test_a_layer_gives_what_keras_gives(case):
    shape, layers = CASES[case]
    model = one(shape, *layers())
    module = assert_same(model)
    back, given = module.to_keras(), weights_of(model)
    assert back.keys() == given.keys()
    for path, arrays in given.items():
        assert [a.dtype for a in back[path]] == [a.dtype for a in arrays]
        for mine, theirs in zip(back[path], arrays, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("size", "stride"), [(10, 2), (10, 1), (9, 4)])
def test_average_pooling_leaves_the_padding_out(size, stride):
    """Keras on TensorFlow and JAX divides by the elements inside; on PyTorch it repeats the edge, so it is no reference."""
    model = keras.Sequential([keras.Input((size, 2)), L.AveragePooling1D(4, strides=stride, padding="same")])
    x = inputs_for(model)
    count = -(-size // stride)
    before = max((count - 1) * stride + 4 - size, 0) // 2
    starts = [i * stride - before for i in range(count)]
    expected = np.stack([x[:, max(s, 0) : s + 4].mean(1) for s in starts], 1)
    found = lower(parse(config_of(model))).output(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", [(1,), (1, 2), (2, 1)])
def test_layer_norm_of_inner_axes(axes):
    """Keras itself cannot compute these on PyTorch."""
    model = keras.Sequential([keras.Input(IMAGE), L.LayerNormalization(axis=list(axes), name="n")])
    module, chance = lower(parse(config_of(model))), np.random.default_rng(0)
    shape = tuple(IMAGE[a - 1] for a in sorted(axes))
    gamma, beta = chance.normal(size=(2, *shape)).astype(np.float32)
    module.load_keras({"n": [gamma, beta]})
    x = inputs_for(model)
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    wide = shape + (1,) * (3 - len(shape))
    expected = (x - mean) / np.sqrt(variance + 1e-3) * gamma.reshape(wide) + beta.reshape(wide)
    np.testing.assert_allclose(module.output(torch.from_numpy(x)).detach(), expected, rtol=1e-4, atol=1e-5)


def residual(shape=IMAGE):
    inputs = keras.Input(shape)
    x = L.Conv2D(6, 3, padding="same", activation="relu", name="a")(inputs)
    y = L.BatchNormalization(name="b")(x)
    gate = L.Dense(6, activation="sigmoid", name="g")(L.GlobalAveragePooling2D(keepdims=True)(y))
    x = L.Add()([L.Multiply()([y, gate]), inputs])
    x = L.Concatenate()([x, L.AveragePooling2D(3, strides=1, padding="same")(x), inputs])
    x = L.Concatenate(axis=1)([L.MaxPooling2D(2)(x), L.MaxPooling2D(2)(x)])
    outputs = L.Dense(4, activation="softmax", name="o")(L.Flatten()(x))
    return randomise(keras.Model(inputs, outputs))


def test_skip_connections():
    assert_same(residual())


@pytest.mark.parametrize("merge", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"])
@pytest.mark.parametrize("shape", [FLAT, LINE, IMAGE])
def test_merging(merge, shape):
    inputs = keras.Input(shape)
    parts = [L.Dense(shape[-1])(inputs), inputs]
    if merge != "Subtract":
        parts.append(L.Activation("tanh")(parts[0]))
    assert_same(randomise(keras.Model(inputs, getattr(L, merge)()(parts))))


@pytest.mark.parametrize("merge", ["Add", "Multiply", "Average", "Maximum"])
def test_merging_widens_tensors_of_fewer_axes(merge):
    inputs = keras.Input(IMAGE)
    image = L.Conv2D(6, 3, padding="same")(inputs)
    outputs = getattr(L, merge)()([image, L.GlobalMaxPooling2D()(image), L.Reshape((-1, 6))(inputs[:, :1])][:2])
    assert_same(randomise(keras.Model(inputs, outputs)))


def test_operators_between_tensors():
    inputs = keras.Input(IMAGE)
    a, b = L.Conv2D(6, 1)(inputs), inputs
    outputs = keras.ops.maximum(a + b * a - b, a)
    assert_same(randomise(keras.Model(inputs, outputs)))


def test_an_operator_that_mixes_samples_is_refused():
    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, inputs + L.GlobalMaxPooling1D()(inputs))
    with pytest.raises(ModelError, match="Add"):
        lower(parse(config_of(model)))


def nested():
    block = keras.Sequential([L.Dense(6, activation="relu", name="d"), L.BatchNormalization(name="n")], name="block")
    inner_in = keras.Input((6,), name="in")
    inner = keras.Model(inner_in, L.Add()([block(inner_in), inner_in]), name="inner")
    shared = L.Dense(6, name="shared")
    inputs = keras.Input((6,))
    x = inner(shared(inputs))
    x = L.Concatenate()([x, inner(shared(x))])
    return randomise(keras.Model(inputs, L.Dense(3, activation="softmax", name="last")(x)))


def test_nested_and_shared_layers():
    module = assert_same(nested())
    assert set(module.names) == {"shared", "inner/block/d", "inner/block/n", "last"}
    assert sum(p.numel() for p in module.parameters()) == 42 + 42 + 12 + 12 * 3 + 3
    assert [n.name for n in module.graph.nodes if n.layer == "shared"] == ["shared", "shared:1"]


def test_nested_sequential_first():
    base = keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(3, 3), L.Flatten()], name="base")
    assert_same(randomise(keras.Sequential([base, L.Dense(4)])))


def test_nested_model_with_two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    pair = keras.Model([a, b], [L.Subtract()([a, b]), L.Dense(2)(b)], name="pair")
    inputs = keras.Input((3,))
    first, second = pair([L.Dense(3)(inputs), inputs])
    assert_same(randomise(keras.Model(inputs, L.Concatenate()([second, first]))))


def test_forward_gives_logits():
    x = torch.randn(6, 7)
    soft = lowered(one(FLAT, L.Dense(4, activation="softmax")))
    torch.testing.assert_close(torch.softmax(soft(x), -1), soft.output(x))
    layer = lowered(one(FLAT, L.Dense(4), L.Dropout(0.5), L.Softmax()))
    torch.testing.assert_close(torch.softmax(layer(x), -1), layer.output(x))
    assert not torch.allclose(layer(x).sum(-1), layer(x).new_ones(()))
    linear = lowered(one(FLAT, L.Dense(4)))
    torch.testing.assert_close(linear(x), linear.output(x))
    several = lowered(one(FLAT, L.Dense(4, activation="sigmoid")))
    torch.testing.assert_close(several(x).exp(), several.output(x))
    assert soft.n_classes == layer.n_classes == linear.n_classes == several.n_classes == 4


@pytest.mark.parametrize("activation", ["sigmoid", "linear", "hard_sigmoid"])
def test_a_single_output_is_two_classes(activation):
    module = lowered(one(FLAT, L.Dense(1, activation=activation)))
    x = torch.randn(6, 7)
    assert module.n_classes == 2
    assert module(x).shape == (6, 2)
    if activation == "linear":
        torch.testing.assert_close(module(x), torch.cat([torch.zeros(6, 1), module.output(x)], 1))
    else:
        torch.testing.assert_close(torch.softmax(module(x), -1)[:, 1:], module.output(x), atol=1e-5, rtol=1e-4)


def test_an_average_of_softmaxes_is_a_probability():
    inputs = keras.Input(FLAT)
    heads = [L.Dense(3, activation="softmax")(inputs) for _ in range(2)]
    module = lowered(randomise(keras.Model(inputs, L.Average()(heads))))
    x = torch.randn(6, 7)
    torch.testing.assert_close(module(x).exp(), module.output(x))


@pytest.mark.parametrize(
    ("shape", "options"),
    [(IMAGE, {"momentum": 0.7}), (FLAT, {}), (LINE, {"scale": False}), (IMAGE, {"axis": 1, "center": False})],
)
def test_running_statistics_follow_keras(shape, options):
    model = one(shape, L.BatchNormalization(**options), L.Dense(3))
    module = lowered(model).train()
    x = torch.from_numpy(inputs_for(model, batch=6))
    expected = model(x, training=True)
    torch.testing.assert_close(module.output(x), expected, rtol=1e-5, atol=1e-5)
    for path, arrays in weights_of(model).items():
        for mine, theirs in zip(module.to_keras()[path], arrays, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_batch_norm_of_one_sample_follows_keras():
    model = one(FLAT, L.BatchNormalization(name="n"))
    module = lowered(model).train()
    x = torch.from_numpy(inputs_for(model, batch=1)).requires_grad_()
    expected = model(x, training=True)
    found = module.output(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(module.to_keras()["n"][3], weights_of(model)["n"][3], rtol=1e-5)
    found.sum().backward()
    assert x.grad.abs().max() == 0


def test_layers_that_are_not_trainable():
    model = one(IMAGE, L.Conv2D(4, 3, name="c"), L.BatchNormalization(name="n"), L.Flatten(), L.Dense(3))
    model.layers[0].trainable = model.layers[1].trainable = False
    module = lowered(model).train()
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["2_dense.weight", "2_dense.bias"]
    before = module.to_keras()["n"]
    x = torch.from_numpy(inputs_for(model))
    torch.testing.assert_close(module.output(x), model(x, training=True), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(module.to_keras()["n"], before)


def test_a_call_that_fixes_inference():
    """As in the guides to transfer learning: the statistics of a base called with training=False stay."""
    inner = keras.Sequential([L.BatchNormalization(name="n"), L.Dropout(0.5)], name="inner")
    inputs = keras.Input(FLAT)
    model = randomise(keras.Model(inputs, L.Dense(3)(inner(inputs, training=False))))
    module = lowered(model).train()
    x = torch.from_numpy(inputs_for(model))
    torch.testing.assert_close(module.output(x), model(x, training=False), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(module.to_keras()["inner/n"], weights_of(model)["inner/n"])
    assert all(p.requires_grad for p in module.parameters())


def test_noise_acts_in_training_only():
    x = torch.ones(400, 5, 6)
    for layer in (
        L.Dropout(0.5),
        L.Dropout(0.5, noise_shape=(None, 1, 6)),
        L.SpatialDropout1D(0.5),
        L.GaussianNoise(0.5),
        L.GaussianDropout(0.5),
    ):
        module = lower(parse(config_of(keras.Sequential([keras.Input((5, 6)), layer]))))
        drawn = module.train().output(x)
        assert abs(drawn.mean() - 1) < 0.1
        assert drawn.std() > 0.3
        assert torch.equal(module.eval().output(x), x)
        if isinstance(layer, L.SpatialDropout1D) or getattr(layer, "noise_shape", None):
            assert torch.equal(drawn, drawn[:, :1].expand_as(drawn))


def test_gradients_equal_keras():
    model = residual()
    module = lowered(model).train()
    x = torch.from_numpy(inputs_for(model))
    for m, run in ((model, lambda: model(x, training=True)), (module, lambda: module.output(x))):
        m.zero_grad()
        run()[:, 0].log().sum().backward()
    theirs = {v.path.split("/")[0]: v.value.grad for v in model.trainable_variables if v.name == "kernel"}
    mine = dict(module.named_parameters())
    conv, out = mine[f"{module.names['a']}.weight"].grad, mine[f"{module.names['o']}.weight"].grad
    torch.testing.assert_close(conv.permute(2, 3, 1, 0), theirs["a"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.T, theirs["o"], rtol=1e-4, atol=1e-5)


def test_names_do_not_depend_on_the_files():
    def build(*names):
        return one(IMAGE, L.Conv2D(4, 3, name=names[0]), L.Flatten(), L.Dense(3, name=names[1]))

    one_, two = lowered(build("a", "b")), lowered(build("conv_9", "head"))
    assert [n for n, _ in one_.named_parameters()] == [
        f"{m}.{p}" for m in ("0_conv2d", "1_dense") for p in ("weight", "bias")
    ]
    assert Layout.of(one_).digest == Layout.of(two).digest
    assert one_.by_path["a"].weight.shape == (4, 6, 3, 3)


def test_mixed_precision_is_computed_in_float32():
    policy = keras.DTypePolicy("mixed_float16")
    model = one(FLAT, L.Dense(4, dtype=policy, activation="relu"), L.Dense(3, activation="softmax", dtype="float32"))
    module = lowered(model)
    x = torch.from_numpy(inputs_for(model))
    assert module.output(x).dtype == torch.float32
    torch.testing.assert_close(module.output(x), model(x), rtol=0.02, atol=0.02)


def test_regularization_equals_keras():
    reg = keras.regularizers
    model = one(
        IMAGE,
        L.Conv2D(4, 3, kernel_regularizer=reg.L2(0.01), bias_regularizer="l1"),
        L.SeparableConv2D(4, 3, depthwise_regularizer=reg.L1(0.02), pointwise_regularizer=reg.L1L2(0.1, 0.2)),
        L.BatchNormalization(gamma_regularizer="l2"),
        L.Dense(3, kernel_regularizer="l2", trainable=False),
    )
    module = lowered(model)
    torch.testing.assert_close(module.regularization(), sum(model.losses))
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert module.regularization(zeros) == 0
    assert lowered(one(FLAT, L.Dense(3))).regularization() is None


def test_what_training_does_not_follow_is_noted():
    model = one(IMAGE, L.RandomFlip(name="flip"), L.Conv2D(3, 3, name="c", kernel_constraint="max_norm"))
    assert [n.split(":")[0] for n in lowered(model).notes] == [
        "layer 'flip' (RandomFlip) does not augment in training",
        "layer 'c'",
    ]


def test_weights_that_do_not_fit_are_named():
    model = one(FLAT, L.Dense(4, name="d"), L.Dense(3, name="e"))
    module, weights = lowered(model), weights_of(model)
    with pytest.raises(ModelError, match=r"'d' \(Dense\): kernel .*\(4, 7\).*\(7, 4\)"):
        module.load_keras({**weights, "d": [weights["d"][0].T, weights["d"][1]]})
    with pytest.raises(ModelError, match=r"'e' \(Dense\) has no weights"):
        module.load_keras({"d": weights["d"]})
    with pytest.raises(ModelError, match=r"1 arrays .* kernel, bias"):
        module.load_keras({**weights, "e": weights["e"][:1]})
    with pytest.raises(ModelError, match="'other'"):
        module.load_keras({**weights, "other": []})
    before = module.to_keras()["d"]
    np.testing.assert_array_equal(before[0], weights["d"][0])


def test_normalization_without_count_goes_back_without():
    model = one(FLAT, L.Normalization(name="n"), L.Dense(2))
    module, weights = lowered(model), weights_of(model)
    module.load_keras({**weights, "n": weights["n"][:2]})
    assert len(module.to_keras()["n"]) == 2


def test_a_layer_that_does_not_fit_its_input_is_named():
    config = config_of(one(IMAGE, L.Conv2D(4, 3, name="c"), L.MaxPooling2D(2, name="p")))
    config["config"]["layers"][1]["config"]["kernel_size"] = [30, 3]
    with pytest.raises(ModelError, match=r"'c' \(Conv2D\) does not fit an input of shape \(9, 8, 6\)"):
        lower(parse(config))
    config["config"]["layers"][1]["config"].update(kernel_size=[3, 3], groups=4)
    with pytest.raises(ModelError, match=r"'c'.*6 input channels cannot be divided into 4 groups"):
        lower(parse(config))


@pytest.mark.parametrize("size", [1, 2, (2, 3), 4])
def test_max_pooling_is_the_same_with_and_without_gradients(size):
    model = one(IMAGE, L.MaxPooling2D(size))
    module, x = lowered(model), torch.from_numpy(inputs_for(model))
    with torch.no_grad():
        expected = module.output(x)
    assert torch.equal(module.output(x), expected)


def test_several_outputs_are_refused():
    inputs = keras.Input(FLAT)
    with pytest.raises(ModelError, match="2 outputs"):
        lower(parse(config_of(keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(3)(inputs)]))))


def test_initialisation_is_seeded_and_keeps_statistics_of_the_data():
    model = one(FLAT, L.Normalization(name="n"), L.Dense(50, name="d"), L.BatchNormalization(name="b"))
    module = lowered(model)
    module.initialize(3)
    first = module.to_keras()
    module.initialize(4)
    assert not np.allclose(first["d"][0], module.to_keras()["d"][0])
    module.initialize(3)
    for path, arrays in module.to_keras().items():
        for a, b in zip(arrays, first[path], strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first["n"][0], weights_of(model)["n"][0])
    assert [float(a.mean()) for a in first["b"]] == [1.0, 0.0, 0.0, 1.0]
    assert np.abs(first["d"][0]).max() <= np.sqrt(6 / 57)


def test_images_pass_without_copies():
    model = one((28, 28, 3), L.Conv2D(8, 3, activation="relu"), L.MaxPooling2D(2), L.Flatten(), L.Dense(10))
    module = lowered(model)
    seen = {}
    module.by_path[model.layers[0].name].register_forward_hook(lambda m, a, y: seen.update(given=a[0], result=y))
    module.by_path[model.layers[-1].name].register_forward_hook(lambda m, a, y: seen.update(flat=a[0]))
    x = torch.randn(4, 28, 28, 3)
    module(x)
    assert seen["given"].data_ptr() == x.data_ptr()
    assert seen["result"].is_contiguous(memory_format=torch.channels_last)
    assert seen["flat"]._base is not None


def test_copies_compile_and_batch_over_clients():
    model = residual()
    module = lowered(model)
    x = torch.from_numpy(inputs_for(model))
    expected = module(x)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    torch.testing.assert_close(module(x), expected)
    stacked = {n: torch.stack([p, 0 * p]) for n, p in [*module.named_parameters(), *module.named_buffers()]}
    run = torch.func.vmap(lambda arrays: torch.func.functional_call(module, arrays, (x,)))
    torch.testing.assert_close(run(stacked)[0], expected, rtol=1e-4, atol=1e-4)


def test_training_batches_over_clients():
    """One step of two clients at once through vmap, running statistics included, equals one after the other."""
    model = one((8, 8, 1), L.Conv2D(3, 3, activation="relu"), L.BatchNormalization(), L.Flatten(), L.Dense(4))
    module = lowered(model).train()
    x, y = torch.randn(2, 5, 8, 8, 1), torch.randint(0, 4, (2, 5))
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    state = {n: b.detach().clone() for n, b in module.named_buffers()}

    def loss(parameters, buffers, x, y):
        return functional.cross_entropy(torch.func.functional_call(module, {**parameters, **buffers}, (x,)), y)

    alone = []
    for i in range(2):
        buffers = {n: b.clone() for n, b in state.items()}
        alone.append((torch.func.grad(loss)(start, buffers, x[i], y[i]), buffers))
    many = {n: torch.stack([p, p]) for n, p in start.items()}
    buffers = {n: torch.stack([b, b]) for n, b in state.items()}
    gradients = torch.func.vmap(torch.func.grad(loss))(many, buffers, x, y)
    for i, (own_gradients, own_buffers) in enumerate(alone):
        for name, g in own_gradients.items():
            torch.testing.assert_close(gradients[name][i], g, rtol=1e-4, atol=1e-5)
        for name, b in own_buffers.items():
            torch.testing.assert_close(buffers[name][i], b, rtol=1e-4, atol=1e-5)
            assert not torch.equal(b, state[name])
