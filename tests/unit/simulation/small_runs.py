"""Small runs on the embedded digits, and what is compared of two of them."""

from __future__ import annotations

import fedloom
from fedloom import events as log

SMALL = {"clients": 10, "per_round": 3, "rounds": 4, "progress": False, "lr": 0.1, "plan": "loop"}
CHOSEN = SMALL | {"plan": "auto"}


def vector(path):
    return fedloom.load_model(path).vector()


def told(folder):
    """The events without what no two runs have in common: how long things took."""
    rows = []
    for row in log.read(folder).rows:
        row = {k: v for k, v in row.items() if not k.endswith("seconds") and k not in ("times", "left_out")}
        rows.append(row)
    return rows
