"""What cannot be combined with secure aggregation, and why."""

from __future__ import annotations

_SINGLE = "needs every client's update by itself; secure aggregation shows the server their sum only"

WHY_NOT: dict[str, str] = {
    "median": f"the median of each number {_SINGLE}",
    "trimmed-mean": f"leaving out the extreme values {_SINGLE}",
    "geometric-median": f"the geometric median {_SINGLE}",
    "krum": f"the distance between any two updates {_SINGLE}",
    "multi-krum": f"the distance between any two updates {_SINGLE}",
    "bulyan": f"the distance between any two updates {_SINGLE}",
    "centered-clipping": f"clipping around the last mean on the server {_SINGLE}; clip on the clients instead",
    "norm-bounding": f"clipping by the server {_SINGLE}; clip on the clients instead",
    "feddf": f"distilling from the clients' models {_SINGLE}",
    "fedbuff": "masks cancel among the clients of one round, but buffered updates come from different rounds",
}
"""Algorithms and rules by name."""

CODEC = (
    "the codec '{name}' is not linear: the sum of encoded updates is not the encoded sum, and masked numbers cannot be "
    "compressed further; use the fixed-point bits of secure aggregation to send fewer bytes"
)
"""For a codec whose ``linear`` is False; ``name`` is to be filled in."""


def why_not(name: str) -> str | None:
    """Say why an algorithm or rule cannot work on sums alone; None where it can.

    Example:
        >>> why_not("fedavg") is None
        True
    """
    return WHY_NOT.get(name)
