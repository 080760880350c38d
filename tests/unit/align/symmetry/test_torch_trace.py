"""A user's PyTorch module becomes steps: the same function, the same symmetry as its Keras counterpart."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedloom.align.symmetry.graph import derive
from fedloom.align.symmetry.trace import owner, run, trace
from fedloom.errors import ModelError
from fedloom.models.architecture import Architecture
from fedloom.models.model import Model

IMAGE, LINE, FLAT = (3, 9, 8), (4, 11), (7,)


def model_of(module, shape):
    model = Model(module.eval(), Architecture("torch", factory="mine.py:Net"), shape, 3)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(model.layout.size, generator=generator)
    for name, array in model.layout.unpack(vector).items():
        if name.endswith("running_var"):
            array.abs_().add_(0.3)
        elif array.dim() > 1:
            array.mul_(1.5 * (len(array) / array.numel()) ** 0.5)
    return model.load(vector)


def inputs_for(module, shape):
    generator = torch.Generator().manual_seed(3)
    if any(isinstance(m, nn.Embedding) for m in module.modules()):
        return torch.randint(20, (6, *shape), generator=generator).float()
    return torch.randn((6, *shape), generator=generator)


class Methods(nn.Module):
    """Functions and methods in the place of modules, sizes worked out on the way."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, stride=2)
        self.c, self.d = nn.Linear(5 * 1 * 1, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm(self.a(x * 2 - 1))), 2)
        x = functional.dropout(self.b(x).relu(), 0.5, self.training)
        x = x.view(x.size(0), -1)
        return functional.log_softmax(self.d(functional.leaky_relu(self.c(x), 0.1)), dim=1)


class Residual(nn.Module):
    def __init__(self, inplace=False, identity=False):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.na, self.nb, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(6), nn.ReLU(inplace=inplace)
        self.down, self.c = nn.Conv2d(6, 8, 1, stride=2), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head, self.identity = nn.Linear(8, 3), identity

    def forward(self, x):
        x = self.first(x)
        y = self.relu(self.na(self.a(self.relu(x) if self.identity else self.relu(x + 0.0))))
        x = self.relu(x + self.nb(self.b(y)))
        x = self.relu(torch.add(self.c(x), self.down(x)))
        return self.head(x.mean(dim=(2, 3)))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(9, 6, 1)
        self.squeeze, self.excite, self.head = nn.Linear(6, 2), nn.Linear(2, 6), nn.Linear(6 * 7 * 6, 3)

    def forward(self, x):
        x = self.c(torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], dim=1)).relu()
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))
        return self.head(torch.flatten(x * gate[:, :, None, None], 1))


class Shuffle(nn.Module):
    """Grouped convolutions with their channels shuffled between them (ShuffleNet)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        x = self.a(x).relu()
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.b(x).relu()).amax((2, 3))


class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 10), nn.Linear(5, 5), nn.Linear(10, 3)

    def forward(self, x):
        left, right = torch.chunk(self.a(x).relu(), 2, dim=1)
        return self.c(torch.cat([left, self.b(right).relu()], 1))


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.conv, self.norm, self.head = (
            nn.Embedding(20, 6),
            nn.Conv1d(6, 5, 3),
            nn.LayerNorm(5),
            nn.Linear(5, 3),
        )

    def forward(self, x):
        x = self.conv(self.embed(x.long()).transpose(1, 2)).relu()
        return self.head(self.norm(x.permute(0, 2, 1)).mean(1))


class Tied(nn.Module):
    """One array under two names, and one layer called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.head = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(self.b(self.a(self.a(x).relu()).relu()).relu())


class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))

    def forward(self, x):
        return self.body((x - self.mean) / self.deviation)


def image(*layers):
    return lambda: nn.Sequential(*layers)


