"""Compressed updates: any algorithm, with codecs between the server and its clients.

A client sends ``encode(delta + residual)``, and the server reads ``decode`` of it. With error feedback the client keeps
what the codec lost, ``residual <- delta + residual - decoded``, and sends it later: a codec that is wrong in one direction
(top-k, signs) is wrong in none over time (S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error Feedback Fixes
SignSGD and other Gradient Compression Schemes", ICML 2019, algorithm 2; F. Seide et al., Interspeech 2014). Codecs that
are right on average do not need it.

On the way down the model itself is encoded, not a difference: a client that was not asked for a while does not know the
model of the last round. What an algorithm sends beside the update (SCAFFOLD's variates, reported BatchNorm statistics)
is sent as it is. Traffic is the length of the encoded bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from fedloom.algorithms.base import Algorithm, Broadcast, Kept, Settled, State, Visit
from fedloom.compress import Codec
from fedloom.records import ClientUpdate, Phase
from fedloom.rng import stream
from fedloom.training.cohort import Trained

RESIDUAL = "residual"
"""What error feedback keeps, in a client's state."""

SENT = "sent"
"""How many models were encoded, in the server's state: each has a chance of its own."""


def compressed(
    algorithm: Algorithm, up: Codec | None, down: Codec | None = None, *, feedback: bool | None = None, seed: int = 0
) -> Algorithm:
    """Put codecs between the server and its clients.

    Args:
        algorithm: What is computed.
        up: Encodes what clients send; None to leave it as it is.
        down: Encodes the model that they are sent; None likewise.
        feedback: Whether clients keep what ``up`` lost; None where its errors have a direction (``not up.unbiased``).
        seed: Of the chance in ``down``.

    Returns:
        The algorithm; ``algorithm`` itself where there is no codec.
    """
    made = algorithm if down is None else _downward(algorithm, down, seed)
    return made if up is None else _upward(made, up, not up.unbiased if feedback is None else feedback)


def _upward(algorithm: Algorithm, codec: Codec, feedback: bool) -> Algorithm:
    shared = None if algorithm.stays is None else (~algorithm.stays).nonzero().flatten()

    def settle(visit: Visit, trained: Trained) -> Settled:
        settled = algorithm.settle(_without(visit, RESIDUAL), trained)
        due = _taken(settled.delta, shared)
        if feedback and visit.kept is not None and RESIDUAL in visit.kept:
            due = due + visit.kept[RESIDUAL]
        data = codec.encode(due.cpu(), stream(visit.seed, "compress"))
        sent = codec.decode(data, size=due.numel()).to(due.device)
        before = visit.kept if settled.kept is None else settled.kept
        kept = {**(before or {}), RESIDUAL: due - sent} if feedback else settled.kept
        return replace(settled, delta=_put(sent, shared, settled.delta), kept=kept, encoded=len(data), data=data)

    def personal(sent: Broadcast, kept: Kept | None) -> Tensor:
        assert algorithm.personal is not None
        return algorithm.personal(sent, {k: v for k, v in (kept or {}).items() if k != RESIDUAL} or None)

    def phases(visit: Visit) -> tuple[Phase, ...]:
        return algorithm.phases(_without(visit, RESIDUAL))

    @cache
    def typical(size: int) -> int:
        """Expect the bytes that normal numbers would have: the clock wants them before there is an update."""
        return len(codec.encode(torch.from_numpy(stream(0, "typical").normal(size=size).astype("float32")), stream(0)))

    def upload(sent: Broadcast) -> int:
        size = sent.vector.numel() if shared is None else len(shared)
        beside = algorithm.upload(replace(sent, encoded=None)) - 4 * size
        return max(beside, 0) + typical(size)

    return replace(
        algorithm,
        settle=settle,
        phases=phases,
        upload=upload,
        personal=None if algorithm.personal is None else personal,
        keeps=algorithm.keeps or feedback,
    )


def _downward(algorithm: Algorithm, codec: Codec, seed: int) -> Algorithm:
    def init(w0: Tensor) -> State:
        return {**algorithm.init(w0), SENT: torch.tensor(0)}

    def broadcast(state: State) -> Broadcast:
        sent = algorithm.broadcast(_rest(state))
        data = codec.encode(sent.vector.cpu(), stream(seed, "compress", int(state[SENT])))
        vector = codec.decode(data, size=sent.vector.numel()).to(sent.vector.device)
        return replace(sent, vector=vector, encoded=len(data), data=data)

    def reduce(state: State, updates: Iterable[ClientUpdate]) -> tuple[State, Mapping[str, float]]:
        after, logged = algorithm.reduce(_rest(state), updates)
        return {**after, SENT: state[SENT] + 1}, logged

    def upload(sent: Broadcast) -> int:
        return algorithm.upload(replace(sent, encoded=None))

    return replace(algorithm, init=init, broadcast=broadcast, reduce=reduce, upload=upload)


def _rest(state: State) -> State:
    return {key: value for key, value in state.items() if key != SENT}


def _without(visit: Visit, what: str) -> Visit:
    if visit.kept is None:
        return visit
    return replace(visit, kept={key: value for key, value in visit.kept.items() if key != what} or None)


def _taken(delta: Tensor, shared: Tensor | None) -> Tensor:
    return delta if shared is None else delta.index_select(0, shared.to(delta.device))


def _put(sent: Tensor, shared: Tensor | None, delta: Tensor) -> Tensor:
    return sent if shared is None else torch.zeros_like(delta).index_copy(0, shared.to(delta.device), sent)
