"""One model out of models that were trained apart: their hidden units are brought into a common order first."""

from fedloom.align.diagnose import Pair, Verdict, chance, same_index_share, shared_start

__all__ = ["Pair", "Verdict", "chance", "same_index_share", "shared_start"]
