"""Accounting: epsilon, from what really happened.

A :class:`Ledger` counts events (:mod:`fedloom.privacy.events`) and composes them with Google's dp_accounting: ``"rdp"``
adds up Rényi curves (Mironov 2017), ``"pld"`` convolves the distributions of the privacy loss (Koskela et al. 2020,
Doroshenko et al. 2022), which is tighter and takes longer. Epsilon after every round costs little: what was composed is
kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedloom.errors import DataError, UsageError, check_known
from fedloom.privacy import google
from fedloom.privacy.events import (
    Discrete,
    Event,
    Local,
    Release,
    TreeRun,
    TreeStep,
    from_json,
    to_json,
)
from fedloom.privacy.google import Curve

ACCOUNTANTS = ("rdp", "pld")
INTERVAL = 1e-3
"""The grid of privacy losses for "pld": rounding to it only ever makes epsilon larger, by less than 0.001 as a rule."""


class Ledger:
    """What was released so far, and what it cost.

    Args:
        accountant: ``"rdp"`` or ``"pld"``.
        interval: For ``"pld"``: the distance of the losses that are told apart.

    Example:
        >>> from fedloom.privacy.events import Release, Sampling
        >>> ledger = Ledger()
        >>> ledger.record(Release(1.0, Sampling("poisson", rate=0.01)), times=100)
        >>> round(ledger.epsilon(1e-5), 2)
        1.21
    """

    def __init__(self, accountant: str = "rdp", interval: float = INTERVAL) -> None:
        check_known("accountant", [accountant], ACCOUNTANTS)
        self.accountant = accountant
        self.interval = interval
        self.counts: dict[Event, int] = {}
        self.relation = ""
        self._everybody = 0.0  # zero-concentrated DP that all clients paid
        self._clients: dict[int, float] = {}  # what single clients paid beyond that
        self._leaves: list[list[int]] = []  # who was in which leaf of the tree that grows
        self._curve: Curve | None = None
        self._losses: Any = None

    def record(self, event: Event, clients: Iterable[int] | None = None, times: int = 1) -> None:
        """Take note of an event.

        Args:
            event: What happened.
            clients: Who contributed; needed for ``Local`` and ``TreeStep``, which cost only them.
            times: How often it happened, >= 0.

        Raises:
            UsageError: The event does not go with those before, or lacks its clients.
            MissingDependency: dp_accounting is not installed.
        """
        if self.relation not in ("", event.relation):
            raise UsageError(f"one ledger cannot hold both '{self.relation}' and '{event.relation}': keep two")
        if self.accountant == "pld" and event.rho is None and not _poisson(event):
            raise UsageError(
                "the accountant 'pld' knows Gaussian noise with Poisson sampling or none: take 'rdp' for "
                "sampling without replacement and for integer noise"
            )
        if isinstance(event, Local | TreeStep) and clients is None:
            raise UsageError(f"{type(event).__name__} costs those who took part: say which clients")
        if times < 0 or (isinstance(event, TreeStep) and times != 1):
            raise UsageError(f"an event cannot happen {times} times here: steps of a tree come one by one")
        self.relation = event.relation
        if not times:
            return
        if isinstance(event, TreeStep):
            self._grow(event, clients or ())
        elif isinstance(event, Local):
            self._charge(clients or (), event.rho * times)
        else:
            self._compose(event, times)
            self.counts[event] = self.counts.get(event, 0) + times

    def epsilon(self, delta: float) -> float:
        """Return epsilon at ``delta`` of all that was recorded, for the client that paid most; 0 when nothing was.

        Raises:
            UsageError: ``delta`` is not between 0 and 1.
        """
        if not 0 < delta < 1:
            raise UsageError(f"delta is {delta:g}: a number between 0 and 1 is expected, such as 1e-5", found=delta)
        rho = self._everybody + max(self._clients.values(), default=0.0)
        if rho == 0 and self._curve is None and self._losses is None:
            return 0.0
        if math.isinf(rho):
            return math.inf
        return self._epsilon_rdp(rho, delta) if self.accountant == "rdp" else self._epsilon_pld(rho, delta)

    def state(self) -> dict[str, Any]:
        """Return the ledger as JSON-able data, see :meth:`restore`."""
        return {
            "accountant": self.accountant,
            "interval": self.interval,
            "relation": self.relation,
            "events": [[to_json(event), count] for event, count in self.counts.items()],
            "clients": [[client, _number(rho)] for client, rho in self._clients.items()],
            "leaves": [list(leaf) for leaf in self._leaves],
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Ledger:
        """Make the ledger that :meth:`state` described.

        Raises:
            DataError: The state is damaged.
        """
        try:
            ledger = cls(state["accountant"], float(state["interval"]))
            relation = str(state["relation"])
            events = [(from_json(event), int(count)) for event, count in state["events"]]
            ledger._clients = {int(client): float(rho) for client, rho in state["clients"]}
            ledger._leaves = [[int(client) for client in leaf] for leaf in state["leaves"]]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the privacy ledger is damaged ({error}): go on from another checkpoint") from error
        for event, count in events:
            ledger.record(event, times=count)
        ledger.relation = relation
        return ledger

    def _charge(self, clients: Iterable[int], rho: float) -> None:
        for client in clients:
            self._clients[client] = self._clients.get(client, 0.0) + rho

    def _grow(self, event: TreeStep, clients: Iterable[int]) -> None:
        """Add a leaf, and charge the nodes that it completes: those that are in it k times pay k^2 times."""
        if event.step == 1:
            self._leaves = []
        if event.step != len(self._leaves) + 1:
            raise UsageError(
                f"step {event.step} of a tree after step {len(self._leaves)}: record every step, empty ones too",
                expected=len(self._leaves) + 1,
                found=event.step,
            )
        self._leaves.append([int(client) for client in clients])
        level = 0
        while event.step % (1 << level) == 0:
            under = [client for leaf in self._leaves[-(1 << level) :] for client in leaf]
            names, times = np.unique(np.asarray(under, np.int64), return_counts=True)
            for client, k in zip(names.tolist(), times.tolist(), strict=True):
                self._clients[client] = self._clients.get(client, 0.0) + k * k * event.rho
            level += 1

    def _compose(self, event: Release | Discrete | TreeRun, times: int) -> None:
        if event.rho is not None or isinstance(event, TreeRun):
            self._everybody += (event.rho or 0.0) * times
        elif self.accountant == "pld" and isinstance(event, Release):
            one = google.losses(event.multiplier, event.sampling.rate, self.interval)
            more = one if times == 1 else one.self_compose(times)
            self._losses = more if self._losses is None else self._losses.compose(more)
        else:
            curve = event.curve(google.orders()) * times
            self._curve = curve if self._curve is None else self._curve + curve

    def _epsilon_rdp(self, rho: float, delta: float) -> float:
        orders = google.orders()
        curve = rho * np.asarray(orders)
        total = curve if self._curve is None else curve + self._curve
        return float(google.library().rdp.compute_epsilon(orders, total, delta)[0])

    def _epsilon_pld(self, rho: float, delta: float) -> float:
        total = self._losses
        if rho:
            gaussian = google.losses(math.sqrt(0.5 / rho), 1.0, self.interval)
            total = gaussian if total is None else total.compose(gaussian)
        return float(total.get_epsilon_for_delta(delta))


def _number(value: float) -> float | str:
    """Return what JSON can hold: it has no infinity."""
    return value if math.isfinite(value) else str(value)


def _poisson(event: Event) -> bool:
    return isinstance(event, Release) and event.sampling.scheme == "poisson"
