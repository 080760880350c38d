import pytest
import torch
from digits_team import blank, probe, team, trained

from fedloom.align.checkup.agreement import answers
from fedloom.align.checkup.input_scale import fold_scale, input_scales, variance_ratio
from fedloom.errors import ModelError
from fedloom.models import io

KINDS = ["2nn", "mlp", "lenet"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_healthy_members_have_one_scale(kind, n):
    assert input_scales(team(kind, n), probe()) == [1.0] * n


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [255.0, 1 / 255])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_member_of_another_scale_is_found_and_healed(kind, factor, n):
    members = team(kind, n)
    own = members[1].vector()
    fold_scale(members[1], 1 / factor)  # now it expects inputs times the factor
    found = input_scales(members, probe())
    assert found == [factor if i == 1 else 1.0 for i in range(n)]
    fold_scale(members[1], found[1])
    assert members[1].vector().allclose(own, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["2nn", "mlp"])
def test_a_member_that_was_trained_on_0_to_255_is_found(kind):
    members = team(kind)
    members[2].load(trained(kind, 2, 2, 255.0))
    assert input_scales(members, probe()) == [1.0, 1.0, 255.0, 1.0]


def test_members_that_were_trained_on_inputs_divided_twice_are_found():
    members = team("mlp")
    members[0].load(trained("mlp", 0, 0, 1 / 255))
    assert input_scales(members, probe()) == pytest.approx([1 / 255, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_learned_nothing_has_no_scale(kind):
    members = team(kind)
    io.initialize(members[3], 5, "fresh")
    assert input_scales(members, probe()) == [1.0] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_folding_is_exact(kind):
    model = team(kind, 1)[0]
    wanted = model.logits(3.0 * probe())
    fold_scale(model, 3.0)
    assert model.logits(probe()).allclose(wanted, atol=1e-4)


def functional(layers):
    rows = [("InputLayer", {"batch_shape": [None, 8]}), *layers, ("Dense", {"units": 10})]
    named = [
        {"class_name": name, "config": {"name": f"l{i}", "dtype": "float32", **config}, "module": "keras.layers"}
        for i, (name, config) in enumerate(rows)
    ]
    made = io.from_config({"class_name": "Sequential", "module": "keras", "config": {"name": "m", "layers": named}})
    io.initialize(made, 0, "start")
    return made


def test_folding_reaches_through_a_rescaling_and_a_batch_norm():
    x = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    for layers in ([("Rescaling", {"scale": 0.5})], [("BatchNormalization", {})]):
        model = functional(layers)
        for name, buffer in model.module.named_buffers():
            buffer.copy_(torch.linspace(0.5, 2, 8) if name.endswith("running_var") else torch.linspace(-1, 1, 8))
        wanted = model.logits(255.0 * x)
        fold_scale(model, 255.0)
        assert model.logits(x).allclose(wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layers",
    [
        [("Rescaling", {"scale": 0.5, "offset": -1.0})],
        [("Activation", {"activation": "tanh"})],
        [("BatchNormalization", {"scale": False})],
        [("Normalization", {"mean": [0.0] * 8, "variance": [1.0] * 8})],
    ],
)
def test_what_cannot_be_folded_is_refused_and_left_alone(layers):
    model = functional(layers)
    own = model.vector()
    with pytest.raises(ModelError, match=r"layer 'l1' \(\w+\) stands between"):
        fold_scale(model, 255.0)
    assert torch.equal(model.vector(), own)


def test_variance_ratio():
    model = team("mlp", 1)[0]
    own = variance_ratio(model, probe())
    assert abs(own) < 0.5
    assert variance_ratio(model, probe() / 255) == pytest.approx(own - 11.08, abs=0.1)
    assert variance_ratio(blank("2nn"), probe()) is None


def test_only_members_in_their_own_scale_are_certain_in_it():
    model = team("2nn", 1)[0]
    fold_scale(model, 1 / 255)
    assert answers(model, probe()).entropy > 0.9
