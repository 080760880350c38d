"""Peers: what a server knows of each node of a fleet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fedloom.deploy.flower.letters import Letter
from fedloom.deploy.protocol.messages import Hello, Task
from fedloom.deploy.seam import Identity

FIRST, LONGEST = 3.0, 30.0
"""Seconds before a node that refused is asked again; they double. Each time costs it a process."""


@dataclass(frozen=True)
class Asked:
    """A question on its way.

    Attributes:
        message: The name that Flower has given to it.
        question: What was asked.
        task: The task in it, if there is one.
        ends: When it is given up, on the monotonic clock.
    """

    message: str
    question: Letter
    task: Task | None
    ends: float


@dataclass
class Peer:
    """One node.

    Attributes:
        node: Flower's name for it.
        here: Whether Flower says that it is there.
        who: Who it is, as it has proven; None before it said so.
        hello: What it said of itself.
        agreed: Whether its owner has agreed.
        knows: The digest of the run's description that it has.
        asked: What it was asked, and has not answered.
        again: Before this moment of the monotonic clock it is not asked.
        said: The last words about it, so that they are not said twice.
    """

    node: int
    here: bool = True
    who: Identity | None = None
    hello: Hello | None = None
    agreed: bool = False
    knows: bytes = b""
    asked: Asked | None = None
    again: float = 0.0
    said: str = ""
    _pause: float = field(default_factory=lambda: FIRST)

    @property
    def title(self) -> str:
        """What people read."""
        return f"node {self.node}" if self.who is None else f"{self.who.name} (node {self.node})"

    @property
    def free(self) -> bool:
        """Whether it can be asked now."""
        return self.here and self.asked is None and time.monotonic() >= self.again

    def rest(self) -> None:
        """Leave it in peace for a while."""
        self.again = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST)

    def leave(self) -> None:
        """Ask it no more."""
        self.again = float("inf")

    def fine(self) -> None:
        """It answered as it should."""
        self.again, self._pause, self.said = 0.0, FIRST, ""
