import pytest
import torch
from digits_team import probe, team

from fedloom.align import matching
from fedloom.align.checkup import labels
from fedloom.align.symmetry.graph import derive
from fedloom.errors import ModelError
from fedloom.models import io

SAME = torch.arange(10)
ORDERS = [
    [0, 1, 2, 5, 4, 3, 6, 7, 8, 9],
    [1, 2, 0, 3, 4, 5, 6, 7, 8, 9],
    [1, 0, 3, 2, 4, 5, 6, 7, 9, 8],
    [6, 0, 3, 7, 8, 5, 1, 9, 2, 4],
]


def swapped(members, i, order):
    members[i].load(labels.reorder(derive(members[i]), members[i].vector(), torch.tensor(order)))
    return members


@pytest.mark.parametrize("kind", ["2nn", "mlp", "lenet"])
def test_healthy_members_have_one_order(kind):
    for n in (1, 2, 3, 4):
        assert all(torch.equal(order, SAME) for order in labels.label_orders(team(kind, n), probe()))


@pytest.mark.parametrize("kind", ["2nn", "mlp"])
@pytest.mark.parametrize("order", ORDERS, ids=["two", "cycle of three", "three pairs", "all"])
@pytest.mark.parametrize("n", [3, 4])
def test_another_order_is_found_and_healed(kind, order, n):
    members = team(kind, n)
    own = members[1].vector()
    found = labels.label_orders(swapped(members, 1, order), probe())
    assert torch.equal(found[1], torch.tensor(order).argsort())
    assert all(torch.equal(found[i], SAME) for i in range(n) if i != 1)
    assert torch.equal(labels.reorder(derive(members[1]), members[1].vector(), found[1]), own)


def test_two_members_of_one_other_order_are_outvoted():
    members = swapped(swapped([*team("2nn"), *team("2nn", 1)], 0, ORDERS[0]), 3, ORDERS[0])
    found = labels.label_orders(members, probe())
    assert [not torch.equal(order, SAME) for order in found] == [True, False, False, True, False]


def test_without_a_majority_nothing_is_said():
    members = swapped(swapped(team("2nn"), 0, ORDERS[3]), 1, ORDERS[0])
    assert all(torch.equal(order, SAME) for order in labels.label_orders(members[:2], probe()))
    io.initialize(members[2], 1, "fresh")
    io.initialize(members[3], 2, "fresh")
    assert all(torch.equal(order, SAME) for order in labels.label_orders(members, probe()))


def test_a_member_that_knows_nothing_has_no_order():
    members = team("2nn")
    io.initialize(members[2], 5, "fresh")
    assert all(torch.equal(order, SAME) for order in labels.label_orders(members, probe()))


@pytest.mark.parametrize("order", [None, *ORDERS])
def test_weights_alone_tell_the_order(order):
    members = team("2nn")
    if order:
        swapped(members, 2, order)
    symmetry = derive(members[0])
    last = {use.array for use in symmetry.outputs.uses}
    counted = frozenset(symmetry.layout.names) - last
    rows = [member.vector() for member in members]
    orders = matching.by_weights(symmetry, rows, torch.Generator().manual_seed(0), arrays=counted).orders
    found = labels.orders_by_weights(symmetry, [symmetry.apply(r, o) for r, o in zip(rows, orders, strict=True)])
    wanted = torch.tensor(order).argsort() if order else SAME
    assert torch.equal(found[2], wanted)
    assert all(torch.equal(found[i], SAME) for i in (0, 1, 3))


def test_orders_by_name():
    assert labels.named_order(["b", "a", "c"], ["a", "b", "c"]).tolist() == [1, 0, 2]
    assert labels.named_order(["a", "b"], ["a", "c"]) is None
    assert labels.named_order(["a", "a"], ["a", "a"]) is None


def test_a_model_without_a_dense_end_is_refused():
    symmetry = derive(team("2nn", 1)[0])
    without = type(symmetry)(symmetry.groups, symmetry.layout, symmetry.trace, None)
    with pytest.raises(ModelError, match="the last layer is not one whose rows are the classes"):
        labels.reorder(without, torch.zeros(without.layout.size), SAME)
    assert [len(order) for order in labels.orders_by_weights(without, [torch.zeros(1)] * 3)] == [0, 0, 0]
