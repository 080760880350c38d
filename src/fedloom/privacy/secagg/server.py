"""The server's part in one round of secure aggregation: messages in, messages out.

It adds masked vectors up as they arrive, so it needs the memory of one vector, and takes the masks off the sum at the
end: it expands the seeds of those in the sum, and the masks that those who dropped out shared with them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np

from fedloom.errors import DataError, UsageError
from fedloom.privacy.secagg import field, packing, primitives
from fedloom.privacy.secagg.client import pair_mask_key, self_mask_key
from fedloom.privacy.secagg.envelope import EVERYBODY, Message
from fedloom.privacy.secagg.messages import (
    FROM_CLIENT,
    Advertise,
    Agreed,
    Agreement,
    Delivery,
    Masked,
    Reveal,
    Roster,
    Shares,
    Survivors,
)
from fedloom.privacy.secagg.packing import Integers
from fedloom.privacy.secagg.rules import Circle, check_enough, check_holders
from fedloom.privacy.secagg.settings import Config, Step


class Server:
    """The server of one round.

    In each step :meth:`receive` takes one message of each client, in any order; :meth:`advance` closes the step (who is
    late has dropped out) and returns what to send. After the last step :meth:`finish` returns the sum.

    Args:
        config: What all agreed on.

    Attributes:
        step: The step whose messages are taken now; None after the last.

    Raises:
        MissingDependency: The ``cryptography`` package is not installed.
    """

    def __init__(self, config: Config) -> None:
        primitives.check_installed()
        self.config = config
        self.step: Step | None = Step.ADVERTISE
        self._opened = False
        self._expected: Collection[int] = range(config.clients)
        self._arrived: dict[int, Message] = {}
        self._total: Integers = np.zeros(config.size, dtype=packing.dtype(config.bits))
        self._commitments: dict[int, bytes] = {}
        self._mail: dict[int, dict[int, bytes]] = defaultdict(dict)
        self._alive: tuple[int, ...] = ()
        self._dropped: tuple[int, ...] = ()
        self._shares: dict[int, dict[int, bytes]] = defaultdict(dict)
        """By owner of the secret: the share of each place."""

    @property
    def expected(self) -> frozenset[int]:
        """The clients whose message of this step is still missing."""
        return frozenset(self._expected) - frozenset(self._arrived) if self.step else frozenset()

    @property
    def survivors(self) -> tuple[int, ...]:
        """The clients in the sum, in rising order; known after the step 'mask'."""
        return self._alive

    def receive(self, data: bytes) -> int:
        """Take a client's message; one that is refused changes nothing.

        Returns:
            The client.

        Raises:
            DataError: It is damaged, not of this step and round, was here before, or says what cannot be.
        """
        if self.step is None:
            raise DataError(f"secure aggregation: round {self.config.round} is over; the message came too late")
        message = FROM_CLIENT[self.step].from_bytes(data)
        client = message.client
        if client >= self.config.clients:
            raise DataError(f"secure aggregation: there is no client {client} among {self.config.clients}")
        context = self.config.digest if self.step is Step.ADVERTISE else self._circle.binding
        message.check(self.config, client, self.config.identity(client), context)
        if client in self._arrived:
            raise self._refusal(client, f"a second message in step '{self.step.label}'")
        if client not in self._expected:
            raise self._refusal(client, "dropped out in an earlier step; it takes part again in the next round")
        self._arrived[client] = self._taken(message)
        return client

    def advance(self) -> dict[int, bytes]:
        """Close the step.

        Returns:
            The message for each client that is still there; none after the last step.

        Raises:
            TrainingError: Too few clients are left; the round is lost, and nothing is opened.
            UsageError: The round is over.
        """
        if self.step is None:
            raise UsageError(f"secure aggregation: round {self.config.round} is over")
        step, left = self.step, sorted(self._arrived)
        check_enough(self.config, left, step)
        out = {
            Step.ADVERTISE: self._roster,
            Step.SHARE: self._deliveries,
            Step.MASK: self._survivors,
            Step.AGREE: self._agreement,
            Step.REVEAL: self._nothing,
        }[step](left)
        self._expected, self._arrived = left, {}
        self.step = Step(step + 1) if step < Step.REVEAL else None
        return out

    def finish(self) -> Integers:
        """Take the masks off.

        Returns:
            The sum of the survivors' vectors modulo 2^bits, (size,), uint32 or uint64.

        Raises:
            DataError: A client sent wrong shares.
            TrainingError: Too few shares arrived.
            UsageError: The round is not over, or its sum was taken already.
        """
        if self.step is not None or self._opened:
            raise UsageError("secure aggregation: the sum can be had once, after the last step")
        self._opened = True
        circle, alive = self._circle, set(self._alive)
        for owner in (*self._alive, *self._dropped):
            check_holders(self.config, owner, self._shares[owner], Step.REVEAL)
        for owner in self._alive:
            key = self_mask_key(circle, owner, self._seed(owner))
            primitives.add_mask(self._total, key, -1)
        for owner in self._dropped:
            secret = self._mask_secret(owner)
            for peer in circle.neighbours(owner) & alive:
                key = pair_mask_key(circle, secret, owner, peer)
                primitives.add_mask(self._total, key, -1 if peer < owner else 1)
        return packing.lowest(self._total, self.config.bits)

    def _taken(self, message: Message) -> Message:
        """Check what a message says, keep it, and return what is needed of it later."""
        client = message.client
        if isinstance(message, Shares):
            if tuple(peer for peer, _ in message.entries) != tuple(sorted(self._circle.neighbours(client))):
                raise self._refusal(client, "its shares are not for its neighbours")
            self._commitments[client] = message.commitment
            for peer, cipher in message.entries:
                self._mail[peer][client] = cipher
        elif isinstance(message, Masked):
            try:
                vector = packing.unpack(message.payload, self.config.size, self.config.bits)
            except DataError as error:
                raise self._refusal(client, str(error)) from None
            np.add(self._total, vector, out=self._total)
            return Masked(session=message.session, round=message.round, client=client, payload=b"")
        elif isinstance(message, Agreed):
            if (message.alive, message.dropped) != (self._alive, self._dropped):
                raise self._refusal(client, "it agreed to other sets of clients")
        elif isinstance(message, Reveal):
            self._take_shares(message)
        return message

    def _take_shares(self, message: Reveal) -> None:
        holders, client = self._circle.holders(message.client), message.client
        seeds = tuple(i for i in self._alive if i in holders)
        keys = tuple(i for i in self._dropped if i in holders)
        if (tuple(i for i, _ in message.seeds), tuple(i for i, _ in message.keys)) != (seeds, keys):
            raise self._refusal(client, "its shares are not those that were asked for")
        for owner, share in (*message.seeds, *message.keys):
            if field.valid(share):  # else the owner made it up, not the one who hands it on
                self._shares[owner][client + 1] = share

    def _roster(self, left: list[int]) -> dict[int, bytes]:
        adverts = [m for m in (self._arrived[i] for i in left) if isinstance(m, Advertise)]
        entries = tuple((m.client, m.mask_key, m.share_key, m.seal) for m in adverts)
        roster = Roster(**self._head(), entries=entries).sealed_by(None, self.config.digest)
        self._circle = Circle(self.config, roster)
        return dict.fromkeys(left, roster.to_bytes())

    def _deliveries(self, left: list[int]) -> dict[int, bytes]:
        out = {}
        for client in left:
            entries = tuple((i, cipher) for i, cipher in sorted(self._mail[client].items()))
            check_holders(self.config, client, {client, *self._mail[client]}, Step.SHARE)
            out[client] = self._sealed(Delivery(**self._head(client), entries=entries))
        self._mail.clear()
        return out

    def _survivors(self, left: list[int]) -> dict[int, bytes]:
        alive = set(left)
        for client in self._expected:
            check_holders(self.config, client, self._circle.holders(client) & alive, Step.MASK)
        self._circle.check_connected(alive)
        self._alive, self._dropped = tuple(left), tuple(i for i in self._expected if i not in alive)
        message = Survivors(**self._head(), alive=self._alive, dropped=self._dropped)
        return dict.fromkeys(left, self._sealed(message))

    def _agreement(self, left: list[int]) -> dict[int, bytes]:
        entries = tuple((i, self._arrived[i].seal) for i in left)
        return dict.fromkeys(left, self._sealed(Agreement(**self._head(), entries=entries)))

    def _nothing(self, _: list[int]) -> dict[int, bytes]:
        return {}

    def _seed(self, owner: int) -> bytes:
        seed = self._secret(owner)
        if self._circle.commitment(owner, seed) != self._commitments[owner]:
            raise self._wrong(owner)
        return seed

    def _mask_secret(self, owner: int) -> bytes:
        secret = self._secret(owner)
        if primitives.public_of(secret) != self._circle.mask_keys[owner]:
            raise self._wrong(owner)
        return secret

    def _secret(self, owner: int) -> bytes:
        shares = sorted(self._shares[owner].items())[: self.config.threshold]
        try:
            return field.combine(dict(shares))
        except DataError:
            raise self._wrong(owner) from None

    def _wrong(self, owner: int) -> DataError:
        return self._refusal(owner, "the shares of its secret are wrong: it or a neighbour lied; repeat the round")

    def _head(self, client: int = EVERYBODY) -> dict[str, Any]:
        return {"session": self.config.session, "round": self.config.round, "client": client}

    def _sealed(self, message: Message) -> bytes:
        return message.sealed_by(None, self._circle.binding).to_bytes()

    def _refusal(self, client: int, text: str) -> DataError:
        return DataError(
            f"secure aggregation, round {self.config.round}, client {client}: {text}",
            client=client,
            round=self.config.round,
        )
