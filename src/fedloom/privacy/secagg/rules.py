"""What client and server check and derive in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from fedloom.errors import TrainingError
from fedloom.privacy.secagg import graph
from fedloom.privacy.secagg.messages import Roster
from fedloom.privacy.secagg.settings import Config, Step


@dataclass(frozen=True)
class Circle:
    """Who takes part, once it is known.

    Attributes:
        config: The round's configuration.
        roster: All clients that sent keys.
    """

    config: Config
    roster: Roster

    @cached_property
    def binding(self) -> bytes:
        """SHA-256 of configuration and roster, bound into all later keys and seals."""
        return hashlib.sha256(b"fedloom secagg roster" + self.config.digest + self.roster.content()).digest()

    @cached_property
    def clients(self) -> frozenset[int]:
        """The clients' numbers."""
        return frozenset(self.mask_keys)

    @cached_property
    def mask_keys(self) -> dict[int, bytes]:
        """Each client's public key for masks."""
        return {i: key for i, key, _, _ in self.roster.entries}

    @cached_property
    def order(self) -> list[int]:
        """The clients in their order on the ring."""
        return graph.ring(self.clients, self.binding)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {client: place for place, client in enumerate(self.order)}

    def neighbours(self, client: int) -> frozenset[int]:
        """Return a client's neighbours."""
        return graph.neighbours(self.order, self._places[client], self.config.neighbours)

    def holders(self, client: int) -> frozenset[int]:
        """Return who holds a share of a client's secrets: its neighbours and itself."""
        return self.neighbours(client) | {client}

    def commitment(self, client: int, seed: bytes) -> bytes:
        """Return the hash by which a seed is known; it does not tell anything about 32 random bytes."""
        return hashlib.sha256(b"fedloom secagg seed" + self.binding + client.to_bytes(4, "little") + seed).digest()

    def check_connected(self, alive: Collection[int]) -> None:
        """Check that those in the sum hang together.

        Raises:
            TrainingError: They fall apart; the sum of each group would be seen.
        """
        if not graph.connected(self.order, self.config.neighbours, alive):
            raise TrainingError(
                f"secure aggregation, round {self.config.round}: the clients that are left fall apart into groups whose "
                f"sums would be seen; nothing is opened, repeat the round",
                round=self.config.round,
            )


def check_enough(config: Config, left: Collection[object], step: Step) -> None:
    """Check that enough clients are left after a step.

    Raises:
        TrainingError: They are fewer than the minimum.
    """
    if len(left) < config.minimum:
        raise TrainingError(
            f"secure aggregation, round {config.round}: {len(left)} of {config.clients} clients are left after step "
            f"'{step.label}', at least {config.minimum} are needed; nothing is opened, repeat the round",
            round=config.round,
            found=len(left),
            expected=config.minimum,
        )


def check_holders(config: Config, client: int, left: Collection[object], step: Step) -> None:
    """Check that the holders that are left can give a client's secret back.

    Raises:
        TrainingError: They are fewer than the threshold.
    """
    if len(left) < config.threshold:
        raise TrainingError(
            f"secure aggregation, round {config.round}: after step '{step.label}' {len(left)} clients are left that hold "
            f"a share of client {client}'s secrets, {config.threshold} are needed; nothing is opened, repeat the round",
            round=config.round,
            client=client,
            found=len(left),
            expected=config.threshold,
        )
