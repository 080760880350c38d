import numpy as np
import pytest
import torch
from digits_team import blank, probe, trained, truth

from fedloom.align import matching
from fedloom.align.barrier import line
from fedloom.align.symmetry.graph import derive
from fedloom.errors import DataError, UsageError
from fedloom.metrics import Counts
from fedloom.training.evaluate import evaluate
from fedloom.training.shard import Shard


def aligned(model, a, b):
    symmetry = derive(model)
    orders = matching.by_weights(symmetry, [a, b], torch.Generator().manual_seed(0), reference=0).orders
    return symmetry.apply(b, orders[1])


def test_the_ends_are_the_two_models():
    model = blank("2nn")
    a, b = trained("2nn", 0, 0), trained("2nn", 1, 1)
    made = line(model, a, b, probe(), truth(), points=5)
    shard = Shard("", probe(), truth(), 1.0)
    for k, end in ((0, a), (-1, b)):
        counts: Counts = evaluate(model.load(end), shard)
        assert made.losses[k] == pytest.approx(counts.loss)
        assert made.accuracies[k] == counts.accuracy
    middle = evaluate(model.load((a + b) / 2), shard)
    assert made.losses[2] == pytest.approx(middle.loss, rel=1e-5)
    assert made.alphas.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert made.labelled


@pytest.mark.parametrize("labels", [True, False])
def test_the_barrier_of_different_starts_falls_with_alignment_and_a_shared_start_has_little(labels):
    model, y = blank("2nn"), truth() if labels else None
    a, b, near = trained("2nn", 0, 0), trained("2nn", 1, 1), trained("2nn", 0, 1)
    apart = line(model, a, b, probe(), y)
    brought = line(model, a, aligned(model, a, b), probe(), y)
    shared = line(model, a, near, probe(), y)
    assert apart.barrier > 3 * brought.barrier
    assert apart.accuracy_barrier > 0.05 > shared.accuracy_barrier
    assert shared.barrier < 0.1 < apart.barrier
    # A permutation changes nothing at the ends.
    assert np.allclose(apart.losses[[0, -1]], brought.losses[[0, -1]], atol=1e-3)


def test_a_model_and_itself_have_no_barrier():
    a = trained("2nn", 0, 0)
    made = line(blank("2nn"), a, a, probe(), truth(), points=4)
    assert made.barrier == pytest.approx(0.0, abs=1e-6)
    assert made.accuracy_barrier == pytest.approx(0.0, abs=1e-9)


def test_recalibrated_statistics_lower_the_barrier_and_leave_the_ends_alone():
    model = blank("mlp")
    a, b = trained("mlp", 0, 0), trained("mlp", 1, 1)
    b = aligned(model, a, b)
    plain = line(model, a, b, probe(), truth(), points=5)
    renewed = line(model, a, b, probe(), truth(), points=5, recalibrate=True)
    assert renewed.barrier < 0.7 * plain.barrier
    assert plain.losses[0] == renewed.losses[0]
    assert plain.losses[-1] == renewed.losses[-1]


def test_the_models_own_weights_are_put_back():
    model = blank("mlp")
    own = trained("mlp", 2, 2)
    model.load(own)
    line(model, trained("mlp", 0, 0), trained("mlp", 1, 1), probe(), None, points=3, recalibrate=True)
    assert torch.equal(model.vector(), own)


def test_bad_input_is_refused():
    model, a = blank("2nn"), trained("2nn", 0, 0)
    with pytest.raises(UsageError, match="at least 3 points, found 2"):
        line(model, a, a, probe(), truth(), points=2)
    with pytest.raises(DataError, match="a label for each, found 397 and 5"):
        line(model, a, a, probe(), truth()[:5])
    with pytest.raises(DataError, match="needs inputs"):
        line(model, a, a, probe()[:0])
