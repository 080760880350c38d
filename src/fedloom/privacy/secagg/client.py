"""A client's part in one round of secure aggregation: messages in, messages out.

It trusts nobody: it checks what it is told in every step, and what does not fit ends its part. Its vector leaves it
under masks only. Per peer it gives away one kind of share, once: that of the seed if the peer is in the sum, that of the
mask key if it is not. With both the server could see the peer's vector.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fedloom.errors import DataError, UsageError
from fedloom.privacy.secagg import field, packing, primitives
from fedloom.privacy.secagg.envelope import EVERYBODY, Message
from fedloom.privacy.secagg.messages import (
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
from fedloom.privacy.secagg.primitives import Draw
from fedloom.privacy.secagg.rules import Circle, check_enough, check_holders
from fedloom.privacy.secagg.settings import Config, Step

M = TypeVar("M", bound=Message)


class Client:
    """One client in one round; its methods are called in this order, each once.

    Args:
        config: What all agreed on.
        index: The client's number, from 0.
        identity: Its private Ed25519 key (32 bytes), where the configuration names public ones.
        draw: Returns random bytes; anything but the default voids all secrecy and is for tests only.

    Raises:
        UsageError: There is no such client, or the identity is not the one in the configuration.
        MissingDependency: The ``cryptography`` package is not installed.
    """

    def __init__(
        self, config: Config, index: int, identity: bytes | None = None, draw: Draw = secrets.token_bytes
    ) -> None:
        primitives.check_installed()
        if not 0 <= index < config.clients:
            raise UsageError(f"secure aggregation: there is no client {index} among {config.clients}")
        primitives.check_identity(identity, config.identity(index), index)
        self.config, self.index = config, index
        self._identity, self._draw = identity, draw
        self._next: Step | None = Step.ADVERTISE
        self._mask_secret, self._share_secret, self._seed = draw(32), draw(32), draw(32)
        self._held: dict[int, tuple[bytes, bytes]] = {}
        """By peer: its share of the peer's seed and of the peer's mask key."""

    def advertise(self) -> bytes:
        """Step 1: return the client's public keys."""
        with self._taking(Step.ADVERTISE):
            keys = [primitives.public_of(secret) for secret in (self._mask_secret, self._share_secret)]
            self._advert = Advertise(**self._head(), mask_key=keys[0], share_key=keys[1]).sealed_by(
                self._identity, self.config.digest
            )
            return self._advert.to_bytes()

    def share(self, data: bytes) -> bytes:
        """Step 2: take the roster, return a share of both secrets for each neighbour.

        Raises:
            DataError: The roster is not what the clients sent.
            TrainingError: Too few clients are in it.
        """
        with self._taking(Step.SHARE):
            roster = self._received(Roster, data, self.config.digest)
            self._check_roster(roster)
            self._circle = Circle(self.config, roster)
            holders = sorted(self._circle.holders(self.index))
            check_holders(self.config, self.index, holders, Step.ADVERTISE)
            places, threshold = [i + 1 for i in holders], self.config.threshold
            seeds = field.split(self._seed, threshold, places, self._draw)
            keys = field.split(self._mask_secret, threshold, places, self._draw)
            self._share_keys = {i: key for i, _, key, _ in roster.entries}
            entries = []
            for peer, seed, key in zip(holders, seeds, keys, strict=True):
                if peer == self.index:
                    self._own = seed
                else:
                    entries.append((peer, self._encrypted(peer, seed + key)))
            commitment = self._circle.commitment(self.index, self._seed)
            return self._sealed(Shares(**self._head(), commitment=commitment, entries=tuple(entries)))

    def mask(self, data: bytes, vector: Integers) -> bytes:
        """Step 3: take the neighbours' shares, return the vector under its masks.

        Args:
            data: The delivery.
            vector: Numbers below 2^bits, (size,), uint32 or uint64; it is not changed.

        Raises:
            DataError: A share was changed, or is not of a neighbour.
            TrainingError: Too few neighbours are left.
            UsageError: The vector has another type, length or larger numbers.
        """
        with self._taking(Step.MASK):
            delivery = self._received(Delivery, data, self._circle.binding, self.index)
            mine = self._circle.neighbours(self.index)
            for peer, cipher in delivery.entries:
                if peer not in mine:
                    raise self._refusal(f"was sent a share of client {peer}, which is no neighbour")
                self._held[peer] = self._decrypted(peer, cipher)
            check_holders(self.config, self.index, {*self._held, self.index}, Step.SHARE)
            masked = self._checked(vector).copy()
            primitives.add_mask(masked, self_mask_key(self._circle, self.index, self._seed), 1)
            for peer in self._held:
                key = pair_mask_key(self._circle, self._mask_secret, self.index, peer)
                primitives.add_mask(masked, key, 1 if self.index < peer else -1)
            return self._sealed(Masked(**self._head(), payload=packing.pack(masked, self.config.bits)))

    def agree(self, data: bytes) -> bytes:
        """Step 4: take the sets of those in the sum and of those that dropped out, return them sealed.

        Raises:
            DataError: The sets contradict each other, or what this client saw.
            TrainingError: Too few clients are in the sum.
        """
        with self._taking(Step.AGREE):
            told = self._received(Survivors, data, self._circle.binding)
            self._check_sets(set(told.alive), set(told.dropped))
            self._agreed = Agreed(**self._head(), alive=told.alive, dropped=told.dropped)
            return self._sealed(self._agreed)

    def reveal(self, data: bytes) -> bytes:
        """Step 5: take everybody's seals of the sets, return one share for each neighbour. The secrets are forgotten.

        Raises:
            DataError: A seal is not that of the same sets.
            TrainingError: Too few clients agreed.
        """
        with self._taking(Step.REVEAL):
            agreement = self._received(Agreement, data, self._circle.binding)
            alive = set(self._agreed.alive)
            for client, seal in agreement.entries:
                if client not in alive:
                    raise self._refusal(f"client {client} agreed, but is not in the sum")
                theirs = Agreed(
                    **{**self._head(), "client": client},
                    alive=self._agreed.alive,
                    dropped=self._agreed.dropped,
                    seal=seal,
                )
                theirs.check(self.config, client, self.config.identity(client), self._circle.binding)
            check_enough(self.config, agreement.entries, Step.AGREE)
            seeds = {peer: seed for peer, (seed, _) in self._held.items() if peer in alive}
            seeds[self.index] = self._own
            keys = {peer: key for peer, (_, key) in self._held.items() if peer not in alive}
            self._forget()
            given = (tuple(sorted(seeds.items())), tuple(sorted(keys.items())))
            return self._sealed(Reveal(**self._head(), seeds=given[0], keys=given[1]))

    @contextmanager
    def _taking(self, step: Step) -> Iterator[None]:
        if self._next != step:
            expects = f"is at step '{self._next.label}'" if self._next else "has ended its part"
            raise self._refusal(f"was asked for step '{step.label}', but {expects}")
        self._next = None  # whatever is refused from here on ends this client's part
        yield
        self._next = Step(step + 1) if step < Step.REVEAL else None

    def _received(self, kind: type[M], data: bytes, context: bytes, client: int = EVERYBODY) -> M:
        message = kind.from_bytes(data)
        message.check(self.config, client, None, context)
        return message

    def _check_roster(self, roster: Roster) -> None:
        advert = self._advert
        if (self.index, advert.mask_key, advert.share_key, advert.seal) not in roster.entries:
            raise self._refusal("is not in the roster with its own keys")
        keys = [key for _, mask, share, _ in roster.entries for key in (mask, share)]
        if len(set(keys)) < len(keys):
            raise self._refusal("found the same key twice in the roster")
        for client, mask, share, seal in roster.entries:
            if client >= self.config.clients:
                raise self._refusal(f"found client {client} in the roster, there are {self.config.clients}")
            theirs = Advertise(**{**self._head(), "client": client}, mask_key=mask, share_key=share, seal=seal)
            theirs.check(self.config, client, self.config.identity(client), self.config.digest)
        check_enough(self.config, roster.entries, Step.ADVERTISE)

    def _check_sets(self, alive: set[int], dropped: set[int]) -> None:
        circle = self._circle
        if alive & dropped:
            raise self._refusal(f"client {min(alive & dropped)} is listed both alive and dead")
        if self.index not in alive:
            raise self._refusal("is not among those in the sum, though it sent its vector")
        if not alive | dropped <= circle.clients:
            raise self._refusal(f"client {min((alive | dropped) - circle.clients)} is listed, but not in the roster")
        if (alive | dropped) & circle.neighbours(self.index) != set(self._held):
            raise self._refusal("the listed neighbours are not those whose shares it was sent")
        check_enough(self.config, alive, Step.MASK)
        check_holders(self.config, self.index, alive & circle.holders(self.index), Step.MASK)
        circle.check_connected(alive)

    def _checked(self, vector: Integers) -> Integers:
        config, kind = self.config, packing.dtype(self.config.bits)
        if vector.dtype != kind or vector.shape != (config.size,):
            raise UsageError(
                f"client {self.index}: expected {config.size} numbers of type {kind}, found an array of shape "
                f"{vector.shape} and type {vector.dtype}",
                client=self.index,
            )
        if int(vector.max()) >> config.bits:
            raise UsageError(f"client {self.index}: a number needs more than {config.bits} bits", client=self.index)
        return vector

    def _encrypted(self, peer: int, plain: bytes) -> bytes:
        about = self._circle.binding
        key = primitives.agree(self._share_secret, self._share_keys[peer], about, "share", self.index, peer)
        return primitives.encrypt(key, plain, about)

    def _decrypted(self, peer: int, cipher: bytes) -> tuple[bytes, bytes]:
        about = self._circle.binding
        key = primitives.agree(self._share_secret, self._share_keys[peer], about, "share", peer, self.index)
        try:
            plain = primitives.decrypt(key, cipher, about)
        except DataError as error:
            raise self._refusal(f"from client {peer}: {error}") from None
        return plain[: field.SHARE_SIZE], plain[field.SHARE_SIZE :]

    def _forget(self) -> None:
        self._held, self._own = {}, b""
        self._mask_secret = self._share_secret = self._seed = b""

    def _head(self) -> dict[str, Any]:
        return {"session": self.config.session, "round": self.config.round, "client": self.index}

    def _sealed(self, message: Message) -> bytes:
        return message.sealed_by(self._identity, self._circle.binding).to_bytes()

    def _refusal(self, text: str) -> DataError:
        return DataError(
            f"secure aggregation, round {self.config.round}, client {self.index}: {text}",
            client=self.index,
            round=self.config.round,
        )


def self_mask_key(circle: Circle, client: int, seed: bytes) -> bytes:
    """Return the key of a client's own mask."""
    return primitives.derive(seed, circle.binding, "own mask", client)


def pair_mask_key(circle: Circle, secret: bytes, client: int, peer: int) -> bytes:
    """Return the key of the mask that ``client``, the owner of ``secret``, shares with a peer."""
    low, high = sorted((client, peer))
    return primitives.agree(secret, circle.mask_keys[peer], circle.binding, "pair mask", low, high)
