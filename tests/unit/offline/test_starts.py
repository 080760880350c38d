"""The watch over models that stream past: little memory, and duplicates are the same numbers throughout."""

from __future__ import annotations

from pathlib import Path

import torch

from fedloom.align.diagnose import MOST_LAYERS
from fedloom.layout import Layout
from fedloom.offline.collect import ModelFile
from fedloom.offline.starts import INPUTS, UNITS, WATCHED, Watch

LAYOUT = Layout(("a.weight", "a.bias", "b.weight", "b.bias"), ((300, 400), (300,), (20, 300), (20,)), 4)


def files(n: int) -> list[ModelFile]:
    return [ModelFile(Path(f"{i}.keras"), str(i), None) for i in range(n)]


def members(n: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(LAYOUT.size, generator=generator)
    return [start + 0.1 * torch.randn(LAYOUT.size, generator=generator) for _ in range(n)]


def verdict(vectors: list[torch.Tensor]):
    watch = Watch(LAYOUT)
    for vector in vectors:
        assert watch.see(vector) is vector
    return watch.verdict(files(len(vectors)))


def test_shared_and_different_starts_are_told_apart():
    assert verdict(members(3)).shared is True
    assert verdict([*members(2), *members(1, seed=1)]).shared is False


def test_duplicates_are_found_among_all_models_and_only_when_every_number_is_equal():
    vectors = members(WATCHED + 2)
    vectors[-1] = vectors[3].clone()
    assert verdict(vectors).duplicates == ((3, WATCHED + 1),)
    vectors[-1][-1] += 1.0
    assert verdict(vectors).duplicates == ()


def test_what_is_kept_of_a_model_is_bounded():
    watch = Watch(LAYOUT)
    for vector in members(WATCHED + 4):
        watch.see(vector)
    kept = [head.numel() for head in watch._heads]
    assert len(kept) == WATCHED
    assert max(kept) <= MOST_LAYERS * UNITS * INPUTS


def test_models_without_a_telling_layer_or_without_trainable_arrays_say_that_nothing_is_known():
    for layout in (Layout(("w",), ((3, 2),), 1), Layout(("mean",), ((4,),), 0)):
        watch = Watch(layout)
        for seed in (0, 1):
            watch.see(torch.randn(layout.size, generator=torch.Generator().manual_seed(seed)))
        assert watch.verdict(files(2)).shared is None
