"""Light clients of `fedloom serve`, many in one process: they take the model, throw it away, and send one update for all.

python light_clients.py INVITATION FIRST COUNT SAMPLES.npz
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from functools import cache
from pathlib import Path

import torch

from fedloom import __version__
from fedloom.data.dataset import Dataset
from fedloom.data.sources import load_training
from fedloom.deploy.carrier.transport_grpc import connect
from fedloom.deploy.experiment import Samples
from fedloom.deploy.protocol.facts import NUMBER, OVER, SAMPLES
from fedloom.deploy.protocol.messages import CHECK, STOP, Hello, Upload
from fedloom.deploy.seam import Channel, Unreachable
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.invitation import Invitation
from fedloom.errors import FedloomError

WAIT, BEAT, ONE = 20.0, 5.0, threading.Lock()


@cache
def update(size: int) -> torch.Tensor:
    """Return the update of all clients of this process."""
    return torch.full((size,), 1e-3)


def take_part(channel: Channel, number: int, data: Dataset) -> None:
    """Answer at once whatever is asked, until the run is over."""
    facts = {SAMPLES: Samples.of(data).to_json(), NUMBER: number}
    hello = Hello(f"c{number}", __version__, samples=len(data), facts=facts)
    channel.register(hello)
    while True:
        try:
            task = channel.next_task(WAIT)
        except Unreachable:
            continue
        if task is None:
            continue
        if task.kind == STOP:
            return channel.heartbeat(OVER)
        if task.kind == CHECK:
            channel.register(hello)  # with the model, now that it is there
            channel.upload(Upload(0, task=CHECK))
            continue
        assert task.vector is not None
        key, size = (task.round, task.attempt), task.vector.numel()
        del task
        with ONE:
            delta = update(size)
        channel.upload(Upload(*key, delta=delta, weight=float(len(data)), steps=1, metrics={"loss": 1.0}))


def main() -> None:
    invitation, first, count, samples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    data, known = load_training(samples), Invitation.parse(invitation)
    channels = [connect(known, Keys.make(), f"c{number}") for number in range(first, first + count)]
    threads = [
        threading.Thread(target=take_part, args=(channel, number, data))
        for number, channel in enumerate(channels, first)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(BEAT)
        for channel in channels:
            with contextlib.suppress(FedloomError):
                channel.heartbeat("here")


if __name__ == "__main__":
    main()
