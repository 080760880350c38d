"""Parts of the model that stay with the clients: personal layers, BatchNorm, or everything.

:func:`keep_local` turns any algorithm into one whose clients have some numbers of their own:

- A client trains from the global model with its own numbers put in; on its first turn it takes the global ones.
- Its update is zero there, so that no rule for merging, no norm and no distance ever sees them.
- What training made of its own numbers it keeps for its next turn.
- Its own model is the global one with its own numbers put in.

A server without these numbers would have no model to evaluate and none for a newcomer. So clients also report their
numbers, beside the update, and the global model holds their mean over the round's cohort, by the updates' weights. No
client that has had a turn reads it. Where even that is too much to tell, ``share=False`` leaves the global model's
part as it was at the start. Bytes are counted accordingly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedloom.aggregate import StreamingMean
from fedloom.algorithms.base import Algorithm, Broadcast, Kept, Reduce, Settled, State, Visit
from fedloom.records import ClientUpdate, Phase
from fedloom.training.cohort import Trained


def keep_local(algorithm: Algorithm, mask: Tensor, what: str, *, share: bool = True) -> Algorithm:
    """Let every client keep a part of the model to itself.

    Args:
        algorithm: What is done with the rest.
        mask: bool (P,), True where a number stays with the client.
        what: The part's name in clients' states and updates; parts kept one around the other need different ones.
        share: Whether clients report their part, so that the global model holds the mean of it.

    Returns:
        The algorithm; ``algorithm`` itself where the mask is empty.
    """
    index = mask.nonzero().flatten()
    if not len(index):
        return algorithm

    def own(visit: Visit) -> Visit:
        kept = {key: value for key, value in (visit.kept or {}).items() if key != what}
        return replace(visit, broadcast=_with_own(visit.broadcast, visit.kept, index, what), kept=kept or None)

    def broadcast(state: State) -> Broadcast:
        sent = algorithm.broadcast(state)
        return sent if share else replace(sent, unsent=sent.unsent + len(index))

    def phases(visit: Visit) -> tuple[Phase, ...]:
        return algorithm.phases(own(visit))

    def settle(visit: Visit, trained: Trained) -> Settled:
        seen = own(visit)
        settled = algorithm.settle(seen, trained)
        here = index.to(settled.delta.device)
        part = trained.ends[_last(algorithm.phases(seen))].index_select(0, here)
        return replace(
            settled,
            delta=settled.delta.index_fill(0, here, 0.0),
            extra={**settled.extra, what: part} if share else settled.extra,
            kept={**(settled.kept or {}), what: part},
            unsent=settled.unsent + len(index),
        )

    def personal(sent: Broadcast, kept: Kept | None) -> Tensor:
        mine = _with_own(sent, kept, index, what)
        rest = {key: value for key, value in (kept or {}).items() if key != what}
        return mine.vector if algorithm.personal is None else algorithm.personal(mine, rest or None)

    reduce = _reporting(algorithm.reduce, index, what) if share else _leaving(algorithm.reduce, index)
    return replace(
        algorithm,
        reduce=reduce,
        broadcast=broadcast,
        phases=phases,
        settle=settle,
        personal=personal,
        keeps=True,
        beside={**algorithm.beside, what: len(index)} if share else algorithm.beside,
        stays=mask if algorithm.stays is None else mask | algorithm.stays,
    )


def _with_own(sent: Broadcast, kept: Kept | None, index: Tensor, what: str) -> Broadcast:
    if kept is None or what not in kept:
        return sent
    return replace(sent, vector=_put(sent.vector, index, kept[what]))


def _put(vector: Tensor, index: Tensor, part: Tensor) -> Tensor:
    return vector.index_copy(0, index.to(vector.device), part.to(vector.device))


def _last(phases: Sequence[Phase]) -> int:
    """Return the phase at whose end the client's part is final.

    Phases that go on where the one before ended are one piece of work; one with a start of its own makes another model
    (Ditto's).
    """
    starts = (i for i, phase in enumerate(phases) if i and phase.start is not None)
    return next(starts, len(phases)) - 1


def _reporting(reduce: Reduce, index: Tensor, what: str) -> Reduce:
    """Merge the reported parts by their mean, and all else as ``reduce`` does."""

    def reporting(state: State, updates: Iterable[ClientUpdate]) -> tuple[State, Mapping[str, float]]:
        mean = StreamingMean(len(index), state["model"].device)

        def passing() -> Iterator[ClientUpdate]:
            for update in updates:
                mean.add(update.extra[what], update.weight, name=update.client)
                yield replace(update, extra={key: value for key, value in update.extra.items() if key != what})

        after, logged = reduce(state, passing())
        return {**after, "model": _put(after["model"], index, mean.result())}, logged

    return reporting


def _leaving(reduce: Reduce, index: Tensor) -> Reduce:
    """Merge as ``reduce`` does, but leave the global model's part alone."""

    def leaving(state: State, updates: Iterable[ClientUpdate]) -> tuple[State, Mapping[str, float]]:
        after, logged = reduce(state, updates)
        before = state["model"].index_select(0, index.to(state["model"].device))
        return {**after, "model": _put(after["model"], index, before)}, logged

    return leaving


def everything(size: int) -> Tensor:
    """Return the mask of a whole model of ``size`` numbers."""
    return torch.ones(size, dtype=torch.bool)
