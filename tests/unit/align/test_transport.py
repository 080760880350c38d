"""Transport puts a model into the units of another, of other widths too."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from fedloom import rng
from fedloom.align.symmetry.graph import derive
from fedloom.align.transport import plan, same_but_widths, transport
from fedloom.errors import ArchitectureError, ModelError, UsageError
from fedloom.models import io
from fedloom.models.architecture import Architecture
from fedloom.models.bare import bare
from fedloom.models.model import Model

X = torch.tensor(load_digits().data.reshape(-1, 8, 8, 1)[:100] / 16, dtype=torch.float32)
RELU = {"activation": "relu"}
SAME = {"padding": "same", "kernel_size": 3}


def sequential(*layers):
    specs = [("InputLayer", {"batch_input_shape": [None, 8, 8, 1]}), *layers, ("Dense", {"units": 10})]
    named = [{"class_name": kind, "config": {"name": f"l{i}", **config}} for i, (kind, config) in enumerate(specs)]
    return {"class_name": "Sequential", "config": {"layers": named}}


def mlp(a, b):
    return sequential(("Flatten", {}), ("Dense", {"units": a, **RELU}), ("Dense", {"units": b, **RELU}))


def cnn(a, b):
    return sequential(
        ("Conv2D", {"filters": a, **SAME, "use_bias": False}),
        ("BatchNormalization", {}),
        ("ReLU", {}),
        ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2}),
        ("SeparableConv2D", {"filters": 2 * b, **SAME, **RELU}),
        ("Conv2D", {"filters": 2 * b, **SAME, "groups": 2, **RELU}),
        ("Flatten", {}),
        ("Dense", {"units": a + b}),
        ("PReLU", {}),
    )


def graph(a, b):
    """Build a residual addition and a concatenation that the input itself is part of."""

    def layer(name, kind, config, *sources):
        return {
            "class_name": kind,
            "name": name,
            "config": {"name": name, **config},
            "inbound_nodes": [[[source, 0, 0, {}] for source in sources]] if sources else [],
        }

    layers = [
        layer("x", "InputLayer", {"batch_input_shape": [None, 8, 8, 1]}),
        layer("stem", "Conv2D", {"filters": a, **SAME, **RELU}, "x"),
        layer("inner", "Conv2D", {"filters": b, **SAME, **RELU}, "stem"),
        layer("outer", "Conv2D", {"filters": a, **SAME}, "inner"),
        layer("norm", "BatchNormalization", {}, "outer"),
        layer("sum", "Add", {}, "stem", "norm"),
        layer("act", "ReLU", {}, "sum"),
        layer("side", "Conv2D", {"filters": b, **SAME, **RELU}, "act"),
        layer("cat", "Concatenate", {}, "act", "x", "side"),
        layer("mix", "Conv2D", {"filters": a + 1, "kernel_size": 2, **RELU}, "cat"),
        layer("pool", "GlobalAveragePooling2D", {}, "mix"),
        layer("out", "Dense", {"units": 10}, "pool"),
    ]
    config = {"name": "g", "layers": layers, "input_layers": [["x", 0, 0]], "output_layers": [["out", 0, 0]]}
    return {"class_name": "Functional", "config": config}


KINDS = [mlp, cnn, graph]


def drawn(config, seed):
    """Build a model with random weights, running statistics included."""
    model = io.from_config(config)
    io.initialize(model, seed)
    chance = torch.from_numpy(rng.stream(seed, "noise").random(model.layout.size)).float()
    return model.load(model.vector() + 0.3 * chance * model.vector().abs() + 0.02 * chance)


def logits(model):
    model.module.eval()
    with torch.no_grad():
        return model.logits(X)


@pytest.mark.parametrize("data", [None, X], ids=["weights", "activations"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_permuted_copy_comes_back(kind, data):
    model, copy = drawn(kind(8, 6), 0), io.from_config(kind(8, 6))
    symmetry = derive(model)
    copy.load(symmetry.apply(model.vector(), symmetry.random(torch.Generator().manual_seed(3))))
    assert not torch.equal(copy.vector(), model.vector())
    torch.testing.assert_close(transport(model, copy, data), model.vector())
    torch.testing.assert_close(transport(copy, model, data), copy.vector())
    soft = transport(model, copy, data, softness=1e-3)
    torch.testing.assert_close(soft, model.vector(), rtol=0.0, atol=1e-3)
    assert not torch.allclose(soft, copy.vector(), atol=1e-2)


@pytest.mark.parametrize("data", [None, X], ids=["weights", "activations"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_member_keeps_its_function(kind, data):
    wide, narrow = drawn(kind(11, 9), 0), drawn(kind(8, 4), 1)
    expected = logits(narrow)
    vector = transport(wide, narrow, data)
    assert vector.shape == (wide.layout.size,)
    torch.testing.assert_close(logits(wide.load(vector)), expected, rtol=1e-3, atol=1e-4)


def test_a_copy_without_its_dead_units_keeps_the_function():
    model = drawn(mlp(12, 9), 0)
    arrays = model.layout.unpack(vector := model.vector())
    alive = (torch.tensor([0, 2, 3, 5, 6, 7, 9]), torch.tensor([0, 1, 2, 4, 8]))
    for k, kept in enumerate(alive):
        dead = torch.ones(len(arrays[f"{k}_dense.bias"]), dtype=torch.bool)
        dead[kept] = False
        arrays[f"{k}_dense.bias"][dead] = -100.0
    expected = logits(model.load(vector))
    small = io.from_config(mlp(7, 5))
    cut = {
        "0_dense.weight": arrays["0_dense.weight"][alive[0]],
        "0_dense.bias": arrays["0_dense.bias"][alive[0]],
        "1_dense.weight": arrays["1_dense.weight"][alive[1]][:, alive[0]],
        "1_dense.bias": arrays["1_dense.bias"][alive[1]],
        "2_dense.weight": arrays["2_dense.weight"][:, alive[1]],
        "2_dense.bias": arrays["2_dense.bias"],
    }
    small.load(small.layout.pack(cut))
    torch.testing.assert_close(logits(small), expected, rtol=1e-4, atol=1e-4)
    for data in (None, X):
        found = transport(model, small, data)
        arrived = model.layout.unpack(found)["0_dense.weight"]
        torch.testing.assert_close(arrived[alive[0]], arrays["0_dense.weight"][alive[0]])  # each in its old place
        torch.testing.assert_close(logits(io.from_config(mlp(12, 9)).load(found)), expected, rtol=1e-4, atol=1e-4)


def test_a_wider_member_made_of_copies_comes_back():
    narrow, wide = drawn(mlp(6, 4), 0), io.from_config(mlp(9, 6))
    arrays, first, second = narrow.layout.unpack(narrow.vector()), torch.arange(9) % 6, torch.arange(6) % 4
    shares = [1 / torch.bincount(kept)[kept] for kept in (first, second)]
    grown = {
        "0_dense.weight": arrays["0_dense.weight"][first],
        "0_dense.bias": arrays["0_dense.bias"][first],
        "1_dense.weight": arrays["1_dense.weight"][second][:, first] * shares[0],
        "1_dense.bias": arrays["1_dense.bias"][second],
        "2_dense.weight": arrays["2_dense.weight"][:, second] * shares[1],
        "2_dense.bias": arrays["2_dense.bias"],
    }
    wide.load(wide.layout.pack(grown))
    torch.testing.assert_close(logits(wide), logits(narrow), rtol=1e-4, atol=1e-5)
    for data in (None, X):
        torch.testing.assert_close(transport(narrow, wide, data), narrow.vector(), rtol=1e-4, atol=1e-5)


def test_a_soft_plan_has_uniform_marginals_and_tends_to_the_hard_one():
    cost = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    hard = plan(cost)
    assert torch.equal(hard.made.sum(0), torch.ones(7))
    torch.testing.assert_close(plan(cost, 1e-3).made, hard.made, rtol=0.0, atol=1e-2)
    torch.testing.assert_close(plan(cost, 1e4).made, torch.full((7, 7), 1 / 7), rtol=0.0, atol=1e-3)
    wide = torch.rand(9, 6, generator=torch.Generator().manual_seed(1))
    for softness in (0.02, 0.1, 1.0):
        soft = plan(wide, softness)
        torch.testing.assert_close(soft.made.sum(1), torch.ones(9))
        torch.testing.assert_close(soft.shared.sum(0), torch.ones(6))
        torch.testing.assert_close(soft.made.sum(0), torch.full((6,), 9 / 6), rtol=1e-3, atol=0.0)
        torch.testing.assert_close(soft.shared.sum(1), torch.full((9,), 6 / 9), rtol=1e-3, atol=0.0)


def test_a_cost_that_says_nothing_gives_a_plan_all_the_same():
    for softness in (0.0, 0.1):
        found = plan(torch.zeros(5, 3), softness)
        assert bool(found.made.isfinite().all())
        torch.testing.assert_close(found.shared.sum(0), torch.ones(3))


def test_every_unit_goes_somewhere_and_the_rest_stays_empty():
    chance = torch.Generator().manual_seed(0)
    for a, b in ((3, 3), (8, 3), (3, 8), (2, 2)):
        found = plan(torch.rand(a, b, generator=chance) * torch.tensor([0.0] + [1.0] * (b - 1)))
        torch.testing.assert_close(found.shared.sum(0), torch.ones(b))
        assert int((found.shared > 0).sum()) == b
        torch.testing.assert_close(
            found.made.sum(1).sort().values, torch.tensor([0.0] * max(a - b, 0) + [1.0] * min(a, b))
        )


def test_the_models_stay_as_they_are():
    models = [drawn(cnn(7, 4), 0), drawn(cnn(5, 3), 1)]
    before = [model.vector() for model in models]
    transport(*models, X, softness=0.05)
    assert all(torch.equal(model.vector(), b) for model, b in zip(models, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_widths_alone_are_no_difference(kind):
    assert same_but_widths(io.from_config(kind(8, 6)), io.from_config(kind(5, 4))) is None


DIFFERENT = [
    (mlp(8, 6), sequential(("Flatten", {}), ("Dense", {"units": 8, **RELU})), "has no counterpart|has the class|'l3'"),
    (mlp(8, 6), sequential(("Flatten", {}), ("Dense", {"units": 4, **RELU}), ("Dense", {"units": 3})), "'l3'"),
    (
        sequential(("Conv2D", {"filters": 3, "kernel_size": 3}), ("Flatten", {})),
        sequential(("Conv2D", {"filters": 2, "kernel_size": 2}), ("Flatten", {})),
        "'l1'.*kernel_size",
    ),
    (mlp(8, 6), mlp(8, 1), "'l3' has units that can change places in one model alone"),
    (cnn(8, 6), graph(8, 6), "layer"),
]


@pytest.mark.parametrize(("a", "b", "said"), DIFFERENT, ids=["depth", "activation", "kernel", "one unit", "kind"])
def test_other_differences_are_named_by_layer(a, b, said):
    models = io.from_config(a), io.from_config(b)
    found = same_but_widths(*models)
    assert found is not None
    with pytest.raises(ArchitectureError, match=said):
        transport(*models)


def test_units_that_may_not_change_places_must_be_as_many():
    models = []
    for units in (8, 6, 8):  # a constant per unit, as a Normalization has it, belongs to its unit alone
        layers = [
            ("Flatten", {}),
            ("Dense", {"units": units}),
            ("Normalization", {"axis": -1}),
            ("Dense", {"units": 5}),
        ]
        models.append(io.from_config(sequential(*layers)))
    assert "8 positions along axis 0" in (same_but_widths(models[0], models[1]) or "")
    assert same_but_widths(models[0], models[2]) is None


def test_other_classes_are_a_difference():
    config = mlp(8, 6)
    config["config"]["layers"][-1]["config"]["units"] = 7
    assert "10 outputs against 7" in (same_but_widths(io.from_config(mlp(8, 6)), io.from_config(config)) or "")


def test_models_that_cannot_be_looked_into_are_refused():
    model = Model(bare({"w": torch.zeros(2)}), Architecture("bare"))
    with pytest.raises(ModelError, match="code"):
        same_but_widths(model, model)


def torch_model(a, b, kernel=3, last="ReLU"):
    layers = [nn.Conv2d(1, a, kernel), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(b * (9 - kernel - 2) ** 2, a), getattr(nn, last)(), nn.Linear(a, 10)]
    torch.manual_seed(a)
    return Model(nn.Sequential(*layers).eval(), Architecture("torch"), (1, 8, 8), 10)


def test_torch_modules_are_carried_over_too():
    wide, narrow = torch_model(9, 7), torch_model(5, 4)
    x = X.permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = narrow.logits(x)
        for data in (None, x):
            found = wide.load(transport(wide, narrow, data)).logits(x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert "'0'" in (same_but_widths(wide, torch_model(5, 4, kernel=2)) or "")
    assert "'7'" in (same_but_widths(wide, torch_model(5, 4, last="Tanh")) or "")
    assert "Keras" in (same_but_widths(wide, io.from_config(mlp(5, 4))) or "")


class Wired(nn.Module):
    def __init__(self, width, residual):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.residual = residual

    def forward(self, x):
        h = torch.relu(self.a(x))
        g = torch.relu(self.b(h))
        return self.c(g + h if self.residual else g + g)


def test_torch_modules_that_are_wired_otherwise_are_told_apart():
    models = [Model(Wired(*how), Architecture("torch"), (4,), 3) for how in ((6, True), (4, True), (4, False))]
    assert same_but_widths(models[0], models[1]) is None
    assert same_but_widths(models[1], models[2]) is not None
    x = torch.rand(20, 4)
    with torch.no_grad():
        expected = models[1].logits(x)
        torch.testing.assert_close(models[0].load(transport(models[0], models[1])).logits(x), expected)


def test_a_negative_softness_is_refused():
    with pytest.raises(UsageError, match="negative"):
        plan(torch.zeros(2, 2), -0.1)
