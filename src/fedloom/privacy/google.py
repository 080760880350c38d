"""Google's dp_accounting, behind one door: it is optional, slow to import, and talks in log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedloom.errors import MissingDependency

Curve: TypeAlias = NDArray[np.float64]


def library() -> Any:
    """Import dp_accounting.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import dp_accounting
    except ImportError:
        raise MissingDependency.of("dp-accounting", "privacy", "accounting for privacy") from None
    return dp_accounting


def orders() -> tuple[float, ...]:
    """Return the orders at which Rényi curves are kept: dp_accounting's own, 1.1 to 1024."""
    return tuple(library().rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


@lru_cache(maxsize=256)
def curve(event: Any, replace: bool, at: tuple[float, ...]) -> Curve:
    """Return the Rényi DP of dp_accounting's ``event`` at the orders ``at``, float64 (orders,).

    Args:
        event: A ``DpEvent``, which can be hashed.
        replace: Whether neighbours differ by one client's data being replaced, instead of added or removed.
        at: The orders.
    """
    dp = library()
    relation = dp.NeighboringRelation.REPLACE_ONE if replace else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    with _quiet():
        return np.asarray(dp.rdp.RdpAccountant(at, relation).compose(event).rdp)


@lru_cache(maxsize=64)
def losses(multiplier: float, rate: float, interval: float) -> Any:
    """Return the distribution of the privacy loss of Gaussian noise under Poisson sampling; a rate of 1 is none."""
    return library().pld.privacy_loss_distribution.from_gaussian_mechanism(
        multiplier, sampling_prob=rate, value_discretization_interval=interval
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dp_accounting from telling that it leaves out orders whose series does not converge: others remain."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
