"""Permutation symmetry between models: whether they share a start, and (later) how to bring them together."""

from fedloom.align.diagnose import Pair, Verdict, chance, same_index_share, shared_start

__all__ = ["Pair", "Verdict", "chance", "same_index_share", "shared_start"]
