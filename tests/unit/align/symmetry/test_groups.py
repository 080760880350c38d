"""Units of every supported model change places, and its function stays."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

from fedloom.align.symmetry.check import Check
from fedloom.align.symmetry.graph import Group, Symmetry, Use, derive
from fedloom.align.symmetry.rules import number
from fedloom.align.symmetry.trace import trace
from fedloom.errors import ModelError
from fedloom.models import io
from fedloom.models.keras_backend import import_keras

keras = import_keras()
L = keras.layers
IMAGE, LINE, FLAT = (9, 8, 3), (11, 4), (7,)


def model_of(made):
    config = {"class_name": type(made).__name__, "config": json.loads(made.to_json())["config"]}
    model = io.from_config(config)
    return model.load(weights(model.layout, 0))


def weights(layout, seed):
    """Random weights and statistics, none of them trivial."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(layout.size, generator=generator)
    for name, array in layout.unpack(vector).items():
        if name.endswith(("running_var", "variance")):
            array.abs_().add_(0.3)
        elif array.dim() > 1:
            array.mul_(1.5 * (len(array) / array.numel()) ** 0.5)
    return vector


@functools.cache
def case(name):
    """A model of the table, its symmetry, inputs, weights and outputs."""
    model = model_of(CASES[name][0]())
    x, vector = inputs_for(model), model.vector()
    return model, derive(model), x, vector, outputs(model, vector, x)


