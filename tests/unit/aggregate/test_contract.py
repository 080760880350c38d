"""What holds for every rule of the table: a newcomer earns all of it by its row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom import aggregate
from fedloom.errors import MergeError, UsageError
from fedloom.layout import Layout

METHODS = list(aggregate.RULES)
ROBUST = [
    "median",
    "trimmed-mean",
    "geometric-median",
    "krum",
    "multi-krum",
    "bulyan",
    "centered-clipping",
    "norm-bounding",
]


def merge(method, matrix, order=None, **kwargs):
    """Merge with everything a rule could ask for; ``order`` permutes models, weights and norms alike."""
    n = len(matrix)
    order = list(range(n)) if order is None else order
    weights = [1.0 + i % 3 for i in order]
    norms = [2.0 + i % 2 for i in order]
    centre = torch.zeros(len(matrix[0])) if method == "fednova" else None
    return aggregate.combine(method, matrix[order], **{"weights": weights, "norms": norms, "centre": centre, **kwargs})


def models(n, size=40, seed=0):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
def test_row_is_described(method):
    rule = aggregate.RULES[method]
    assert all([rule.title, rule.protects, rule.paper])
    assert all(option.help for option in rule.options.values())


@pytest.mark.parametrize("method", METHODS)
def test_result_is_a_fresh_finite_float32_vector(method):
    matrix = models(7)
    before = matrix.clone()
    out = merge(method, matrix)
    assert out.dtype == torch.float32
    assert out.shape == (40,)
    assert torch.isfinite(out).all()
    out.fill_(9.0)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("method", METHODS)
def test_one_model_is_returned_as_it_is(method):
    row = models(1)
    out = merge(method, row)
    assert torch.equal(out, row[0])
    assert out.data_ptr() != row.data_ptr()


@pytest.mark.parametrize("method", METHODS)
def test_equal_models_give_that_model(method):
    row = models(1)[0]
    norms = [2.0] * 7
    assert torch.equal(merge(method, row.repeat(7, 1), norms=norms), row)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), data=st.data())
def test_order_of_the_models_does_not_matter(method, seed, data):
    matrix = models(9, seed=seed)
    order = data.draw(st.permutations(range(9)))
    torch.testing.assert_close(merge(method, matrix, order), merge(method, matrix), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
def test_scale_of_the_weights_does_not_matter(method, seed, scale):
    matrix = models(7, seed=seed)
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    scaled = [w * scale for w in weights]
    out = merge(method, matrix, weights=scaled)
    torch.testing.assert_close(out, merge(method, matrix, weights=weights), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_weights_count_exactly_where_the_table_says_so(method):
    matrix = models(7)
    differs = not torch.equal(
        merge(method, matrix, weights=[1, 1, 1, 1, 1, 1, 50]), merge(method, matrix, weights=[50, 1, 1, 1, 1, 1, 1])
    )
    assert differs == aggregate.RULES[method].weights


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"fednova"}))  # which may move further than any model did
def test_result_lies_within_the_models_of_every_coordinate(method):
    matrix = models(11)
    out = merge(method, matrix)
    assert (out >= matrix.min(dim=0).values - 1e-6).all()
    assert (out <= matrix.max(dim=0).values + 1e-6).all()


@pytest.mark.parametrize("method", ROBUST)
@pytest.mark.parametrize("evil", [1e6, -1e30])
def test_robust_rules_bear_one_outlier(method, evil):
    honest = 5.0 + 0.1 * models(10)
    matrix = torch.cat([honest[:3], torch.full((1, 40), evil), honest[3:]])
    equal = [1.0] * 11
    assert (merge(method, matrix, weights=equal) - 5.0).abs().max() < 0.5


def test_the_mean_does_not():
    matrix = torch.cat([torch.ones(10, 4), torch.full((1, 4), 1e6)])
    assert merge("fedavg", matrix).min() > 1e4


def test_the_two_lists_cover_the_table():
    assert set(METHODS) - set(ROBUST) == {"fedavg", "weighted", "fednova"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("bad", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_number_that_is_none_is_refused_by_name(method, bad, word):
    matrix = models(7)
    matrix[4, 31] = bad
    layout = Layout(("0_dense.weight", "0_dense.bias"), ((3, 10), (10,)), 2)
    names = [f"{c}.keras" for c in "abcdefg"]
    with pytest.raises(MergeError, match=rf"^e\.keras holds .*{word}.*'0_dense\.bias'") as caught:
        merge(method, matrix, names=names, layout=layout)
    assert caught.value.context["file"] == "e.keras"
    with pytest.raises(MergeError, match=r"^model 5 holds .*position 31"):
        merge(method, matrix)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "2 weights were given for 7 models"),
        ([1, 1, 1, -1, 1, 1, 1], "weight of model 4 is -1"),
        ([1, 1, math.nan, 1, 1, 1, 1], "weight of model 3 is nan"),
        ([1, 1, math.inf, 1, 1, 1, 1], "weight of model 3 is inf"),
        ([0.0] * 7, "all 7 models are zero"),
    ],
)
def test_weights_that_do_not_fit_are_refused(method, weights, message):
    with pytest.raises(MergeError, match=message):
        merge(method, models(7), weights=weights)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_merge_is_refused(method):
    with pytest.raises(MergeError, match="no model was given"):
        aggregate.combine(method, torch.empty(0, 3))
    with pytest.raises(MergeError, match="no model was given"):
        aggregate.combine(method, [])


@pytest.mark.parametrize("method", METHODS)
def test_models_that_do_not_fit_are_refused(method):
    with pytest.raises(MergeError, match=r"model 2 has the shape \(3,\) where the shape \(2,\)"):
        aggregate.combine(method, [torch.ones(2), torch.ones(3)])
    with pytest.raises(MergeError, match=r"\(models, numbers\) is expected"):
        aggregate.combine(method, torch.ones(2))
    with pytest.raises(MergeError, match="at least one number"):
        aggregate.combine(method, torch.ones(2, 0))
    with pytest.raises(MergeError, match=r"torch\.float64 where torch\.float32"):
        aggregate.combine(method, torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(MergeError, match="1 names were given for 2 models"):
        aggregate.combine(method, torch.ones(2, 2), names=["a"])


@pytest.mark.parametrize("method", METHODS)
def test_unknown_option_is_refused(method):
    with pytest.raises(UsageError, match=f"unknown option of {method} 'itterations'"):
        aggregate.combine(method, models(7), options={"itterations": 3})


@pytest.mark.parametrize("method", METHODS)
def test_default_options_can_be_said_aloud(method):
    matrix = models(9)
    options = {name: option.default for name, option in aggregate.RULES[method].options.items()}
    assert torch.equal(merge(method, matrix, options=options), merge(method, matrix))


@pytest.mark.parametrize("method", METHODS)
def test_vectors_and_a_checked_cohort_are_accepted_as_well(method):
    matrix = models(9)
    weights, norms, centre = [1.0 + i % 3 for i in range(9)], [2.0 + i % 2 for i in range(9)], torch.zeros(40)
    centre = centre if method == "fednova" else None
    expected = merge(method, matrix)
    for vectors in (list(matrix), aggregate.cohort(matrix), [row.requires_grad_() for row in matrix.clone()]):
        out = aggregate.combine(method, vectors, weights=weights, norms=norms, centre=centre)
        assert torch.equal(out, expected)
        assert not out.requires_grad


def test_unknown_method_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'trimmed-mean'"):
        aggregate.combine("trimed-mean", models(3))


def test_public_names_exist():
    assert all(hasattr(aggregate, name) for name in aggregate.__all__)
    assert list(aggregate.__all__) == sorted(aggregate.__all__, key=lambda s: (not s.isupper(), s[0].islower(), s))
