"""Small federations whose updates are protected on their way, and algorithms whose clients send what a test says."""

from __future__ import annotations

from dataclasses import replace

import torch
from small_federation import CONFIG, Small

from fedloom import rounds
from fedloom.algorithms.base import Algorithm, Broadcast, Settled, Visit
from fedloom.algorithms.fedavg import mean_delta
from fedloom.algorithms.protection import Protection
from fedloom.records import ClientFailure, ClientUpdate
from fedloom.server_opt import sgd

ECHO = Algorithm("echo", mean_delta(sgd()), settle=lambda _, trained: Settled(trained), linear=True)
"""Its clients send the vector that is passed in place of their training."""


def visit(client=0, number=1, kept=None, sent=None, seed=0, size=4, samples=10):
    sent = sent or Broadcast(torch.zeros(size))
    return Visit(client, samples, sent, kept, CONFIG, round=number, seed=seed)


def sent_by(settled, client="client_0", weight=1.0):
    return ClientUpdate(
        client, settled.delta, settled.weight or weight, 1, {}, settled.extra, settled.bytes, settled.kept
    )


def guarded(name="fedavg", options=None, *, fails=lambda number, client: False, small=None, **protection):
    """Return a small federation around which there is a protection; clients fail in rounds where ``fails`` says so."""
    made = Small(name, options, **(small or {}))
    guard = Protection(**protection)
    made.algorithm = guard.around(made.algorithm, made.model)
    made.side = replace(made.side, algorithm=made.algorithm, equal_weights=guard.equal)

    def engine(order):
        for client, result in zip(order.clients, made.side.run(order), strict=True):
            gone = ClientFailure(f"client_{client}", f"client_{client} went away", "dropped")
            yield gone if fails(order.round, client) else result

    made.federation = replace(
        made.federation,
        algorithm=made.algorithm,
        engine=engine,
        store=made.store if made.algorithm.keeps else None,
        gather=guard.gather(made.algorithm, made.model),
    )
    return made


def records_of(made, count, snapshot=None):
    """Return the records of so many rounds and the last snapshot."""
    found = list(rounds.run(made.federation, snapshot or rounds.begin(made.algorithm, made.w0), count))
    return [record for record, _ in found], found[-1][1]
