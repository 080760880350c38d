"""Steps that overwrite their input at inference: nothing else may see it."""

from __future__ import annotations

import copy

import pytest
import torch

from fedloom.models.graph import parse
from fedloom.models.lower import lower


def tensor(name: str) -> dict:
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None], "dtype": "float32", "keras_history": [name, 0, 0]},
    }


def layer(class_name: str, name: str, inputs: list[str], **config) -> dict:
    arguments = [tensor(n) for n in inputs]
    calls = [{"args": [arguments if len(inputs) > 1 else arguments[0]], "kwargs": {}}] if inputs else []
    return {"class_name": class_name, "name": name, "config": {"name": name, **config}, "inbound_nodes": calls}


def residual(last: str):
    """Convolution, ReLU, normalisation; ``last`` names what is added to the normalisation's result."""
    layers = [
        layer("InputLayer", "x", [], batch_shape=[None, 6, 6, 3]),
        layer("Conv2D", "conv", ["x"], filters=3, kernel_size=[3, 3], padding="same", activation="linear"),
        layer("ReLU", "relu", ["conv"]),
        layer("BatchNormalization", "norm", ["relu"]),
        layer("Add", "add", ["norm", last]),
        layer("Flatten", "flat", ["add"]),
        layer("Dense", "dense", ["flat"], units=2, activation="softmax"),
    ]
    config = {"name": "m", "layers": layers, "input_layers": [["x", 0, 0]], "output_layers": [["dense", 0, 0]]}
    model = lower(parse({"class_name": "Functional", "config": config}))
    model.initialize(0)
    with torch.no_grad():
        norm = model.by_path["norm"]
        for array in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            array.copy_(torch.rand(3, generator=torch.Generator().manual_seed(array.numel())) + 0.5)
    return model.eval()


@pytest.mark.parametrize("last", ["x", "conv", "relu", "norm"])
def test_inference_equals_the_outputs_with_gradients_and_leaves_its_input_alone(last):
    model = residual(last)
    x = torch.randn(4, 6, 6, 3, generator=torch.Generator().manual_seed(1))
    kept = x.clone()
    expected = model(x).detach()
    for module in (model, copy.deepcopy(model)):
        with torch.inference_mode():
            torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-5)
        assert torch.equal(x, kept)