def chain(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def graph(shape, build):
    inputs = keras.Input(shape)
    return keras.Model(inputs, build(inputs))


def head(x, flatten=True):
    return L.Dense(3)(L.Flatten()(x) if flatten else x)


def residual(x):
    x = L.Conv2D(6, 3, padding="same")(x)
    y = L.Activation("relu")(L.BatchNormalization()(L.Conv2D(6, 3, padding="same", activation="relu")(x)))
    y = L.Conv2D(6, 3, padding="same")(y)
    x = L.ReLU()(L.Add()([x, y]))
    y = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = L.Add()([y, L.Conv2D(8, 1, strides=2)(x)])
    return head(L.GlobalAveragePooling2D()(x), flatten=False)


def concatenated(x):
    a, b = L.Conv2D(4, 3, activation="relu")(x), L.Conv2D(5, 3, activation="relu")(x)
    return head(L.Conv2D(6, 3, activation="relu")(L.Concatenate()([a, b, a])))


def concatenated_then_added(x):
    a, b, c = (L.Dense(n, activation="relu")(x) for n in (4, 5, 9))
    return head(L.Add()([L.Concatenate()([a, b]), c]), flatten=False)


def concatenated_both_ways(x):
    a, b = L.Dense(5, activation="relu")(x), L.Dense(5, activation="tanh")(x)
    return head(L.Add()([L.Concatenate()([a, b]), L.Concatenate()([b, a])]), flatten=False)


def squeeze_and_excite(x):
    x = L.Conv2D(8, 3, activation="relu")(x)
    gate = L.GlobalAveragePooling2D(keepdims=True)(x)
    gate = L.Conv2D(8, 1, activation="sigmoid")(L.Conv2D(4, 1, activation="relu")(gate))
    return head(L.Conv2D(5, 3, activation="relu")(L.Multiply()([x, gate])))


def spatial_gate(x):
    x = L.Conv2D(8, 3, activation="relu")(x)
    return head(L.Multiply()([x, L.Conv2D(1, 1, activation="sigmoid")(x)]))


def tied_chain(x):
    shared = L.Dense(6, activation="relu")
    x = L.Dense(6, activation="tanh")(x)
    return head(shared(shared(x)), flatten=False)


def tied_branches(x):
    shared = L.Dense(5, activation="relu")
    a, b = L.Dense(6, activation="relu")(x), L.Dense(6, activation="elu")(x)
    return head(L.Concatenate()([shared(a), shared(b)]), flatten=False)


def tied_conv(x):
    shared, norm = L.Conv2D(6, 3, padding="same", activation="relu"), L.BatchNormalization()
    x = L.Conv2D(6, 3, padding="same")(x)
    return head(norm(shared(norm(shared(x)))))


def tied_to_the_input(x):
    shared = L.Dense(7, activation="relu")
    return head(L.Dense(5, activation="relu")(shared(shared(x))), flatten=False)


def tied_norm(x):
    """One normalisation of the input and of hidden units: what cannot move in one of its uses moves in none."""
    norm = L.BatchNormalization()
    x = L.ReLU()(norm(L.Dense(7)(norm(x))))
    return head(L.Dense(5, activation="relu")(x), flatten=False)


def tied_slopes(x):
    slopes = L.PReLU()
    x = slopes(L.Dense(7)(slopes(x)))
    return head(L.Dense(5, activation="relu")(x), flatten=False)


def merged(layer):
    def build(x):
        a, b = L.Conv2D(6, 3)(x), L.Conv2D(6, 3, activation="relu")(x)
        return head(L.Conv2D(4, 3, activation="relu")(layer([a, b])))

    return build


def nested(x):
    inner = keras.Sequential([keras.Input(IMAGE), L.Conv2D(6, 3, activation="relu"), L.MaxPooling2D(2)])
    deep = keras.Sequential([keras.Input((3, 3, 6)), L.Conv2D(5, 2, activation="relu"), L.Flatten()])
    return head(deep(inner(x)), flatten=False)


def spatial_concatenation(x):
    """One kernel reads two layers' channels side by side: they move together."""
    a, b = L.Conv2D(4, 3, activation="relu")(x), L.Conv2D(4, 3, activation="tanh")(x)
    return head(L.Conv2D(3, 3, activation="relu")(L.Concatenate(axis=1)([a, b])))


def line(*layers):
    return lambda: chain(LINE, *layers, L.Flatten(), L.Dense(3))


def image(*layers):
    return lambda: chain(IMAGE, *layers, L.Flatten(), L.Dense(3))


def flat(*layers):
    return lambda: chain(FLAT, *layers, L.Dense(3))


FIRST = {"data_format": "channels_first"}
# name -> (model, sizes of its groups)
CASES = {
    "dense": (flat(L.Dense(6, activation="relu"), L.Dense(5, activation="tanh")), [6, 5]),
    "dense without bias": (flat(L.Dense(6, use_bias=False, activation="relu")), [6]),
    "dense on a line": (line(L.Dense(6, activation="relu"), L.Dense(5, activation="relu")), [6, 5]),
    "one sigmoid output": (lambda: chain(FLAT, L.Dense(6, "relu"), L.Dense(1, "sigmoid")), [6]),
    "several sigmoid outputs": (lambda: chain(FLAT, L.Dense(6, "relu"), L.Dense(4, "sigmoid")), [6]),
    "softmax output": (lambda: chain(FLAT, L.Dense(6, "relu"), L.Dense(4, "softmax")), [6]),
    "nothing hidden": (lambda: chain(FLAT, L.Dense(4, "softmax")), []),
    "one hidden unit": (flat(L.Dense(1, activation="relu")), []),
    "norm before the output": (lambda: chain(FLAT, L.Dense(6, "relu"), L.Dense(4), L.BatchNormalization()), [6]),
    "conv valid": (image(L.Conv2D(6, 3, activation="relu"), L.Conv2D(5, (3, 2), activation="relu")), [6, 5]),
    "conv same strides": (image(L.Conv2D(6, 3, strides=2, padding="same"), L.Conv2D(5, 3, padding="same")), [6, 5]),
    "conv dilated": (image(L.Conv2D(6, 3, dilation_rate=2), L.Conv2D(5, 3, activation="relu")), [6, 5]),
    "conv channels first": (
        lambda: chain((3, 9, 8), L.Conv2D(6, 3, **FIRST), L.MaxPooling2D(2, **FIRST), L.Flatten(), L.Dense(3)),
        [6],
    ),
    "conv 1d": (line(L.Conv1D(6, 3, padding="causal"), L.Conv1D(5, 3, strides=2, padding="same")), [6, 5]),
    "grouped by 2": (image(L.Conv2D(8, 3), L.ReLU(), L.Conv2D(6, 3, groups=2), L.ReLU()), [4, 4, 3, 3]),
    "grouped by 4": (image(L.Conv2D(8, 3), L.ReLU(), L.Conv2D(8, 3, groups=4), L.BatchNormalization()), [2] * 8),
    "grouped on the input": (image(L.Conv2D(6, 3, groups=3), L.ReLU(), L.Conv2D(5, 3)), [2, 2, 2, 5]),
    "depthwise": (image(L.Conv2D(6, 3), L.DepthwiseConv2D(3, activation="relu"), L.Conv2D(5, 1)), [6, 5]),
    "depthwise by 2": (image(L.Conv2D(6, 3), L.DepthwiseConv2D(3, depth_multiplier=2), L.Conv2D(5, 1)), [6, 5]),
    "depthwise on the input": (image(L.DepthwiseConv2D(3, depth_multiplier=2), L.ReLU(), L.Conv2D(5, 1)), [2, 2, 2, 5]),
    "depthwise 1d": (line(L.Conv1D(6, 3), L.DepthwiseConv1D(3, depth_multiplier=2), L.Conv1D(5, 1)), [6, 5]),
    "separable": (
        image(L.SeparableConv2D(6, 3, activation="relu"), L.SeparableConv2D(5, 3, depth_multiplier=2)),
        [6, 5],
    ),
    "separable 1d": (line(L.SeparableConv1D(6, 3), L.ReLU(), L.SeparableConv1D(5, 3)), [6, 5]),
    "norm": (image(L.Conv2D(6, 3, use_bias=False), L.BatchNormalization(), L.ReLU()), [6]),
    "norm of axis 1": (image(L.Conv2D(6, 3, **FIRST), L.BatchNormalization(axis=1), L.ReLU()), [6]),
    "norm of rows": (image(L.Conv2D(6, 3), L.BatchNormalization(axis=1), L.ReLU()), [6]),
    "norm without scale": (image(L.Conv2D(6, 3), L.BatchNormalization(scale=False), L.ReLU()), [6]),
    "norm without center": (image(L.Conv2D(6, 3), L.BatchNormalization(center=False), L.ReLU()), [6]),
    "norm on vectors": (flat(L.Dense(6), L.BatchNormalization(), L.ReLU(), L.Dropout(0.3)), [6]),
    "norm of the input": (flat(L.BatchNormalization(), L.Dense(6, activation="relu")), [6]),
    "layer norm": (image(L.Conv2D(6, 3), L.LayerNormalization(), L.ReLU()), [6]),
    "layer norm over all": (image(L.Conv2D(6, 3), L.LayerNormalization(axis=(1, 2, 3)), L.ReLU()), [6]),
    "layer norm over space": (image(L.Conv2D(6, 3), L.LayerNormalization(axis=(1, 2)), L.ReLU()), [6]),
    "layer norm of parts": (flat(L.Dense(20), L.Reshape((4, 5)), L.LayerNormalization(), L.Flatten()), [5]),
    "layer norm of parts, plain": (
        flat(L.Dense(20), L.Reshape((4, 5)), L.LayerNormalization(scale=False, center=False), L.Flatten()),
        [5],
    ),
    "softmax of parts": (flat(L.Dense(20), L.Reshape((4, 5)), L.Softmax(), L.Flatten()), [5]),
    "softmax of other parts": (flat(L.Dense(20), L.Reshape((4, 5)), L.Softmax(axis=1), L.Flatten()), [4]),
    "global average": (image(L.Conv2D(6, 3), L.ReLU(), L.GlobalAveragePooling2D()), [6]),
    "global max, dimensions kept": (image(L.Conv2D(6, 3), L.GlobalMaxPooling2D(keepdims=True), L.Conv2D(5, 1)), [6, 5]),
    "global 1d": (line(L.Conv1D(6, 3), L.GlobalMaxPooling1D()), [6]),
    "pools": (image(L.Conv2D(6, 2), L.AveragePooling2D(2, padding="same"), L.MaxPooling2D(2, 1)), [6]),
    "dense to image": (flat(L.Dense(48, activation="relu"), L.Reshape((4, 4, 3)), L.Conv2D(5, 3), L.Flatten()), [3, 5]),
    "dense to gray image": (
        flat(L.Dense(16, activation="relu"), L.Reshape((4, 4, 1)), L.Conv2D(5, 3), L.Flatten()),
        [5],
    ),
    "dense to image to dense": (flat(L.Dense(48, activation="relu"), L.Reshape((4, 4, 3)), L.Flatten()), [48]),
    "channels split": (image(L.Conv2D(6, 3), L.ReLU(), L.Reshape((7, 6, 2, 3)), L.Dense(4)), [3, 4]),
    "permuted": (image(L.Conv2D(6, 3), L.ReLU(), L.Permute((3, 1, 2))), [6]),
    "permuted parts": (
        flat(L.Dense(20), L.ReLU(), L.Reshape((4, 5)), L.Permute((2, 1)), L.Dense(6), L.Flatten()),
        [4, 6],
    ),
    "residual": (lambda: graph(IMAGE, residual), [6, 6, 8]),
    "concatenated": (lambda: graph(IMAGE, concatenated), [4, 5, 6]),
    "concatenated then added": (lambda: graph(FLAT, concatenated_then_added), [4, 5]),
    "concatenated both ways": (lambda: graph(FLAT, concatenated_both_ways), [5]),
    "concatenated in space": (lambda: graph(IMAGE, spatial_concatenation), [4, 3]),
    "squeeze and excite": (lambda: graph(IMAGE, squeeze_and_excite), [8, 4, 5]),
    "spatial gate": (lambda: graph(IMAGE, spatial_gate), [8]),
    "subtract": (lambda: graph(IMAGE, merged(L.Subtract())), [6, 4]),
    "average": (lambda: graph(IMAGE, merged(L.Average())), [6, 4]),
    "maximum": (lambda: graph(IMAGE, merged(L.Maximum())), [6, 4]),
    "minimum": (lambda: graph(IMAGE, merged(L.Minimum())), [6, 4]),
    "multiply": (lambda: graph(IMAGE, merged(L.Multiply())), [6, 4]),
    "tied chain": (lambda: graph(FLAT, tied_chain), [6]),
    "tied branches": (lambda: graph(FLAT, tied_branches), [6, 5]),
    "tied convolution": (lambda: graph(IMAGE, tied_conv), [6]),
    "tied norm of the input": (lambda: graph(FLAT, tied_norm), [5]),
    "tied slopes of the input": (lambda: graph(FLAT, tied_slopes), [5]),
    "tied to the input": (lambda: graph(FLAT, tied_to_the_input), [5]),
    "prelu": (image(L.Conv2D(6, 3), L.PReLU(shared_axes=[1, 2])), [6]),
    "prelu per element": (image(L.Conv2D(6, 3), L.PReLU()), [6]),
    "prelu of parts": (flat(L.Dense(20), L.Reshape((4, 5)), L.PReLU(), L.Flatten()), [5]),
    "activations": (flat(L.Dense(6), L.ELU(), L.Dense(5, activation="softmax"), L.Dense(4), L.LeakyReLU()), [6, 5, 4]),
    "noise": (image(L.Conv2D(6, 3), L.SpatialDropout2D(0.2), L.GaussianNoise(0.1), L.Dropout(0.5)), [6]),
    "rescaling": (image(L.Rescaling(1 / 255, offset=-0.5), L.Conv2D(6, 3), L.ReLU()), [6]),
    "normalization": (image(L.Normalization(mean=[1.0, 2, 3], variance=[1.0, 2, 3]), L.Conv2D(6, 3)), [6]),
    "normalization with statistics": (flat(L.Normalization(), L.Dense(6, activation="relu")), [6]),
    "embedding": (
        lambda: chain((9,), L.Embedding(20, 6), L.Conv1D(5, 3), L.ReLU(), L.GlobalMaxPooling1D(), L.Dense(3)),
        [6, 5],
    ),
    "padding": (image(L.Conv2D(6, 3), L.ZeroPadding2D(1), L.Cropping2D(((1, 0), (0, 2))), L.UpSampling2D(2)), [6]),
    "padding 1d": (line(L.Conv1D(6, 3), L.ZeroPadding1D(2), L.Cropping1D(1), L.UpSampling1D(2)), [6]),
    "bilinear": (image(L.Conv2D(6, 3), L.UpSampling2D(2, interpolation="bilinear"), L.ReLU()), [6]),
    "nested": (lambda: graph(IMAGE, nested), [6, 5]),
}


def inputs_for(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (6, *model.input_shape)
    if model.module.graph.nodes[1].layer.startswith("embedding"):
        return torch.randint(20, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def outputs(model, vector, x):
    return model.load(vector).module.eval()(x)


def assert_same(found, expected):
    span = float(expected.max() - expected.min())
    assert span > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * max(span, float(expected.abs().max())))


@pytest.mark.parametrize("name", CASES)
def test_units_change_places_and_the_function_stays(name):
    model, symmetry, x, vector, expected = case(name)
    assert [group.size for group in symmetry.groups] == CASES[name][1]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        orders = symmetry.random(generator)
        if all(torch.equal(a, b) for a, b in zip(orders, symmetry.identity(), strict=True)):
            continue
        moved = symmetry.apply(vector, orders)
        assert not torch.equal(moved, vector)
        assert torch.equal(moved.sort().values, vector.sort().values)
        assert_same(outputs(model, moved, x), expected)


@pytest.mark.parametrize("name", CASES)
def test_permutations_form_a_group(name):
    _, symmetry, _, vector, _ = case(name)
    generator = torch.Generator().manual_seed(2)
    p, q = symmetry.random(generator), symmetry.random(generator)
    assert torch.equal(symmetry.apply(vector, symmetry.identity()), vector)
    there = symmetry.apply(vector, p)
    assert torch.equal(symmetry.apply(there, [order.argsort() for order in p]), vector)
    both = [a[b] for a, b in zip(p, q, strict=True)]
    assert torch.equal(symmetry.apply(there, q), symmetry.apply(vector, both))


@pytest.mark.parametrize("name", CASES)
def test_positive_factors_leave_the_function_as_it_is(name):
    model, symmetry, x, vector, expected = case(name)
    generator = torch.Generator().manual_seed(4)
    factors = [torch.rand(group.size, generator=generator) * 2.5 + 0.5 for group in symmetry.groups]
    scaled = symmetry.rescale(vector, factors)
    assert torch.equal(scaled, vector) == (not any(group.homogeneous for group in symmetry.groups))
    assert_same(outputs(model, scaled, x), expected)


HOMOGENEOUS = {
    "dense": [True, False],
    "conv valid": [True, True],
    "conv 1d": [True, True],
    "grouped by 2": [True] * 4,
    "grouped by 4": [True] * 8,
    "depthwise": [True, True],
    "depthwise by 2": [True, True],
    "separable": [True, True],
    "norm": [True],
    "norm without scale": [False],
    "norm without center": [True],
    "norm before the output": [True],
    "layer norm": [False],
    "global average": [True],
    "dense to image": [True, True],
    "residual": [True, True, True],
    "concatenated": [True, True, True],
    "concatenated then added": [True, True],
    "concatenated both ways": [False],
    "squeeze and excite": [True, True, True],
    "spatial gate": [True],
    "maximum": [True, True],
    "multiply": [False, True],
    "tied chain": [False],
    "tied branches": [False, True],
    "prelu": [True],
    "activations": [False, False, True],
    "rescaling": [True],
    "embedding": [True, True],
    "padding": [True],
    "nested": [True, True],
}


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_what_lets_positive_factors_pass(name):
    symmetry = case(name)[1]
    assert [group.homogeneous for group in symmetry.groups] == HOMOGENEOUS[name]


def test_a_factor_multiplies_what_makes_a_unit_and_divides_what_reads_it():
    model = model_of(flat(L.Dense(2, activation="relu", name="a"), L.Dense(2, name="b"))())
    symmetry, before = derive(model), model.layout.unpack(model.vector())
    after = model.layout.unpack(symmetry.rescale(model.vector(), [torch.tensor([2.0, 0.5]), torch.ones(2)]))
    factors = torch.tensor([2.0, 0.5])
    assert torch.equal(after["0_dense.weight"], before["0_dense.weight"] * factors[:, None])
    assert torch.equal(after["0_dense.bias"], before["0_dense.bias"] * factors)
    assert torch.equal(after["1_dense.weight"], before["1_dense.weight"] / factors)
    assert torch.equal(after["1_dense.bias"], before["1_dense.bias"])


def use_of(symmetry, group, array, axis):
    (found,) = [u for u in symmetry.groups[group].uses if (u.array, u.axis) == (array, axis)]
    return found


def test_flatten_makes_blocks():
    symmetry = derive(model_of(chain((6, 5, 1), L.Conv2D(4, 3), L.Flatten(), L.Dense(3))))
    use = use_of(symmetry, 0, "1_dense.weight", 1)
    assert torch.equal(use.positions, torch.arange(12) * 4 + torch.arange(4)[:, None])
    first = derive(model_of(chain((1, 6, 5), L.Conv2D(4, 3, **FIRST), L.Flatten(), L.Dense(3))))
    plain = use_of(first, 0, "1_dense.weight", 1).positions
    assert torch.equal(plain, torch.arange(4)[:, None] * 12 + torch.arange(12)) or torch.equal(plain, use.positions)


def test_an_image_made_by_a_dense_layer_moves_by_channels():
    symmetry = case("dense to image")[1]
    assert use_of(symmetry, 0, "0_dense.weight", 0).positions.shape == (3, 16)
    assert use_of(symmetry, 0, "1_conv2d.weight", 1).positions.shape == (3, 1)


def test_a_grouped_convolution_has_blocks_of_rows():
    symmetry = case("grouped by 2")[1]
    assert [u.rows for u in symmetry.groups[0].uses if u.array == "1_conv2d.weight"] == [(0, 3)]
    assert [u.rows for u in symmetry.groups[1].uses if u.array == "1_conv2d.weight"] == [(3, 6)]


def test_a_use_cuts_and_permutes_and_scales():
    array = torch.arange(12.0).reshape(2, 6)
    use = Use("w", 1, torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert use.of(array).tolist() == [[0, 6, 3, 9], [1, 7, 4, 10], [2, 8, 5, 11]]
    moved = array.clone()
    use.permute(moved, torch.tensor([2, 0, 1]))
    assert moved[0].tolist() == [2, 0, 1, 5, 3, 4]
    use.scale(array, torch.tensor([1.0, 2.0, 10.0]))
    assert array[0].tolist() == [0, 2, 20, 3, 8, 50]


def test_taps_show_where_units_are_made():
    symmetry = case("concatenated then added")[1]
    shapes = [symmetry.trace.shapes[value] for value, _ in symmetry.groups[1].taps]
    assert shapes == [(5,), (9,)]
    assert [t.flatten().tolist() for _, t in symmetry.groups[1].taps] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_the_classes_of_the_last_layer():
    outputs_ = case("softmax output")[1].outputs
    assert [(u.array, u.axis) for u in outputs_.uses] == [("1_dense.weight", 0), ("1_dense.bias", 0)]
    assert outputs_.size == 4
    assert case("norm before the output")[1].outputs is None


def test_a_mask_of_the_input_keeps_positions():
    def build(x):
        y = L.Reshape((3, 3, 4))(L.Dense(36, activation="relu")(L.Flatten()(x)))
        return head(L.Multiply()([y, x]))

    assert [g.size for g in derive(model_of(graph((3, 3, 1), build))).groups] == [4]


def test_a_constant_per_channel_keeps_units():
    model = model_of(flat(L.Dense(6, activation="relu"), L.Rescaling([1.0, 2, 3, 4, 5, 6]), L.Dense(5))())
    assert [g.size for g in derive(model).groups] == [5]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: chain(
                IMAGE, L.Conv2D(6, 3), L.Permute((1, 3, 2)), L.Conv2D(4, 3, name="late"), L.Flatten(), L.Dense(3)
            ),
            "'late'",
        ),
        (
            lambda: chain(
                IMAGE, L.Conv2D(6, 3), L.Permute((1, 3, 2)), L.Dense(4, name="mixer"), L.Flatten(), L.Dense(3)
            ),
            "'mixer'",
        ),
        (lambda: chain(LINE, L.LSTM(5), L.Dense(3)), "LSTM"),
    ],
)
def test_refusals_name_the_layer(build, message):
    made = build()
    config = {"class_name": type(made).__name__, "config": json.loads(made.to_json())["config"]}
    with pytest.raises(ModelError, match=message) as caught:
        derive(io.from_config(config))
    assert "\n" not in str(caught.value)


