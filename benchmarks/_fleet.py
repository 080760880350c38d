"""A crew: many light clients of a federation in one process, each with a key, a folder and a connection of its own.

A client that dies is started again, as a service would do it: its memory is lost, and its folder stays.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # training needs it: loaded once, for all processes

from fedloom.data.sources import load_training
from fedloom.deploy.joining.client import Client, Manners
from fedloom.deploy.seam import Unreachable
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.invitation import Invitation
from fedloom.errors import FedloomError

MANNERS = Manners(wait=20.0, beat=2.0, least=0.1, most=2.0)


class Dead(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@dataclass(frozen=True)
class Crew:
    """Who is in a process.

    Attributes:
        folder: Of the whole fleet.
        invitation: What they join with.
        numbers: The clients' numbers.
    """

    folder: Path
    invitation: str
    numbers: tuple[int, ...]


class Mortal:
    """A channel whose client can die: its calls do not come back, and nobody is told."""

    def __init__(self, channel: Any) -> None:
        self._channel, self._dead = channel, False

    def die(self) -> None:
        """Close the connection without a word."""
        self._dead = True
        self._channel.close()

    def heartbeat(self, doing: str) -> None:
        """See :class:`fedloom.deploy.seam.Channel`; it is called from a thread of its own."""
        self._channel.heartbeat(doing)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the channel that ends the client when it is dead."""

        def call(*given: Any) -> Any:
            try:
                return getattr(self._channel, name)(*given)
            finally:
                if self._dead:
                    raise Dead

        return call


class Seat:
    """One client, in a thread, life after life."""

    def __init__(self, crew: Crew, number: int) -> None:
        self._crew, self.number = crew, number
        self._home = crew.folder / "homes" / str(number)
        self._now: Mortal | None = None
        self._pause = 0.0
        threading.Thread(target=self._lives, daemon=True).start()

    def die(self, pause: float) -> None:
        """Die now, and come back after so many seconds."""
        self._pause = pause
        if self._now is not None:
            self._now.die()

    def _lives(self) -> None:
        while True:
            try:
                return self._life()
            except (Dead, Unreachable):
                time.sleep(0.1 + self._pause)
                self._pause = 0.0
            except FedloomError as error:
                with (self._home / "error.txt").open("a") as log:
                    log.write(f"{error}\n")
                return None

    def _life(self) -> None:
        from fedloom.deploy.carrier.transport_grpc import connect

        crew, name = self._crew, f"c{self.number}"
        data = load_training(crew.folder / "parts" / f"{self.number}.npz")
        keys = Keys.at(self._home / "identity.key")
        channel = connect(Invitation.parse(crew.invitation), keys, name)
        with contextlib.closing(channel):
            self._now = Mortal(channel)
            Client(self._now, name, data, self._home, number=self.number, keys=keys, manners=MANNERS).run()


def man(crew: Crew, orders: Connection) -> None:
    """Run a crew until the process is killed; ``orders`` are ``(number, pause)`` of clients that are to die."""
    torch.set_num_threads(1)
    seats = {number: Seat(crew, number) for number in crew.numbers}
    while True:
        try:
            number, pause = orders.recv()
        except EOFError:
            os._exit(0)
        seats[number].die(pause)
