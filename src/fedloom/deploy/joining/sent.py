"""Sent: the client's own log: what left this machine, and when."""

from __future__ import annotations

import time
from pathlib import Path

from fedloom import events
from fedloom.deploy.protocol.facts import OWN, RIGHT, SAMPLES
from fedloom.deploy.protocol.messages import Receipt, Task, Upload
from fedloom.deploy.sealing.legs import STEP

FILE = "sent.jsonl"


def note(folder: Path, task: Task, answer: Upload, receipt: Receipt) -> None:
    """Take note of an answer in a client's folder."""
    sent = [t for t in (answer.delta, *answer.extra.values()) if t is not None]
    row = {
        "event": "sent",
        "time": time.time(),
        "task": task.kind,
        "round": task.round,
        "attempt": task.attempt,
        **{key: value for key, value in answer.facts.items() if key in (STEP, SAMPLES, RIGHT, OWN)},
        "bytes": len(answer.encoded) + sum(t.numel() * t.element_size() for t in sent),
        "metrics": dict(answer.metrics),
        "failure": answer.failure,
        "accepted": receipt.accepted,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a", encoding="utf-8") as log:
        log.write(events.line(row))
