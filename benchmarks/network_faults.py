"""Does a federation over the network keep every round, and every bit, through kills and cut connections?

    OMP_NUM_THREADS=1 python benchmarks/network_faults.py                       # 200 clients, 20 rounds
    OMP_NUM_THREADS=1 python benchmarks/network_faults.py --secure              # the same with secure aggregation
    OMP_NUM_THREADS=1 python benchmarks/network_faults.py --clients 20 --rounds 5 --crew 5    # in a minute

``fedloom serve`` in a process of its own, and clients with keys, folders and connections of their own, several to a
process (a torch process each would take too much memory). Between them a relay resets connections at random moments: after
a random time, and after a random number of bytes, so that uploads are cut, too. In every round 10 % of the clients die:
half of them with their whole process (kill -9), half of them alone (the connection is dropped, the memory is lost). They
come back as a service would start them again; a few only after the round's deadline. In the middle of the run the server
is killed (kill -9) and started again with the same words.

Targets: all rounds are there, in order; the model has the bits of the simulation of the same cohorts and seed: the clients
that a record names as failed fail there, too. Linux.

Latest result: benchmarks/network_faults.md
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import machine
from _fleet import Crew
from _strikes import Fleet, Server

import fedloom
from fedloom import events
from fedloom.clients import Order, Result
from fedloom.clients import name as number_name
from fedloom.config import Config
from fedloom.data import load_pair
from fedloom.deploy.carrier.cutting import Cutting
from fedloom.deploy.trust.invitation import Invitation
from fedloom.engines import Closing, Engine, in_process
from fedloom.records import ClientFailure, RoundRecord
from fedloom.simulation import folder as folders
from fedloom.simulation.course import Course
from fedloom.simulation.population import divide
from fedloom.simulation.setup import prepare

COHORT = "the cohort"
"""Who fails where a secure sum does."""


class Replayed(Closing):
    """An engine in which those fail that failed before."""

    def __init__(self, engine: Engine, failed: dict[int, set[str]]) -> None:
        self._engine, self._failed = engine, failed

    def __call__(self, order: Order) -> Iterator[Result]:
        """Train those of an order that did not fail."""
        out = self._failed[order.round]
        whole = COHORT in out  # too few were left for a secure sum
        left = [i for i, client in enumerate(order.clients) if not whole and number_name(client) not in out]
        sent = order.broadcasts if len(order.broadcasts) == 1 else tuple(order.broadcasts[i] for i in left)
        made = replace(order, clients=tuple(order.clients[i] for i in left), broadcasts=sent)
        results = iter(self._engine(made)) if left else iter(())
        for i, client in enumerate(order.clients):
            yield next(results) if i in left else ClientFailure(number_name(client), "as recorded", "dropped")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--crew", type=int, default=10, help="clients in a process")
    parser.add_argument("--deadline", type=float, default=12.0)
    parser.add_argument("--away", type=float, default=20.0)
    parser.add_argument("--algorithm", default=None, help="[scaffold; with --secure fedavg]")
    parser.add_argument("--secure", action="store_true")
    parser.add_argument("--life", type=float, default=20.0, help="seconds that a connection lives, on average")
    parser.add_argument("--bytes", type=float, default=2e6, help="bytes that it carries, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep everything in this folder")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        folder = given.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        fought(folder, given)


def fought(folder: Path, given: argparse.Namespace) -> None:
    """Run the federation through all that goes wrong, replay it, and say what was found."""
    config = prepared(folder, given)
    began = time.perf_counter()
    server = Server(folder, (given.deadline, given.away))
    text = server.until(r"fedloom join (\S+)")[1]
    port = int(server.until(r"listening on [^:]+:(\d+)")[1])
    with Cutting(port, seconds=given.life, size=given.bytes, seed=given.seed) as relay:
        invitation = replace(Invitation.parse(text), port=relay.port).text()
        numbers = [tuple(range(n, min(n + given.crew, given.clients))) for n in range(0, given.clients, given.crew)]
        fleet = Fleet([Crew(folder, invitation, some) for some in numbers], random.Random(given.seed))
        try:
            fleet.start()
            server.until(f"all {given.clients} clients are there")
            joined = time.perf_counter() - began
            watch(folder / "run", server, fleet, given)
        finally:
            fleet.end()
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
        taken = time.perf_counter() - began
    records = list(events.rounds(events.read(folder / "run").rows))
    failed = {record.round: {failure.client for failure in record.failures} for record in records}
    there = replayed(config, folder / "there", failed)
    tell(given, folder, records, there, fleet, relay, server, (joined, taken))


def prepared(folder: Path, given: argparse.Namespace) -> Config:
    """Write the experiment, and each client's samples."""
    words: dict[str, Any] = {"secure_aggregation": "sum"} if given.secure else {}
    config = Config.of(
        **{"data": "digits", "clients": given.clients, "sampling": "all", "model": "2nn", "rounds": given.rounds},
        **{"plan": "loop", "lr": 0.1, "batch_size": 5, "threads": 1, "device": "cpu"},
        **{"algorithm": given.algorithm or ("fedavg" if given.secure else "scaffold"), "seed": given.seed, **words},
    )
    (folder / "exp.toml").write_text(config.to_toml())
    train, _ = load_pair("digits")
    (folder / "parts").mkdir()
    for number, rows in enumerate(divide(train, config.data, config.run.seed).parts):
        np.savez(folder / "parts" / f"{number}.npz", x=train.x[rows], y=train.y[rows])
    return config


