"""Engine and gathering of a run whose updates are sealed: who is ready, and then their sum."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.algorithms.sealed import SecureSum
from fedloom.clients import Order, Result
from fedloom.deploy.sealing.begun import Begun
from fedloom.deploy.sealing.exchange import Exchange
from fedloom.deploy.sealing.legs import NONCE_SIZE, broadcast_of, session_of
from fedloom.deploy.sealing.transcript import Transcript
from fedloom.deploy.serving.desk import Desk, opened
from fedloom.deploy.serving.roster import Roster
from fedloom.engines import Closing
from fedloom.privacy.secagg import Config, plan
from fedloom.records import ClientFailure, ClientUpdate, Gathered

FOLDER = "secure"
"""Where the journals of sums are, in the folder of a run, until the round's checkpoint is there."""


@dataclass(frozen=True)
class Sums:
    """The secure sums of a run.

    Attributes:
        run: The run's name.
        folder: Of the run.
        desk: Where tasks go out, and answers come in.
        roster: Who takes part.
        sum: What is done with the sum.
        size: The length of the model, P.
        saved: Returns the number of the last checkpoint.
        say: Told what people should know.
    """

    run: str
    folder: Path
    desk: Desk
    roster: Roster
    sum: SecureSum
    size: int
    saved: Callable[[], int]
    say: Callable[[str], None]

    def path(self, number: int) -> Path:
        """Return the journal of a round."""
        return self.folder / FOLDER / f"round-{number:08d}.journal"

    def tidy(self) -> None:
        """Delete the journals of rounds that a checkpoint has."""
        saved = self.saved()
        for path in (self.folder / FOLDER).glob("round-*.journal"):
            if path.stem.removeprefix("round-").isdecimal() and int(path.stem.removeprefix("round-")) <= saved:
                path.unlink(missing_ok=True)


@dataclass
class _Round:
    """A round on its way."""

    number: int
    results: dict[int, Result] = field(default_factory=dict)
    broadcast: bytes = b""
    before: Transcript | None = None


class Sealed(Closing):
    """Asks clients to get ready, and makes the sum of those that are.

    Args:
        sums: What it needs.
    """

    def __init__(self, sums: Sums) -> None:
        self._sums, self._round = sums, _Round(0)

    def __call__(self, order: Order) -> Iterator[Result]:
        """Ask the clients of an order; yields whether they are ready, in its order, each as soon as it is known."""
        sums = self._sums
        sums.tidy()
        before = Transcript.resume(sums.path(order.round), sums.size)
        if before is not None and set(before.begun.results) == set(order.clients):
            sums.say(f"round {order.round}: going on with a secure sum of {len(before.begun.cohort)} clients")
            results = dict(before.begun.results)
            self._round = _Round(order.round, results, before=before)
            yield from (results[client] for client in order.clients)
            return
        self._round = now = _Round(order.round)
        with opened(sums.desk, order):
            now.broadcast = broadcast_of(sums.desk.asked(order))
            for client in order.clients:
                now.results[client] = sums.desk.result(client)
                yield now.results[client]

    def gather(self, number: int, updates: Iterator[ClientUpdate], _: Sequence[ClientFailure]) -> Gathered:
        """Make the sum of a round; ``Federation.gather``.

        Raises:
            QuorumError: Too few clients were ready.
            StorageError: The disk is full.
        """
        deque(updates, 0)  # clients get ready
        now, sums = self._round, self._sums
        if now.number != number or not (cohort := _ready(now)):
            return Gathered(())
        sums.sum.check(number, len(now.results), len(cohort))
        transcript = now.before or self._begun(now, cohort)
        now.before = None
        made = Exchange(transcript, sums.roster, sums.desk.patience, sums.desk.changed, sums.say)
        sums.desk.begin_sum(made)
        total = made.run()
        updated = () if total is None else (sums.sum.seal.open(total, number),)
        refused = f"round {number}: {transcript.refused}" if total is None else ""
        return Gathered(updated, transcript.up, transcript.down, made.lost(), refused)

    def close(self) -> None:
        """Delete what a run that is over needs no longer."""
        if self._round.before is not None:
            self._round.before.end()
        self._sums.tidy()

    def _begun(self, now: _Round, cohort: tuple[int, ...]) -> Transcript:
        """Begin a sum: its session is new, and bound to what the round sent out."""
        sums, n = self._sums, len(cohort)
        seal, dropped, nonce = sums.sum.seal, sums.sum.dropped, secrets.token_bytes(NONCE_SIZE)
        graph = plan(n, dropped)
        least = plan(len(now.results), dropped).minimum  # of all that were asked, as in a simulation
        config = Config(
            session_of(sums.run, now.number, nonce, now.broadcast),
            now.number,
            n,
            seal.length,
            seal.bits,
            graph.neighbours,
            graph.threshold,
            least,
            tuple(bytes.fromhex(sums.roster.member(number).key) for number in cohort),
        )
        return Transcript.begin(sums.path(now.number), Begun(config, nonce, cohort, now.results))


def _ready(now: _Round) -> tuple[int, ...]:
    return tuple(client for client, result in now.results.items() if isinstance(result, ClientUpdate))