CONV = [nn.Conv2d(3, 6, 3), nn.ReLU()]
CASES = {
    "dense": (lambda: nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)), FLAT, [6]),
    "flatten first": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(216, 6), nn.GELU(), nn.Linear(6, 3)), IMAGE, [6]),
    "softmax at the end": (
        lambda: nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(1)),
        FLAT,
        [6],
    ),
    "conv": (
        lambda: nn.Sequential(*CONV, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5), nn.ELU(), nn.Linear(5, 3)),
        IMAGE,
        [6, 5],
    ),
    "conv 1d": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AvgPool1d(3), nn.Flatten(), nn.Linear(18, 3)
        ),
        LINE,
        [6],
    ),
    "grouped": (
        lambda: nn.Sequential(*CONV, nn.Conv2d(6, 4, 3, groups=2), nn.Flatten(), nn.Linear(80, 3)),
        IMAGE,
        [3, 3, 2, 2],
    ),
    "depthwise": (
        lambda: nn.Sequential(
            *CONV,
            nn.Conv2d(6, 12, 3, groups=6),
            nn.BatchNorm2d(12),
            nn.ReLU6(),
            nn.Conv2d(12, 5, 1),
            nn.Flatten(),
            nn.Linear(100, 3),
        ),
        IMAGE,
        [6, 5],
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.LayerNorm((6, 7, 6)),
            nn.PReLU(6),
            nn.Flatten(),
            nn.Linear(252, 5),
            nn.PReLU(),
            nn.LayerNorm(5),
            nn.Linear(5, 3),
        ),
        IMAGE,
        [6, 5],
    ),
    "nested": (
        lambda: nn.Sequential(
            nn.Sequential(*CONV), nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(6, 3)
        ),
        IMAGE,
        [6],
    ),
    "dense to image": (
        lambda: nn.Sequential(
            nn.Linear(7, 48),
            nn.ReLU(),
            nn.Unflatten(1, (3, 4, 4)),
            nn.Upsample(scale_factor=2),
            nn.ZeroPad2d(1),
            nn.Conv2d(3, 5, 3),
            nn.Flatten(),
            nn.Linear(320, 3),
        ),
        FLAT,
        [3, 5],
    ),
    "methods": (Methods, (3, 8, 8), [6, 5, 8]),
    "residual": (Residual, IMAGE, [6, 4, 8]),
    "residual in place": (lambda: Residual(inplace=True), IMAGE, [6, 4, 8]),
    "residual in place, of the input": (lambda: Residual(inplace=True, identity=True), IMAGE, [6, 4, 8]),
    "branches": (Branches, IMAGE, [4, 5, 6, 2]),
    "shuffle": (Shuffle, IMAGE, [4, 4, 4, 4]),
    "halves": (Halves, FLAT, [5, 5, 5]),
    "text": (Text, (9,), [6, 5]),
    "tied": (Tied, FLAT, [6]),
    "standardised": (Standardised, IMAGE, [5]),
}


@functools.cache
def case(name):
    build, shape, _ = CASES[name]
    torch.manual_seed(0)
    model = model_of(build(), shape)
    return model, derive(model)


@torch.no_grad()
def outputs(model, vector):
    return model.load(vector).module(inputs_for(model.module, model.input_shape))


def assert_same(found, expected):
    span = float(expected.max() - expected.min())
    assert span > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * max(span, float(expected.abs().max())))


@pytest.mark.parametrize("name", CASES)
def test_units_change_places_and_the_function_stays(name):
    model, symmetry = case(name)
    vector = model.vector()
    expected = outputs(model, vector)
    assert [group.size for group in symmetry.groups] == CASES[name][2]
    moved = symmetry.apply(vector, [order.roll(1) for order in symmetry.identity()])
    assert not torch.equal(moved, vector)
    assert_same(outputs(model, moved), expected)
    generator = torch.Generator().manual_seed(4)
    factors = [torch.rand(group.size, generator=generator) * 2.5 + 0.5 for group in symmetry.groups]
    scaled = symmetry.rescale(vector, factors)
    assert torch.equal(scaled, vector) == (not any(group.homogeneous for group in symmetry.groups))
    assert_same(outputs(model, scaled), expected)
    model.load(vector)