def test_a_layer_without_a_rule_is_refused_by_name():
    traced = trace(model_of(flat(L.Dense(4, name="first"), L.ReLU())()))
    steps = (dataclasses.replace(traced.steps[0], op="Attention"), *traced.steps[1:])
    with pytest.raises(ModelError, match="'first' \\(Attention\\)"):
        number(dataclasses.replace(traced, steps=steps))


def shuffled(x):
    """Space is cut and put together in another order per channel: no two channels are alike any more."""
    x = L.Conv1D(2, 1, activation="relu")(x)
    parts = [L.Reshape((2,))(L.Cropping1D((i, 2 - i))(x)) for i in range(3)]
    parts = [[L.Flatten()(L.Cropping1D((j, 1 - j))(L.Reshape((2, 1))(p))) for j in (0, 1)] for p in parts]
    mixed = [parts[0][0], parts[1][1], parts[1][0], parts[0][1], parts[2][0], parts[2][1]]
    return L.Dense(3, name="out")(L.Concatenate()(mixed))


def test_units_whose_parts_stand_in_another_order_are_not_exchanged():
    with pytest.raises(ModelError, match="conv1d"):
        derive(model_of(graph((3, 4), shuffled)))


def test_a_wrong_symmetry_is_noticed():
    model = model_of(CASES["dense"][0]())
    symmetry = derive(model)
    check = Check.of(model, symmetry.trace)
    orders = [torch.arange(g.size).roll(1) for g in symmetry.groups]
    assert check.same(symmetry.apply(check.vector, orders))
    group = symmetry.groups[0]
    forgotten = Group(group.name, group.size, group.uses[:-1])
    wrong = Symmetry((forgotten, symmetry.groups[1]), symmetry.layout, symmetry.trace)
    assert not check.same(wrong.apply(check.vector, orders))
    np.testing.assert_array_equal(model.vector().numpy(), weights(model.layout, 0).numpy())
