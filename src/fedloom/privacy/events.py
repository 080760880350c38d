"""Events: what was released in a round, as frozen data, and what Google's dp_accounting makes of each.

An event says nothing about epsilon; :class:`fedloom.privacy.accounting.Ledger` counts events and asks here for their
Rényi curve (or their dp_accounting event). All multipliers are the noise's standard deviation divided by the bound C to
which a client's contribution is clipped.

**Who is protected from what** (the relation of neighbours; a ledger holds events of one relation):

* ``"add-or-remove"``: whether a client took part at all. Removing one changes the sum by at most C.
* ``"replace"``: a client's data is exchanged for any other. That changes the sum by up to 2 C, so a multiplier z counts
  as z / 2. dp_accounting's ``SampledWithoutReplacementDpEvent`` knows this relation only, and takes its multiplier
  relative to the sensitivity of what is released (the docstrings of ``_compute_rdp_sample_wor_gaussian`` in dp_accounting
  0.6, after Wang, Balle, Kasiviswanathan 2019, Theorem 27): it is given z / 2 here. Local noise promises this, too.
* ``"zero-out"``: a client's contribution is replaced by zeros (Kairouz et al. 2021, Definition 1.1). The number of
  clients stays known; the sum changes by at most C.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from fedloom.errors import DataError, UsageError, check_known
from fedloom.privacy import google
from fedloom.privacy.google import Curve

SCHEMES = ("all", "poisson", "uniform")


@dataclass(frozen=True)
class Sampling:
    """How the clients (or examples) of a round are chosen.

    Attributes:
        scheme: ``"poisson"``: each by its own coin; ``"uniform"``: so many, without replacement; ``"all"``: everybody, or
            anybody's choice: nothing is gained from not knowing who took part.
        rate: For ``"poisson"``: the chance of each, in (0, 1].
        count: For ``"uniform"``: how many are chosen.
        population: For ``"uniform"``: of how many.
    """

    scheme: str = "all"
    rate: float = 1.0
    count: int = 0
    population: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown scheme or numbers out of range."""
        check_known("sampling scheme for accounting", [self.scheme], SCHEMES)
        if not 0 < self.rate <= 1:
            raise UsageError(f"the sampling rate is {self.rate:g}: a share in (0, 1] is expected", found=self.rate)
        if self.scheme == "uniform" and not 1 <= self.count <= self.population:
            raise UsageError(f"sampling {self.count} of {self.population}: 1 to {self.population} can be chosen")

    @property
    def share(self) -> float:
        """The chance of each to be chosen, as far as nobody knows who was."""
        return {"all": 1.0, "poisson": self.rate, "uniform": self.count / max(1, self.population)}[self.scheme]


@dataclass(frozen=True)
class Release:
    """A sum of clipped contributions was released with Gaussian noise.

    Attributes:
        multiplier: Standard deviation of the noise on the sum / C, >= 0; 0 gives an epsilon of infinity.
        sampling: How those who contributed were chosen.
    """

    multiplier: float
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Raise UsageError for a negative multiplier."""
        _not_negative("noise multiplier", self.multiplier)

    @property
    def relation(self) -> str:
        """The relation of neighbours that it is accounted for."""
        return "replace" if self.sampling.scheme == "uniform" else "add-or-remove"

    @property
    def rho(self) -> float | None:
        """Its zero-concentrated DP where that is all there is to say, None where sampling amplifies."""
        return _rho(self._relative) if self.sampling.share == 1 or self.multiplier == 0 else None

    @property
    def _relative(self) -> float:
        """The multiplier relative to the sensitivity of the relation."""
        return self.multiplier / 2 if self.relation == "replace" else self.multiplier

    def dp_event(self) -> Any:
        """Return dp_accounting's event."""
        dp = google.library()
        gaussian, s = dp.GaussianDpEvent(self._relative), self.sampling
        if s.scheme == "poisson":
            return dp.PoissonSampledDpEvent(s.rate, gaussian)
        if s.scheme == "uniform":
            return dp.SampledWithoutReplacementDpEvent(s.population, s.count, gaussian)
        return gaussian

    def curve(self, orders: tuple[float, ...]) -> Curve:
        """Return its Rényi DP at ``orders``, float64 (orders,), from dp_accounting."""
        return google.curve(self.dp_event(), self.relation == "replace", orders)


@dataclass(frozen=True)
class Local:
    """Clients put Gaussian noise on what they send, each for itself; nobody else needs to be trusted.

    A client is told apart by its own noise alone, from any other data that it could have had (2 C); every time that it
    takes part costs it again, and others' turns cost it nothing. So it needs to be told who took part.

    Attributes:
        multiplier: Standard deviation of the noise / C, >= 0.
    """

    multiplier: float
    relation: ClassVar[str] = "replace"

    def __post_init__(self) -> None:
        """Raise UsageError for a negative multiplier."""
        _not_negative("noise multiplier", self.multiplier)

    @property
    def rho(self) -> float:
        """What one turn costs a client, in zero-concentrated DP."""
        return _rho(self.multiplier / 2)


@dataclass(frozen=True)
class TreeStep:
    """A leaf was added to a tree of noisy partial sums (DP-FTRL); see :mod:`fedloom.privacy.tree`.

    Attributes:
        multiplier: Standard deviation of the noise on every node / C, >= 0.
        step: The number of the leaf in its tree, from 1; 1 begins a new tree.
    """

    multiplier: float
    step: int
    relation: ClassVar[str] = "zero-out"

    def __post_init__(self) -> None:
        """Raise UsageError for a negative multiplier or a step below 1."""
        _not_negative("noise multiplier", self.multiplier)
        if self.step < 1:
            raise UsageError(f"step {self.step} of a tree: steps count from 1", found=self.step)

    @property
    def rho(self) -> float:
        """What one node costs a client that is in it once, in zero-concentrated DP."""
        return _rho(self.multiplier)


