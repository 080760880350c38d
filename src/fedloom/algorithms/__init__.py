"""Federated algorithms: one file per published method, and one table that names them."""

from __future__ import annotations

from collections.abc import Mapping

from fedloom.algorithms import (
    adaptive,
    central,
    ditto,
    fedavg,
    fedbn,
    fedbuff,
    feddf,
    feddyn,
    fedexp,
    fednova,
    fedper,
    fedprox,
    fedrep,
    fedsgd,
    finetune,
    local_only,
    qfedavg,
    robust,
    scaffold,
)
from fedloom.algorithms.base import Algorithm, Broadcast, Method, Option, Setting, Settled, State, Visit
from fedloom.errors import check_known

__all__ = ["ALGORITHMS", "Algorithm", "Broadcast", "Method", "Option", "Setting", "Settled", "State", "Visit", "make"]

ALGORITHMS: dict[str, Method] = {
    "fedsgd": fedsgd.METHOD,
    "fedavg": fedavg.METHOD,
    "fedavgm": adaptive.FEDAVGM,
    "fedadagrad": adaptive.FEDADAGRAD,
    "fedadam": adaptive.FEDADAM,
    "fedyogi": adaptive.FEDYOGI,
    "fedprox": fedprox.METHOD,
    "fednova": fednova.METHOD,
    "scaffold": scaffold.METHOD,
    "feddyn": feddyn.METHOD,
    "fedexp": fedexp.METHOD,
    "q-fedavg": qfedavg.METHOD,
    **robust.METHODS,
    "fedbn": fedbn.METHOD,
    "fedper": fedper.METHOD,
    "fedrep": fedrep.METHOD,
    "ditto": ditto.METHOD,
    "finetune": finetune.METHOD,
    "fedbuff": fedbuff.METHOD,
    "feddf": feddf.METHOD,
    "local-only": local_only.METHOD,
    "central": central.METHOD,
}


def make(name: str, setting: Setting, options: Mapping[str, float | str | None] | None = None) -> Algorithm:
    """Make the algorithm of that name.

    Args:
        name: A name of :data:`ALGORITHMS`.
        setting: What it may know of the run.
        options: Its options; those that are missing or None keep their defaults.

    Raises:
        UsageError: An unknown name or option, with a suggestion, or a value out of range.
    """
    check_known("algorithm", [name], ALGORITHMS)
    method = ALGORITHMS[name]
    check_known(f"option of {name}", options or {}, method.options)
    values = {option: row.default for option, row in method.options.items()}
    values |= {option: value for option, value in (options or {}).items() if value is not None}
    return method.make(setting, values)
