"""Permutation symmetry: which hidden units of a model can change places, and what moves with them."""
