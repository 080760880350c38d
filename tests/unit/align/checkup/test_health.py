import math

import pytest
import torch
from digits_team import probe, team

from fedloom.align.checkup.health import broken, examine
from fedloom.align.checkup.input_scale import fold_scale
from fedloom.align.checkup.labels import reorder
from fedloom.align.symmetry.graph import derive
from fedloom.errors import UsageError
from fedloom.models import io

NAMES = ["ana", "ben", "eva", "luis"]
ORDER = torch.tensor([0, 1, 2, 5, 4, 3, 6, 7, 8, 9])


@pytest.mark.parametrize("kind", ["2nn", "mlp", "lenet"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_healthy_members_are_left_alone(kind, n):
    members = team(kind, n)
    found = examine(members, NAMES[:n], probe())
    assert found.findings == ()
    assert found.left_out == ()
    assert found.factors == (1.0,) * n
    assert all(torch.equal(v, m.vector()) for v, m in zip(found.vectors, members, strict=True))
    assert broken(members, probe(), NAMES[:n]) == [""] * n


@pytest.mark.parametrize("kind", ["2nn", "mlp"])
def test_everything_at_once_is_found_and_healed(kind):
    members = [*team(kind), *team(kind, 3)]
    names = [*NAMES, "mei", "noa", "zoe"]
    own = [member.vector() for member in members]
    fold_scale(members[0], 1 / 255)
    members[1].load(reorder(derive(members[1]), own[1], ORDER))
    io.initialize(members[2], 5, "fresh")
    members[3].load(own[3].index_fill(0, torch.tensor([5]), math.nan))
    given = [member.vector() for member in members]
    found = examine(members, names, probe())
    assert found.left_out == (2, 3)
    assert found.factors == (255.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert torch.equal(found.orders[1], ORDER)
    assert found.vectors[0].allclose(own[0], rtol=1e-4, atol=1e-7)
    assert torch.equal(found.vectors[1], own[1])
    titles = [(r.level, r.title) for r in found.findings]
    assert titles == [
        ("problem", "luis is left out"),
        ("warning", "ana expects inputs from 0 to 255"),
        ("warning", "ben numbers its classes in another order"),
        ("problem", "eva is left out"),
    ]
    assert "array '0_dense.weight' holds 1 numbers" in found.findings[0].text
    assert "Its first layer multiplies by 255 itself now." in found.findings[1].text
    assert "It says 5 for the others' 3, 3 for the others' 5." in found.findings[2].text
    for member, vector in zip(members, given, strict=True):
        assert torch.equal(member.vector().nan_to_num(7.0), vector.nan_to_num(7.0))


@pytest.mark.parametrize("kind", ["2nn", "mlp", "lenet"])
def test_a_member_that_learned_nothing_is_left_out(kind):
    members = team(kind, 3)
    io.initialize(members[1], 5, "fresh")
    reasons = broken(members, probe(), NAMES[:3])
    assert [bool(r) for r in reasons] == [False, True, False]
    assert "no more than by chance" in reasons[1] or "to everything" in reasons[1]


def test_of_two_members_nobody_can_tell_who_learned_nothing():
    members = team("2nn", 2)
    io.initialize(members[1], 5, "fresh")
    assert broken(members, probe(), NAMES[:2]) == ["", ""]


def test_a_member_that_ignores_its_inputs_is_left_out_even_alone():
    members = team("2nn", 1)
    members[0].load(torch.zeros(members[0].layout.size))
    assert "the same probabilities whatever the input is" in broken(members, probe(), NAMES[:1])[0]


def test_a_member_that_answers_nan_is_left_out():
    members = team("mlp", 3)
    with torch.no_grad():
        members[2].module.by_path["batchnormalization"].running_var.fill_(-1.0)
    found = examine(members, NAMES[:3], probe())
    assert found.left_out == (2,)
    assert "answers NaN" in found.findings[0].text


def test_a_member_that_answers_one_class_to_everything_is_left_out():
    members = team("2nn", 3)
    with torch.no_grad():
        members[0].module.by_path["dense_2"].bias[4] += 27.0
    assert "answers class 4 to everything" in broken(members, probe(), NAMES[:3])[0]


def test_a_member_that_knows_half_of_the_classes_is_kept():
    members = team("2nn")
    with torch.no_grad():
        members[0].module.by_path["dense_2"].bias[5:] -= 100.0
    found = examine(members, NAMES, probe())
    assert (found.left_out, found.findings) == ((), ())


def test_class_names_tell_the_order_of_two_members():
    members = team("2nn", 2)
    own = members[1].vector()
    members[1].load(reorder(derive(members[1]), own, ORDER))
    names = [f"digit {i}" for i in range(10)]
    found = examine(members, NAMES[:2], probe())
    assert found.findings[0].title == "ana and ben seem to number their classes differently"
    assert torch.equal(found.vectors[1], members[1].vector())
    found = examine(members, NAMES[:2], probe(), [names, [names[i] for i in ORDER]])
    assert torch.equal(found.vectors[1], own)


def test_class_names_that_contradict_the_answers_are_not_followed():
    members = team("2nn", 2)
    names = [f"digit {i}" for i in range(10)]
    found = examine(members, NAMES[:2], probe(), [names, [names[i] for i in ORDER]])
    assert torch.equal(found.vectors[1], members[1].vector())
    assert found.findings[0].level == "warning"
    assert "class names" in found.findings[0].text


def test_dying_layers_are_mentioned():
    members = team("2nn", 3)
    with torch.no_grad():
        members[1].module.by_path["dense"].bias[:150] = -100.0
    found = examine(members, NAMES[:3], probe())
    assert found.dead[1][0].dead >= 150
    assert [r.title for r in found.findings if r.level == "info"] == ["Many units of ben never fire"]


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="2 models and 1 names"):
        examine(team("2nn", 2), ["ana"], probe())