@dataclass(frozen=True)
class TreeRun:
    """All trees of a run, before it begins: for plans.

    A client that takes part k times in one tree, at least ``gap`` steps apart, is at most ``ceil(2^l / gap)`` times in
    one node of level l, so the squared norm of its contributions to that level is at most ``k min(k, ceil(2^l / gap))
    C^2``; the levels add up. For k = 1 this is dp_accounting's ``SingleEpochTreeAggregationDpEvent`` (Kairouz et al.
    2021, Appendix D), for every tree that the client is in.

    Attributes:
        multiplier: Standard deviation of the noise on every node / C, >= 0.
        steps: The number of leaves of every tree.
        participations: How often a client takes part in one tree at most, >= 1.
        gap: How many steps lie between two of them at least, >= 1.
    """

    multiplier: float
    steps: tuple[int, ...]
    participations: int = 1
    gap: int = 1
    relation: ClassVar[str] = "zero-out"

    def __post_init__(self) -> None:
        """Raise UsageError for numbers out of range."""
        _not_negative("noise multiplier", self.multiplier)
        if min((*self.steps, self.participations, self.gap)) < 1:
            raise UsageError("a tree needs at least one step, one participation and a gap of one step")

    @property
    def rho(self) -> float:
        """The whole run's zero-concentrated DP."""
        return _rho(self.multiplier) * sum(self._squared(steps) for steps in self.steps)

    def _squared(self, steps: int) -> float:
        times = min(self.participations, math.ceil(steps / self.gap))
        return sum(times * min(times, math.ceil((1 << level) / self.gap)) for level in range(steps.bit_length()))


@dataclass(frozen=True)
class Discrete:
    """A sum of integer vectors was released with integer noise, in shares by the clients; all in units of the grid.

    Discrete Gaussian: Kairouz, Liu, Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated Learning
    with Secure Aggregation", Theorem 1 and Proposition 14: a sum of discrete Gaussians is no discrete Gaussian;
    ``tau = 10 sum_(k=1)^(n-1) exp(-2 pi^2 sigma^2 k / (k + 1))`` bounds what that costs. Skellam: Agarwal, Kairouz, Liu
    2021, Theorem 3.1, for whole orders. dp_accounting knows no sampling for either: none is claimed.

    Attributes:
        noise: ``"discrete-gaussian"`` or ``"skellam"``.
        l2: The longest contribution in L2 norm.
        l1: The longest contribution in L1 norm.
        variance: The variance of one share of noise.
        shares: How many shares of noise are in the sum: the clients that really contributed.
        size: The length of the vectors.
    """

    noise: str
    l2: float
    l1: float
    variance: float
    shares: int
    size: int
    relation: ClassVar[str] = "zero-out"
    rho: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown kind of noise or no share."""
        check_known("integer noise", [self.noise], ("discrete-gaussian", "skellam"))
        if self.shares < 1:
            raise UsageError("a sum of no clients has no noise: nothing may be released")

    def curve(self, orders: tuple[float, ...]) -> Curve:
        """Return its Rényi DP at ``orders``, float64 (orders,)."""
        total, a = self.variance * self.shares, np.asarray(orders)
        if total == 0:
            return np.full(len(orders), np.inf)
        if self.noise == "skellam":
            # (order - 1) times the divergence is convex in the order: between whole orders a line is above it.
            low = np.floor(a)
            return np.asarray(
                ((low + 1 - a) * (low - 1) * self._skellam(low) + (a - low) * low * self._skellam(low + 1)) / (a - 1)
            )
        l2, l1, root, tau = self.l2 / math.sqrt(total), self.l1 / math.sqrt(total), math.sqrt(self.size), self._tau()
        either = a / 2 * min(l2**2 + 2 * l1 * tau + tau**2 * self.size, (l2 + root * tau) ** 2)
        return np.minimum(a / 2 * l2**2 + tau * self.size, either)

    def _skellam(self, order: Curve) -> Curve:
        """The Rényi DP of Skellam noise at whole orders."""
        total = self.variance * self.shares
        more = ((2 * order - 1) * self.l2**2 + 6 * self.l1) / (4 * total**2)
        return np.asarray(order * self.l2**2 / (2 * total) + np.minimum(more, 1.5 * self.l1 / total))

    def _tau(self) -> float:
        k = np.arange(1, self.shares)
        return float(10 * np.exp(-2 * math.pi**2 * self.variance * k / (k + 1)).sum())


Event: TypeAlias = Release | Local | TreeStep | TreeRun | Discrete
_KINDS: dict[str, type[Event]] = {
    "release": Release,
    "local": Local,
    "tree-step": TreeStep,
    "tree-run": TreeRun,
    "discrete": Discrete,
}


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as JSON-able data."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"kind": kind, **asdict(event)}


def from_json(data: dict[str, Any]) -> Event:
    """Make the event that :func:`to_json` wrote.

    Raises:
        DataError: It is none.
    """
    values = {key: value for key, value in data.items() if key != "kind"}
    try:
        if "sampling" in values:
            values["sampling"] = Sampling(**values["sampling"])
        if "steps" in values:
            values["steps"] = tuple(values["steps"])
        return _KINDS[data["kind"]](**values)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"an event of the privacy ledger is damaged ({error}): go on from another checkpoint"
        ) from error


def _rho(multiplier: float) -> float:
    """Return the zero-concentrated DP of the Gaussian mechanism: 1 / (2 z^2) (Bun, Steinke 2016)."""
    return math.inf if multiplier == 0 else 0.5 / multiplier**2


def _not_negative(what: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise UsageError(f"the {what} is {value:g}: a number from 0 is expected", found=value)