def watch(run: Path, server: Server, fleet: Fleet, given: argparse.Namespace) -> None:
    """Kill one in ten of the clients in every round, and the server once, until it is over."""
    done, chance = -1, random.Random(given.seed + 1)
    strikes: list[float] = []
    fall, mean = None, 1.0
    began = time.monotonic()
    while server.process.poll() is None:
        now, log = time.monotonic(), run / events.EVENTS
        rounds = log.read_text().count('"event": "round"') if log.is_file() else -1  # nobody dies before round 1
        if rounds != done:
            mean = now - began if done > 0 else mean
            done, began = rounds, now
            strikes.append(now + chance.uniform(0, 0.7 * mean))
            print(f"round {done} is over; {fleet.killed + fleet.died} deaths", file=sys.stderr, flush=True)
            if done == given.rounds // 2 and fall is None:
                fall = now + chance.uniform(0.1, 0.7) * mean
        if fall and now >= fall:
            server.kill()
            fall = 0.0
        for when in [when for when in strikes if when <= now]:
            strikes.remove(when)
            fleet.strike(given.deadline)
        fleet.revive()
        server.look()
        time.sleep(0.02)


def replayed(config: Config, path: Path, failed: dict[int, set[str]]) -> fedloom.Run:
    """Simulate the same run in this process, with the failures that the network had."""
    setup = prepare(config, config.data.source)
    engine = Replayed(in_process(setup.side("loop"), 1), failed)
    return Course(setup, folders.open_new(path), engine).run(progress=False)


def tell(
    given: argparse.Namespace,
    folder: Path,
    records: list[RoundRecord],
    there: fedloom.Run,
    fleet: Fleet,
    relay: Cutting,
    server: Server,
    took: tuple[float, float],
) -> None:
    """Print what was found."""
    whole = [record.round for record in records] == list(range(1, given.rounds + 1))
    models = list((folder / "run").glob(f"model{there.model.suffix}"))
    same = bool(models) and torch.equal(*(fedloom.load_model(path).vector() for path in (models[0], there.model)))
    curve = [record.accuracy for record in records] == [record.accuracy for record in there.records]
    kinds = Counter(failure.kind for record in records for failure in record.failures)
    said = [line for path in (folder / "homes").glob("*/error.txt") for line in path.read_text().splitlines()]
    errors = [line for line in said if line != "the run is over"]  # whoever comes back too late is told so
    rows = [
        ("rounds, all in order", f"{len(records)} of {given.rounds}", "yes" if whole else "**no**"),
        ("the model has the bits of the simulation", "", "yes" if same else "**no**"),
        ("so has every round's accuracy", "", "yes" if curve else "**no**"),
        ("clients killed with their process (kill -9), alone", f"{fleet.killed}, {fleet.died}", ""),
        ("connections made, reset by the network", f"{relay.carried}, {relay.cuts}", ""),
        ("updates of a round, least and median", f"{_span([r.clients for r in records])}", ""),
        ("updates that did not come in time", ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "0", ""),
        ("clients that gave up", str(len(errors)), ""),
        ("seconds until all had joined, in all", f"{took[0]:.0f}, {took[1]:.0f}", ""),
        ("seconds of a round, median", f"{statistics.median(r.seconds for r in records):.1f}", ""),
        ("peak memory of the server, its threads", f"{server.peak / 1024:.0f} MB, {server.threads}", ""),
    ]
    print(machine() + "\n")
    print("| what | found | as it should be |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    for text in errors[:5]:
        print(text, file=sys.stderr)
    if not (whole and same and curve) or server.process.returncode:
        print(server.log.read_text()[-3000:], file=sys.stderr)
        raise SystemExit(1)


def _span(counts: list[int]) -> str:
    return f"{min(counts)}, {statistics.median(counts):g}"


if __name__ == "__main__":
    main()
