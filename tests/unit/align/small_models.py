"""Small models of every kind that alignment fits, with weights and statistics of which none is trivial."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fedloom.align.symmetry.graph import derive
from fedloom.models import io
from fedloom.models.architecture import Architecture
from fedloom.models.model import Model

IMAGE, LINE = (8, 8, 1), (16, 4)
DIGITS = torch.tensor(load_digits().data / 16, dtype=torch.float32)
RELU = ("Activation", {"activation": "relu"})
FLAT = ("Flatten", {})


def conv(filters, kind="Conv2D", **options):
    return kind, {"filters": filters, "kernel_size": 3, "activation": "relu", **options}


def depthwise(kind="DepthwiseConv2D", **options):
    return kind, {"kernel_size": 3, "activation": "relu", **options}


def dense(units):
    return "Dense", {"units": units, "activation": "relu"}


def norm(**options):
    return "BatchNormalization", options


PLAIN = {"activation": "linear"}
LAYERS = {
    "dense": [FLAT, dense(12), dense(9)],
    "conv": [conv(6, padding="same"), conv(5, strides=2), FLAT],
    "strided": [conv(6, strides=2, padding="same"), conv(5, padding="same", dilation_rate=2), FLAT],
    "grouped": [conv(8), conv(6, groups=2, strides=2), FLAT],
    "depthwise": [conv(4), depthwise(depth_multiplier=2, padding="same"), depthwise(strides=2), FLAT],
    "separable": [conv(5, "SeparableConv2D"), conv(6, "SeparableConv2D", use_bias=False, **PLAIN), norm(), RELU, FLAT],
    "norm": [conv(6, use_bias=False, **PLAIN), norm(), RELU, conv(5, **PLAIN), norm(), RELU, FLAT],
    "norm without scale": [conv(6, **PLAIN), norm(scale=False), RELU, FLAT],
    "norm without center": [conv(6, **PLAIN), norm(center=False), RELU, FLAT],
    "norm without both": [conv(6, use_bias=False, **PLAIN), norm(scale=False, center=False), RELU, FLAT],
    "dense norm": [FLAT, ("Dense", {"units": 12}), norm(), RELU, ("Dropout", {"rate": 0.4})],
    "layer norm": [conv(6, **PLAIN), ("LayerNormalization", {}), RELU, FLAT],
    "line": [conv(6, "Conv1D", padding="causal"), depthwise("DepthwiseConv1D"), conv(5, "Conv1D", strides=2), FLAT],
    "dense on a line": [dense(6), ("LayerNormalization", {}), dense(5), FLAT],
    "grouped norm": [conv(6), conv(6, groups=3, **PLAIN), norm(scale=False), RELU, FLAT],
}


class Residual(nn.Module):
    """Two blocks, the second of which changes the width; with statistics as PyTorch keeps them."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.na, self.nb, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(6, affine=False), nn.ReLU()
        self.c, self.down, self.head = nn.Conv2d(6, 8, 3, 2, 1, bias=False), nn.Conv2d(6, 8, 1, 2), nn.Linear(8, 10)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(x + self.nb(self.b(self.relu(self.na(self.a(x))))))
        return self.head(self.relu(self.c(x) + self.down(x)).mean((2, 3)))


def _torch_norm():
    body = [nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(54, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 10))


def _norm_over_time():
    """The BatchNorm runs over the 16 points in time, not over the layer's units."""
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))


TORCH = {
    "torch norm": (_torch_norm, (1, 8, 8)),
    "torch residual": (Residual, (1, 8, 8)),
    "torch norm over time": (_norm_over_time, LINE),
}
NAMES = [*LAYERS, *TORCH]
NORMED = [name for name in NAMES if "norm" in name and "layer" not in name] + ["separable", "torch residual"]


def build(*layers, shape=IMAGE, classes=10):
    specs = [("InputLayer", {"batch_shape": [None, *shape]}), *layers, ("Dense", {"units": classes})]
    rows = [{"class_name": kind, "config": {"name": f"l{i}", **config}} for i, (kind, config) in enumerate(specs)]
    return io.from_config({"class_name": "Sequential", "config": {"layers": rows}})


def torch_model(module, shape):
    return Model(module, Architecture("torch", factory="mine.py:Net"), shape, 10)


def model_of(name):
    """Build one of ``NAMES``, its arrays set by ``weights``."""
    if name in TORCH:
        make, shape = TORCH[name]
        model = torch_model(make(), shape)
    else:
        model = build(*LAYERS[name], shape=LINE if "line" in name else IMAGE)
    model.input_high = 1.0
    model.module.eval()
    return model.load(weights(model, 0))


def weights(model, seed) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(model.layout.size, generator=generator)
    for name, array in model.layout.unpack(vector).items():
        if name.endswith("running_var"):
            array.abs_().add_(0.3)
        elif array.dim() > 1:
            array.mul_(1.5 * (len(array) / array.numel()) ** 0.5)
    return vector


def inputs(model, n=300) -> Tensor:
    return DIGITS[:n].reshape(n, *model.input_shape)


def permuted(model, n, seed=1):
    """A model's symmetry, and n copies of it whose units stand in other orders."""
    symmetry, generator = derive(model), torch.Generator().manual_seed(seed)
    return symmetry, [symmetry.apply(model.vector(), symmetry.random(generator)) for _ in range(n)]


@torch.no_grad()
def outputs(model, vector, x) -> Tensor:
    return model.load(vector).module.eval()(x)


def assert_same_function(found, expected, tolerance=1e-5):
    span = float(expected.max() - expected.min())
    assert span > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(span, float(expected.abs().max())))
