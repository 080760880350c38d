"""What each method is known for, beside the contract that all codecs keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from chains import LAYOUT, SIZE

from fedloom.compress import majority, parse
from fedloom.errors import DataError, UsageError
from fedloom.layout import Layout
from fedloom.rng import stream

VECTOR = torch.from_numpy(stream(6).standard_normal(SIZE).astype("float32"))


def decoded(text: str, vector: torch.Tensor, seed: int = 0, layout: Layout | None = None) -> torch.Tensor:
    codec = parse(text, layout)
    return codec.decode(codec.encode(vector, stream(seed)))


def size(text: str, n: int) -> int:
    return len(parse(text).encode(torch.from_numpy(stream(0).standard_normal(n).astype("float32")), stream(1))) - 16


def test_sizes_worked_out_by_hand():
    assert size("int4", 10_240) == 10_240 // 2 + 10 * 8
    assert size("int1", 10_240) == 10_240 // 8 + 10 * 8
    assert size("qsgd:4:512", 10_240) == 10_240 // 2 + 20 * 4
    assert size("sign", 10_240) == 10_240 // 8 + 10 * 4
    assert size("randomk:100 | float16", 10_000) == 8 + 2 + 200
    assert size("topk:0.5", 1000) == 125 + 4 * 500
    assert 4 * 10**5 / size("int4", 10**5) > 7.8
    assert 4 * 10**5 / size("topk:0.01 | int8 | zstd", 10**5) > 150


def test_topk_keeps_the_largest_and_nothing_else():
    vector = torch.tensor([0.1, -5.0, 3.0, 0.0, -3.0, 4.0])
    assert decoded("topk:3", vector).tolist() == [0, -5, 3, 0, 0, 4]
    assert decoded("topk:100", vector).tolist() == vector.tolist()
    assert decoded("topk:0.01", vector).tolist() == [0, -5, 0, 0, 0, 0]


def test_randomk_and_masks_send_values_as_they_are_and_subsample_scales_them():
    vector = torch.arange(1.0, 1001.0)
    for text in ("randomk:0.25", "mask:0.25"):
        found = decoded(text, vector)
        sent = found != 0
        assert torch.equal(found[sent], vector[sent])
        assert 180 < int(sent.sum()) < 320
    assert int((decoded("randomk:250", vector) != 0).sum()) == 250
    found = decoded("subsample:0.25", vector)
    assert torch.equal(found[found != 0], 4 * vector[found != 0])


def test_randomk_chooses_evenly():
    counts = sum((decoded("randomk:20", torch.ones(100), seed) for seed in range(500)), torch.zeros(100))
    assert float((counts - 100).abs().max()) < 5 * math.sqrt(80)


@pytest.mark.parametrize("bits", range(1, 9))
def test_whole_numbers_are_exact_where_values_lie_on_the_grid(bits):
    vector = torch.arange(2.0**bits).repeat(5)
    assert torch.equal(decoded(f"int{bits}", vector), vector)


def test_one_bit_is_konecnys_choice_between_the_smallest_and_the_largest():
    found = torch.stack([decoded("int1", torch.tensor([-1.0, 0.5, 3.0]), seed) for seed in range(400)])
    assert set(found[:, 1].tolist()) == {-1.0, 3.0}
    assert float((found[:, 1] == 3).double().mean()) == pytest.approx(1.5 / 4, abs=0.1)


def test_qsgd_sends_multiples_of_the_norm():
    vector = VECTOR[:64]
    found = decoded("qsgd:4:64", vector) / vector.norm() * 7
    assert torch.allclose(found, found.round(), atol=1e-5)
    assert bool((found * vector >= 0).all())


def test_qsgd_is_within_its_lemma_and_the_largest_value_as_norm_is_better():
    energy = float(VECTOR.double().square().sum())
    assert parse("qsgd:4:64").bound(VECTOR) <= min(64 / 49, 8 / 7) * energy * 1.001
    assert parse("qsgd:4:64:max").bound(VECTOR) < 0.15 * parse("qsgd:4:64").bound(VECTOR)


def test_signs_have_the_mean_size():
    assert decoded("sign:2", torch.tensor([1.0, -3.0, 0.0, 4.0, -5.0])).tolist() == [2, -2, 2, 2, -5]


def test_the_sign_of_the_sum_is_the_majoritys():
    votes = torch.tensor([[1.0, -1.0, 2.0], [1.0, 1.0, -2.0], [-1.0, -1.0, 2.0]])
    sent = torch.stack([decoded("sign", row) for row in votes])
    assert majority(sent).sign().tolist() == [1, -1, 1]
    assert torch.equal(sent.sign().sum(0).sign(), majority(sent).sign())


def test_float16_keeps_tiny_and_huge_updates():
    for scale in (1e-30, 1e-9, 1.0, 1e25):
        found = decoded("float16", VECTOR * scale) / scale
        assert torch.allclose(found, VECTOR, rtol=2**-11 * 1.01, atol=1e-6)


def test_a_rotation_makes_few_bits_better_where_one_number_is_large():
    vector = torch.from_numpy(stream(4).normal(0, 0.01, 8192).astype("float32"))
    vector[5] = 10.0
    plain, turned = (float((decoded(t, vector) - vector).norm()) for t in ("int2:8192", "rotate | int2:8192"))
    assert turned < 0.7 * plain
    assert parse("rotate | int2:8192").bound(VECTOR) < parse("int2:8192").quantiser.share(8192, 0) * VECTOR.norm() ** 2


def test_powersgd_finds_a_product_and_random_directions_do_not():
    left, right = stream(1).standard_normal((6, 2)), stream(2).standard_normal((2, 40))
    vector = VECTOR.clone()
    vector[:240] = torch.from_numpy((left @ right).reshape(-1).astype("float32"))
    vector[240:300] = torch.from_numpy(np.outer(np.arange(5), np.arange(12)).reshape(-1).astype("float32"))
    assert torch.allclose(decoded("powersgd:2", vector, layout=LAYOUT), vector, atol=1e-3)
    assert not torch.allclose(decoded("lowrank:2", vector, layout=LAYOUT), vector, atol=0.1)


@pytest.mark.parametrize("text", ["powersgd:2", "lowrank:2"])
def test_what_is_no_matrix_is_sent_as_it_is(text):
    assert torch.equal(decoded(text, VECTOR, layout=LAYOUT)[300:], VECTOR[300:])


def test_more_power_iterations_fit_better():
    wide = Layout(("w",), ((50, 60),), 1)
    vector = torch.from_numpy(stream(3).standard_normal(3000).astype("float32"))
    one, many = (float((decoded(f"powersgd:4:{s}", vector, layout=wide) - vector).norm()) for s in (1, 8))
    best = torch.linalg.svdvals(vector.view(50, 60))[4:].norm()
    assert float(best) * 0.999 <= many < one
    assert many < 1.03 * float(best)


def test_a_rank_that_no_matrix_has_leaves_all_as_it_is():
    assert torch.equal(decoded("powersgd:6", VECTOR, layout=LAYOUT), VECTOR)


def test_a_tall_matrix_is_turned():
    tall = Layout(("w",), ((40, 6),), 1)
    vector = torch.outer(torch.arange(40.0), torch.arange(6.0)).reshape(-1)
    assert torch.allclose(decoded("powersgd:1", vector, layout=tall), vector, rtol=1e-3)
    assert len(parse("powersgd:1", tall).encode(vector, stream(0))) == 16 + 2 * 6 + 4 * 40


def test_vectors_of_another_model_are_refused():
    with pytest.raises(UsageError, match="not one of the"):
        parse("lowrank:2", LAYOUT).encode(torch.zeros(5), stream(0))


@pytest.mark.parametrize(
    "text", ["int1:16", "int4:16", "qsgd:2:16", "qsgd:4:16", "qsgd:8:64:max", "sign:16", "float16"]
)
def test_no_vector_has_more_than_its_share_of_error(text):
    stage = parse(text).quantiser
    for seed in range(20):
        values = (stream(seed).standard_normal(160) ** (1 + 2 * (seed % 3))).astype("float32")
        if seed % 2:
            values[stream(seed, "few").permutation(160)[:140]] = 0
        assert stage.error(values) <= stage.share(160, 0) * float(np.square(values, dtype=np.float64).sum()) * (
            1 + 1e-9
        )
    lemma = {"qsgd:2:16": 4.0, "qsgd:4:16": 16 / 49, "int1:16": 8.0, "int4:16": 8 / 225}
    assert stage.share(160, 0) == pytest.approx(lemma.get(text, stage.share(160, 0)), rel=0.01)


def test_codes_norms_and_exponents_that_are_never_sent_are_refused():
    zeros = torch.zeros(8)
    data = bytearray(parse("qsgd:4:8").encode(zeros, stream(0)))
    data[20] = 0xFF
    with pytest.raises(DataError, match="QSGD does not send"):
        parse("qsgd:4:8").decode(bytes(data))
    data[16:21] = np.float32(-1).tobytes() + b"\x77"
    with pytest.raises(DataError, match="QSGD does not send"):
        parse("qsgd:4:8").decode(bytes(data))
    data = bytearray(parse("float16").encode(zeros, stream(0)))
    data[16:18] = (-5000).to_bytes(2, "little", signed=True)
    with pytest.raises(DataError, match="exponent is -5000"):
        parse("float16").decode(bytes(data))
