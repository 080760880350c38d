"""What does secure aggregation cost 100 clients and their server, with 1,663,370 numbers (McMahan's CNN)?

    OMP_NUM_THREADS=1 python benchmarks/secure_aggregation.py --peer /tmp/fedloom-peers/flower/bin/python

(three minutes; 1 GB). A whole round with real messages in one process, one thread: everybody signs, the graph is complete,
0, 10 and 30 clients drop out after they have shared their keys (the dearest moment: the server has to take their masks
off). The sum is compared with the plain one. A client's time is that of its five messages, the median and the largest of
those that stay; the server's is all that it does in a round.

``--peer`` is a Python with Flower 1.41 (``benchmarks/simulation_speed.py --peers`` makes one): its SecAgg+ with as many
neighbours and the same threshold, by its own functions. A whole round of it takes a quarter of an hour and longer, so one
client goes through its four stages, and the server's work is timed by the piece (see peers/secure_with_flower.py).
Target: a client below 1 s, the server below 10 s.

Latest result: benchmarks/secure_aggregation.md
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from _common import machine

from fedloom.privacy.secagg import Client, Config, Server, Step, answer, identity, plain_sum

CLIENTS, SIZE = 100, 1_663_370
DROPPED = (0.0, 0.1, 0.3)
CLIENT_TARGET, SERVER_TARGET = 1.0, 10.0
PEER = Path(__file__).parent / "peers" / "secure_with_flower.py"


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        dropped: The clients that dropped out.
        clients: The seconds of each client that stayed.
        server: Its seconds.
        used: Its seconds of the processor, which other programs on the machine change less.
        up: The bytes that a client sent that stayed.
        down: The bytes that it was sent.
        equal: Has the sum the bits of the plain one?
    """

    dropped: int
    clients: list[float]
    server: float
    used: float
    up: int
    down: int
    equal: bool


def play(config: Config, private: list[bytes], vectors: list[np.ndarray], dropped: int) -> Round:
    """Run a round in which the first clients drop out before they send their vector."""
    clients, server = [Client(config, i, private[i]) for i in range(config.clients)], Server(config)
    inbox, spent, served = dict.fromkeys(range(config.clients), b""), [0.0] * config.clients, 0.0
    last, up, down, used = config.clients - 1, 0, 0, 0.0
    for step in Step:
        for i, data in inbox.items():
            if i < dropped and step >= Step.MASK:
                continue
            start = time.perf_counter()
            sent = answer(clients[i], step, data, vectors[i] if step is Step.MASK else None)
            middle, used = time.perf_counter(), used - time.process_time()
            server.receive(sent)
            used += time.process_time()
            spent[i] += middle - start
            served += time.perf_counter() - middle
            up, down = (up + len(sent), down + len(data)) if i == last else (up, down)
        start, used = time.perf_counter(), used - time.process_time()
        inbox = server.advance()
        used += time.process_time()
        served += time.perf_counter() - start
    start, used = time.perf_counter(), used - time.process_time()
    total = server.finish()
    served += time.perf_counter() - start
    used += time.process_time()
    equal = np.array_equal(total, plain_sum(vectors[dropped:], config.bits))
    return Round(dropped, spent[dropped:], served, used, up, down, equal)


def flower(python: Path, config: Config) -> dict[str, Any]:
    """Run the other side."""
    options = {"--clients": config.clients, "--size": config.size, "--threshold": config.threshold}
    words = [str(word) for pair in options.items() for word in pair]
    dropped = [str(int(share * config.clients)) for share in DROPPED]
    done = subprocess.run([python, PEER, *words, "--dropped", *dropped], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--peer", type=Path)
    given = parser.parse_args()
    n = given.clients
    pairs = [identity(secrets.token_bytes) for _ in range(n)]
    config = Config.of(secrets.token_bytes(16), 1, n, given.size, identities=[public for _, public in pairs])
    base = np.random.default_rng(0).integers(0, 2**32, given.size, dtype=np.uint32)
    vectors = [base] * n  # what is masked costs the same; the memory of 100 of them is not the question
    rounds = [play(config, [key for key, _ in pairs], vectors, int(share * n)) for share in DROPPED]
    peer = flower(given.peer, config) if given.peer else None
    print(machine(f"cryptography {version('cryptography')}") + "\n")
    print(f"{n} clients, {given.size:,} numbers of {config.bits} bits, threshold {config.threshold}\n")
    print(
        "| dropped out | client, median (largest) | target | server | target | MB up | kB down | same bits as plain |"
    )
    print("| --- " * 8 + "|")
    for r in rounds:
        cells = [
            f"{r.dropped}",
            f"{statistics.median(r.clients):.2f} s ({max(r.clients):.2f} s)",
            f"< {CLIENT_TARGET:g} s",
            f"{r.server:.2f} s (processor {r.used:.2f} s)",
            f"< {SERVER_TARGET:g} s",
            f"{r.up / 1e6:.2f}",
            f"{r.down / 1e3:.1f}",
            "yes" if r.equal else "**no**",
        ]
        print(f"| {' | '.join(cells)} |")
    if peer:
        show_peer(peer, rounds)


def show_peer(peer: dict[str, Any], rounds: list[Round]) -> None:
    """Print Flower's figures beside ours."""
    client = sum(peer["client"].values())
    print(f"\nFlower {peer['version']}, SecAgg+: one client {client:.2f} s, {peer['bytes'] / 1e6:.2f} MB up.\n")
    print("| dropped out | Flower's client | times ours | Flower's server, by the piece | times ours |")
    print("| --- " * 5 + "|")
    for r in rounds:
        server, ours = peer["server"][str(r.dropped)], statistics.median(r.clients)
        print(f"| {r.dropped} | {client:.2f} s | {client / ours:.0f} | {server:.0f} s | {server / r.server:.0f} |")
    pieces = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in peer["pieces"].items())
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in peer["client"].items())
    print(f"\nIts client's stages: {stages}. Its server's pieces: {pieces}.")


if __name__ == "__main__":
    main()
