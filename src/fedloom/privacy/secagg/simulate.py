"""A whole round of secure aggregation in one process: real messages as bytes, any pattern of drop-outs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.privacy.secagg.client import Client
from fedloom.privacy.secagg.packing import Integers
from fedloom.privacy.secagg.primitives import Draw
from fedloom.privacy.secagg.server import Server
from fedloom.privacy.secagg.settings import Config, Step


@dataclass(frozen=True)
class Outcome:
    """What came of a round.

    Attributes:
        sum: The sum of the survivors' vectors modulo 2^bits, (size,), uint32 or uint64.
        survivors: The clients in it, in rising order.
        bytes_up: What each client sent, in bytes.
        bytes_down: What each client was sent, in bytes.
    """

    sum: Integers
    survivors: tuple[int, ...]
    bytes_up: tuple[int, ...]
    bytes_down: tuple[int, ...]


def simulate(
    vectors: Sequence[Integers],
    drops: Mapping[int, Step],
    config: Config,
    *,
    identities: Sequence[bytes] = (),
    chance: np.random.Generator | None = None,
) -> Outcome:
    """Run a round.

    Args:
        vectors: Each client's numbers below 2^bits, (size,), uint32 or uint64; a client that dropped out before the
            step 'mask' is not asked for its own.
        drops: Which clients drop out, and the first step in which they send nothing. A client that drops out after
            'mask' is in the sum.
        config: Of the round.
        identities: Each client's private Ed25519 key, where the configuration names public ones.
        chance: For tests only: the same numbers give the same keys, and then nothing is secret. By default the
            operating system's randomness.

    Raises:
        TrainingError: Too few clients are left; no sum can be had.
        UsageError: A vector does not fit.

    Example:
        >>> config = Config.of(bytes(16), 1, clients=4, size=2, bits=8)
        >>> simulate([np.array([i, 100], dtype=np.uint32) for i in range(4)], {0: Step.MASK}, config).sum
        array([ 6, 44], dtype=uint32)
    """
    draw: Draw = secrets.token_bytes if chance is None else chance.bytes
    keys: Sequence[bytes | None] = identities or [None] * config.clients
    clients = {i: Client(config, i, keys[i], draw) for i in range(config.clients)}
    server, up, down = Server(config), [0] * config.clients, [0] * config.clients
    inbox: dict[int, bytes] = dict.fromkeys(clients, b"")
    for step in Step:
        for i, data in inbox.items():
            if drops.get(i, Step.REVEAL + 1) <= step:
                continue
            sent = answer(clients[i], step, data, vectors[i] if step is Step.MASK else None)
            up[i] += len(sent)
            server.receive(sent)
        inbox = server.advance()
        for i, data in inbox.items():
            down[i] += len(data)
    return Outcome(server.finish(), server.survivors, tuple(up), tuple(down))


def answer(client: Client, step: Step, data: bytes, vector: Integers | None = None) -> bytes:
    """Return a client's message of a step.

    Args:
        client: The client.
        step: The step.
        data: What the server sent before it; nothing before the first.
        vector: For the step 'mask'.
    """
    if step is Step.ADVERTISE:
        return client.advertise()
    if step is Step.MASK and vector is not None:
        return client.mask(data, vector)
    return {Step.SHARE: client.share, Step.AGREE: client.agree, Step.REVEAL: client.reveal}[step](data)
