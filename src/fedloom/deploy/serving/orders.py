"""Orders: what a round asks of clients, as tasks; and what the server adds to what they send."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedloom.clients import Order, Result
from fedloom.deploy.protocol.facts import TURN
from fedloom.deploy.protocol.messages import TRAIN, Task
from fedloom.records import ClientFailure

STALENESS = "staleness"


def task_of(order: Order, i: int) -> Task:
    """Return what the client at position ``i`` of an order is to do."""
    client, sent = order.clients[i], order.broadcast(i)
    kept = order.kept.get(client)
    return Task(
        TRAIN,
        order.round,
        order.attempt,
        None if sent.data else sent.vector,
        sent.data,
        extra=dict(sent.extra),
        lr=order.lr,
        stale=order.stale[i] if order.stale else 0,
        unsent=sent.unsent,
        facts={} if kept is None else {TURN: [int(n) for n in kept[TURN]]},
    )


def keeping(update: Result, number: int, attempt: int) -> Result:
    """Let the server note which turn's state counts from now on."""
    assert not isinstance(update, ClientFailure)
    return replace(update, kept={TURN: torch.tensor([number, attempt])})


def aged(found: Result, age: int) -> Result:
    """Say how many rounds late an update is."""
    return (
        found if isinstance(found, ClientFailure) else replace(found, metrics={**found.metrics, STALENESS: float(age)})
    )
