"""What does a round of fedloom cost on Flower's SuperLink and SuperNodes, and are its bits those of the simulation?

    python benchmarks/network_flower.py --out benchmarks/network_flower.md

(ten minutes; 4 GB; needs ``pip install 'fedloom[flower,network]'`` in this Python.) Everything runs on this machine, in
processes of their own, over 127.0.0.1 without TLS: a ``flower-superlink`` and three ``flower-supernode`` with
``--isolation subprocess``, ``fedloom join --engine flower`` for each node, and ``fedloom serve --engine flower``; beside it
the same experiment file with fedloom's own ``serve`` and ``join``. A round takes what the run's log says: its median over all
rounds but the first. The arms take turns.

The last run on Flower is stopped in the middle (SIGTERM) and started again with the same command.

Latest result: benchmarks/network_flower.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from _common import machine
from _processes import BIN, PATIENCE, port, process, until

from fedloom import events, load_model
from fedloom.config import Config
from fedloom.data import load_pair
from fedloom.simulation.population import divide
from fedloom.simulation.simulate import simulate

CLIENTS, ROUNDS = 3, 5


def prepared(folder: Path) -> Config:
    """Write the experiment and every client's samples."""
    config = Config.of(
        data="digits",
        clients=CLIENTS,
        sampling="all",
        rounds=ROUNDS,
        model="2nn",
        plan="loop",
        lr=0.1,
        batch_size=50,
        device="cpu",
    )
    (folder / "exp.toml").write_text(config.to_toml())
    train, _ = load_pair("digits")
    for number, rows in enumerate(divide(train, config.data, config.run.seed).parts):
        np.savez(folder / f"part{number}.npz", x=train.x[rows], y=train.y[rows])
    return config


def joining(number: int) -> list[str]:
    """Return what every client says."""
    said = ["--data", f"part{number}.npz", "--name", f"c{number}", "--number", str(number), "--yes"]
    return [*said, "--state", f"c{number}", "--device", "cpu"]


def fedloom(folder: Path) -> None:
    """Run it over fedloom's own network."""
    program = [sys.executable, "-m", "fedloom"]
    with ExitStack() as stack:
        serve = [*program, "serve", "exp.toml", "--out", "run", "--listen", "127.0.0.1:0", "--quiet"]
        server = stack.enter_context(process(folder, "server", *serve))
        said = until(folder / "server.log", r"fedloom join (\S+)", server)
        for number in range(CLIENTS):
            stack.enter_context(process(folder, f"client{number}", *program, "join", said, *joining(number)))
        if server.wait(PATIENCE):
            raise SystemExit((folder / "server.log").read_text())


def flower(folder: Path, stop: bool = False) -> None:
    """Run it over Flower; ``stop`` it in the middle, and start it again."""
    link, program = port(), [sys.executable, "-m", "fedloom"]
    home = folder / "flwr"
    home.mkdir()
    where = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    (home / "config.toml").write_text(where)
    serve = [*program, "serve", "exp.toml", "--out", "run", "--engine", "flower"]
    with ExitStack() as stack:
        superlink = process(folder, "superlink", BIN / "flower-superlink", "--insecure", "--port", link)
        running = stack.enter_context(superlink)
        until(folder / "superlink.log", r"(running on http)", running)
        for number in range(CLIENTS):
            joins = [*program, "join", "--engine", "flower", *joining(number)]
            stack.enter_context(process(folder, f"join{number}", *joins))
            node = [BIN / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", port()]
            told = f'fedloom-state="{folder / f"c{number}"}"'
            stack.enter_context(process(folder, f"node{number}", *node, "--node-config", told))
        if stop:
            with process(folder, "server", *serve) as server:
                until(folder / "run" / events.EVENTS, r'("event": "round", "round": 2)', server)
        with process(folder, "server", *serve) as server:
            if server.wait(PATIENCE):
                raise SystemExit((folder / "server.log").read_text())


def measured(arm: str, stop: bool = False) -> list[float]:
    """Run an arm, and compare its model with that of the simulation; returns the seconds of its rounds but the first."""
    with tempfile.TemporaryDirectory(prefix="network-flower-") as name:
        folder = Path(name)
        there = simulate(prepared(folder), out=folder / "there", progress=False)
        flower(folder, stop) if arm == "flower" else fedloom(folder)
        same = torch.equal(load_model(folder / "run" / "model.keras").vector(), load_model(there.model).vector())
        rows = [row for row in events.read(folder / "run").rows if row["event"] == "round"]
        if not same:
            said = [failure for row in rows for failure in row["failures"]]
            raise SystemExit(f"{arm}: the model is another one than the simulation's; failures: {said}")
        return [row["seconds"] for row in rows[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the result as Markdown")
    given = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"fedloom": [], "flower": []}
    for _ in range(given.repeats):
        for arm, found in times.items():
            found += measured(arm)
            print(f"{arm}: {statistics.median(found):.3g} s a round", flush=True)
    measured("flower", stop=True)
    own, theirs = (statistics.median(times[arm]) for arm in ("fedloom", "flower"))
    size = "0.06 million numbers, 3 clients, digits"
    lines = [
        f"| a round ({size}) | median | slowest |",
        "| --- | --- | --- |",
        f"| fedloom's own network | {1000 * own:.0f} ms | {1000 * max(times['fedloom']):.0f} ms |",
        f"| fedloom on Flower {version('flwr')} | {theirs:.1f} s | {max(times['flower']):.1f} s |",
        "",
        f"A round on Flower takes {theirs / own:.0f} times as long. The models of all runs, and of one that was stopped "
        "after round 2 and started again, have the bits of the simulation.",
    ]
    text = "\n".join(lines) + f"\n\n{machine('Flower ' + version('flwr'), 'gRPC ' + version('grpcio'))}\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
