"""Orders: what a round asks of clients, as tasks; and what the server makes of what they send."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedloom.clients import Order, Result
from fedloom.clients import name as number_name
from fedloom.deploy.protocol.facts import TURN
from fedloom.deploy.protocol.messages import TRAIN, Task, Upload
from fedloom.deploy.serving.checks import Form
from fedloom.deploy.serving.roster import Member
from fedloom.errors import DataError
from fedloom.records import ClientFailure

STALENESS = "staleness"
FAILURES = ("diverged", "dropped")
"""What a client may say of itself."""


def task_of(order: Order, i: int, kind: str = TRAIN) -> Task:
    """Return what the client at position ``i`` of an order is to do."""
    client, sent = order.clients[i], order.broadcast(i)
    kept = order.kept.get(client)
    return Task(
        kind,
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


def result_of(form: Form, member: Member, upload: Upload) -> tuple[Result, str]:
    """Return what an upload counts as, and the reason where it is a failure."""
    name = number_name(member.number)
    if upload.failure:
        kind = upload.failure if upload.failure in FAILURES else "dropped"
        reason = f"{member.title}: {upload.reason or 'it could not do what it was asked'}"
        return ClientFailure(name, reason, kind), reason
    try:
        upload = form.opened(upload)
        wrong = form.wrong(upload, member.samples)
    except DataError as error:
        wrong = str(error)
    if wrong:
        reason = f"{member.title}'s {form.answer} was refused: {wrong}"
        return ClientFailure(name, reason, "refused"), reason
    return form.update(name, upload), ""


def keeping(update: Result, number: int, attempt: int) -> Result:
    """Let the server note which turn's state counts from now on."""
    assert not isinstance(update, ClientFailure)
    return replace(update, kept={TURN: torch.tensor([number, attempt])})


def aged(found: Result, age: int) -> Result:
    """Say how many rounds late an update is."""
    return (
        found if isinstance(found, ClientFailure) else replace(found, metrics={**found.metrics, STALENESS: float(age)})
    )