@pytest.mark.parametrize("name", CASES)
def test_the_steps_are_the_model(name):
    model, symmetry = case(name)
    x = inputs_for(model.module, model.input_shape)
    given = x.clone()
    last = {symmetry.trace.steps[i].target: y for i, y in run(symmetry.trace, x)}[symmetry.trace.steps[-1].target]
    with torch.no_grad():
        expected = model.module(x.clone())
    if name in ("softmax at the end", "methods"):  # the steps end with the logits
        last, expected = last.softmax(1), expected if name == "softmax at the end" else expected.exp()
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(x, given)
    for i, y in run(symmetry.trace, x):
        assert tuple(y.shape[1:]) == symmetry.trace.shapes[symmetry.trace.steps[i].target]


def test_layers_are_found_in_their_steps():
    model, symmetry = case("methods")
    steps = [s for s in symmetry.trace.steps if s.op in ("Dense", "Conv2D")]
    assert [s.layer for s in steps] == ["a", "b", "c", "d"]
    assert [owner(s.run) for s in steps] == [model.module.a, model.module.b, model.module.c, model.module.d]
    assert symmetry.trace.array(steps[0], "weight") == "a.weight"
    assert symmetry.outputs.size == 3


def test_flatten_keeps_the_channels_first():
    (use,) = [u for u in case("conv")[1].groups[0].uses if u.axis == 1]
    assert torch.equal(use.positions, torch.arange(54).reshape(6, 9))


def test_what_lets_positive_factors_pass():
    assert [g.homogeneous for g in case("methods")[1].groups] == [True, True, True]
    assert [g.homogeneous for g in case("depthwise")[1].groups] == [True, True]
    assert [g.homogeneous for g in case("dense")[1].groups] == [True]
    assert [g.homogeneous for g in case("flatten first")[1].groups] == [False]


def test_training_goes_on_as_before():
    module = Methods().train()
    module.norm.eval()
    trace(Model(module, Architecture("torch"), (3, 8, 8), 3))
    assert module.training
    assert module.a.training
    assert not module.norm.training


class Turns(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class OverBatch(nn.Module):
    def forward(self, x):
        return x.mean(0, keepdim=True)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gain, self.b = nn.Linear(7, 5), nn.Parameter(torch.rand(5)), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(self.a(x) * self.gain)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(7, 5)

    def forward(self, x):
        return torch.einsum("bi,bj->bij", self.a(x), self.a(x)).flatten(1)


class Overwritten(nn.Module):
    """A view is written to, which changes what it is a view of."""

    def forward(self, x):
        view = x.view(x.size(0), -1)
        view.mul_(2.0)
        return x + 1.0


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(x.unsqueeze(-1))[0][:, -1]


REFUSED = [
    (Turns(), FLAT, "Turns cannot be recorded"),
    (OverBatch(), FLAT, r"'mean' \(mean\).*samples"),
    (Scaled(), FLAT, r"'mul'.*belong to no layer"),
    (Product(), FLAT, r"'einsum' \(einsum\)"),
    (Overwritten(), FLAT, "Overwritten"),
    (nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6)), IMAGE, r"'1' \(GroupNorm\)"),
    (nn.Sequential(nn.Linear(7, 6), nn.Unflatten(1, (2, 3)), nn.TransformerEncoderLayer(3, 1)), FLAT, r"'2' \(Transf"),
    (nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6, track_running_stats=False)), FLAT, r"'1' \(BatchNorm1d\)"),
    (Recurrent(), FLAT, r"'lstm' \(LSTM\)"),
]


@pytest.mark.parametrize(("module", "shape", "message"), REFUSED)
def test_what_is_not_known_is_refused_by_name(module, shape, message):
    with pytest.raises(ModelError, match=message) as caught:
        derive(Model(module.eval(), Architecture("torch"), shape, 3))
    assert "\n" not in str(caught.value)
