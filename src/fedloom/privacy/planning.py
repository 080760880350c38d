"""Plans: what a run will cost, and how much noise it needs, before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fedloom.errors import UsageError
from fedloom.privacy import google
from fedloom.privacy.accounting import Ledger
from fedloom.privacy.events import Event, Local, Release, TreeStep

_TOLERANCE = 1e-4


def plan(event: Event, rounds: int, delta: float, accountant: str = "rdp") -> float:
    """Return the epsilon of ``rounds`` times the same event, before any of it happens.

    A ``Local`` event stands for one client's turns: ``rounds`` is how many it has at most. A ``TreeRun`` is a whole run:
    ``rounds`` is 1.

    Raises:
        UsageError: The event cannot be planned, or a number is out of range.

    Example:
        >>> from fedloom.privacy.events import Release
        >>> round(plan(Release(5.0), rounds=1, delta=1e-5), 2)
        0.79
    """
    if isinstance(event, TreeStep):
        raise UsageError("a step of a tree is no run: plan with TreeNoise.run(rounds, participations, gap)")
    ledger = Ledger(accountant)
    ledger.record(event, [0] if isinstance(event, Local) else None, times=rounds)
    return ledger.epsilon(delta)


def noise_for(
    target_epsilon: float,
    delta: float,
    make: Callable[[float], Event],
    rounds: int = 1,
    accountant: str = "rdp",
) -> float:
    """Find the least noise with which a run stays within ``target_epsilon``, by dp_accounting's calibration.

    Args:
        target_epsilon: What the run may cost, > 0.
        delta: At which delta.
        make: ``noise multiplier -> the event of a round``.
        rounds: As in :func:`plan`.
        accountant: ``"rdp"`` or ``"pld"``.

    Returns:
        The noise multiplier, at most 1e-4 above the least one; the plan with it is never above ``target_epsilon``.

    Raises:
        UsageError: No noise multiplier from 0.05 to 2^30 fits.

    Example:
        >>> from fedloom.privacy.events import Release
        >>> z = noise_for(2.0, 1e-5, Release, rounds=10)
        >>> plan(Release(z), 10, 1e-5) <= 2.0 < plan(Release(z - 1e-3), 10, 1e-5)
        True
    """
    if not 0 < target_epsilon < math.inf:
        raise UsageError(f"the target epsilon is {target_epsilon:g}: a number above 0 is expected, such as 8")
    dp = google.library()
    low, guess = 0.05, 1.0
    if accountant == "pld":  # losses far too large take gigabytes: begin near the noise that is enough for "rdp"
        near = noise_for(target_epsilon, delta, make, rounds)
        low, guess = 0.5 * near, 1.02 * near
    try:
        return float(
            dp.calibrate_dp_mechanism(
                lambda: _Planned(rounds, accountant),
                make,
                target_epsilon,
                delta,
                dp.mechanism_calibration.LowerEndpointAndGuess(low, guess),
                tol=_TOLERANCE,
            )
        )
    except dp.mechanism_calibration.NoBracketIntervalFoundError:
        raise UsageError(
            f"no noise multiplier above {low:.3g} gives an epsilon of {target_epsilon:g}: noise so small promises nothing",
            found=target_epsilon,
        ) from None


class _Planned:
    """What dp_accounting's calibration asks of an accountant, answered by :func:`plan`."""

    def __init__(self, rounds: int, accountant: str) -> None:
        self.rounds = rounds
        self.accountant = accountant
        self.ledger = google.library().NoOpDpEvent()
        self.event: Event = Release(0.0)

    def compose(self, event: Event) -> _Planned:
        self.event = event
        return self

    def get_epsilon(self, delta: float) -> float:
        return min(plan(self.event, self.rounds, delta, self.accountant), 1e6)  # the search cannot go on from infinity


def delta_warnings(delta: float, population: int) -> Iterator[str]:
    """Yield, in words, what is wrong with a delta for so many clients.

    A mechanism that publishes the data of one client in N is (0, 1/N)-private by the letter, so delta must be well below
    1/N (Dwork, Roth 2014, "The Algorithmic Foundations of Differential Privacy", section 2.3); 1/N^1.1 is McMahan et
    al. 2018's choice.

    Example:
        >>> list(delta_warnings(1e-5, 1000)), len(list(delta_warnings(1e-2, 1000)))
        ([], 1)
    """
    if delta >= 1 / population:
        yield (
            f"delta is {delta:g}, not below 1 / {population} clients: that would allow one client to be published whole; "
            f"take {population**-1.1:.1g} or less"
        )
