"""How long is a round over the network, how much memory does its server need, and how long is a round of Flower's?

    OMP_NUM_THREADS=1 python benchmarks/network_speed.py --peer /tmp/fedloom-peers/flower/bin/python

(half an hour; 6 GB of memory, 12 GB of disk). Everything runs on this machine, in processes of their own, over 127.0.0.1:
`fedloom serve` with TLS and a checkpoint after every round, and `fedloom join` for every client, all of it but the training:
a client sends back a thousandth of the model that it got (peers/idle_client.py). A round is the time from the first task of
one to the first task of the next in the server's audit log: its median over all rounds but the first two. ``--peer`` is a
Python with Flower 1.41: a SuperLink, three SuperNodes with TLS off, and an app whose clients send back what they got. The
arms take turns.

The server's memory: so much more its process holds at most than it did when its clients were joining, and no model was
there. Clients are light ones here, many in one process (peers/light_clients.py): all of them get the model at once, and all
send an update of its size at once. "Held" are pages that only exist in memory (RssAnon and RssShmem of /proc/PID/status);
the pages of files that it looks at are counted apart, since the system takes them back whenever it needs them. Looked at
every 5 ms.

Targets: below 50 ms (0.2 million numbers, three clients), 1.5 s (10 million, three clients) and 6 s (100 million, one); 50
times less than Flower's at 0.2 million; memory below three models, whatever the number of clients.

Latest result: benchmarks/network_speed.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from _common import machine
from _processes import PATIENCE, process, until

from fedloom.config import Config

PEERS = Path(__file__).parent / "peers"
FLOWER = PEERS / "network_with_flower.py"
SAMPLES, WARM_UP, LOOK = 4, 2, 0.005


@dataclass(frozen=True)
class Arm:
    """What is measured.

    Attributes:
        model: A function of peers/wide.py.
        millions: So many million numbers.
        clients: How many.
        rounds: How many.
        target: Seconds per round.
        light: Whether clients throw the model away, and many are in one process (peers/light_clients.py).
    """

    model: str
    millions: float
    clients: int
    rounds: int
    target: float = 0.0
    light: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.millions:g} million numbers, {self.clients} client{'s' if self.clients > 1 else ''}"


SPEED = (
    Arm("small", 0.2, 3, 40, 0.05),
    Arm("ten", 10, 3, 10, 1.5),
    Arm("hundred", 100, 1, 6, 6.0),
)
MEMORY = tuple(Arm("quarter", 25, clients, 2, light=True) for clients in (2, 8, 20, 50, 100))
CREW = 25  # so many light clients are in one process


@dataclass
class Found:
    """What one run gave.

    Attributes:
        rounds: Seconds of each round but the first.
        held: Bytes that the server held at most beyond those it began with.
        files: Bytes of files that it looked at, likewise.
    """

    rounds: list[float] = field(default_factory=list)
    held: int = 0
    files: int = 0


class Watch:
    """Looks at a process's memory, until the block ends."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.start, self.peak = self.now(), (0, 0)

    def now(self) -> tuple[int, int]:
        """Return what is held and what is of files, in bytes."""
        text = self._path.read_text()
        rows = {key: int(value) << 10 for key, value in re.findall(r"^(Rss\w+):\s+(\d+) kB", text, re.MULTILINE)}
        return rows["RssAnon"] + rows["RssShmem"], rows["RssFile"]

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            try:
                now = self.now()
            except (OSError, KeyError):
                return
            self.peak = (max(self.peak[0], now[0]), max(self.peak[1], now[1]))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def fedloom(arm: Arm) -> Found:
    """Serve a run with real clients."""
    with tempfile.TemporaryDirectory(prefix="network-speed-") as name, ExitStack() as stack:
        folder, code = Path(name), f"{PEERS / 'wide.py'}:{arm.model}"
        _write(folder, arm, code)
        command = [sys.executable, "-m", "fedloom", "serve", "exp.toml", "--out", "run", "--listen", "127.0.0.1:0"]
        server = stack.enter_context(process(folder, "server", *command, "--test", "none", "--quiet"))
        said = until(folder / "server.log", r"fedloom join (\S+)", server)
        watch = stack.enter_context(Watch(server.pid))
        for name, command in (_light if arm.light else _idle)(arm, said, code):
            stack.enter_context(process(folder, name, sys.executable, *command))
        if server.wait(3 * PATIENCE):
            raise SystemExit((folder / "server.log").read_text())
        held, files = (after - before for after, before in zip(watch.peak, watch.start, strict=True))
        return Found(_periods(folder / "run" / "audit.jsonl"), held, files)


def _idle(arm: Arm, invitation: str, code: str) -> Iterator[tuple[str, list[object]]]:
    """Yield the commands of clients in processes of their own."""
    for number in range(arm.clients):
        told = [invitation, "--data", f"part{number}.npz", "--name", f"c{number}", "--number", number, "--yes"]
        yield f"client{number}", [PEERS / "idle_client.py", "join", *told, "--model", code, "--state", f"c{number}"]


def _light(arm: Arm, invitation: str, _: str) -> Iterator[tuple[str, list[object]]]:
    """Yield the commands of light clients."""
    for first in range(0, arm.clients, CREW):
        count = min(CREW, arm.clients - first)
        yield f"clients{first}", [PEERS / "light_clients.py", invitation, first, count, "part0.npz"]


def _write(folder: Path, arm: Arm, code: str) -> None:
    config = Config.of(
        data="none",
        clients=arm.clients,
        sampling="all",
        rounds=arm.rounds,
        model=code,
        lr=0.01,
        batch_size=SAMPLES,
        epochs=1,
        plan="loop",
        device="cpu",
    )
    (folder / "exp.toml").write_text(config.to_toml())
    chance = np.random.default_rng(0)
    for number in range(arm.clients):
        x = chance.integers(0, 256, (SAMPLES, 8, 8)).astype(np.uint8)
        np.savez(folder / f"part{number}.npz", x=x, y=np.arange(SAMPLES) % 10)


def _periods(audit: Path) -> list[float]:
    """Return the seconds between the first tasks of one round and the next."""
    first: dict[int, float] = {}
    for line in audit.read_text().splitlines():
        row = json.loads(line)
        if row.get("what") == "next task" and row.get("round"):
            first.setdefault(row["round"], datetime.fromisoformat(row["time"]).timestamp())
    times = [first[number] for number in sorted(first)]
    return [after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]


def flower(python: Path, rounds: int) -> list[float]:
    """Run Flower's processes; returns the seconds of its rounds."""
    with tempfile.TemporaryDirectory(prefix="network-speed-") as name:
        command = [str(python), str(FLOWER), "--rounds", str(rounds), "--folder", name]
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=env, check=False)
        if made.returncode:
            raise SystemExit(made.stdout + made.stderr)
        found: list[float] = json.loads(made.stdout.splitlines()[-1])["rounds"]
        return found


def shown(seconds: float) -> str:
    """Return a time in words."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def measured(repeats: int, speed: list[Arm], peer: Path | None) -> list[str]:
    """Return the rows of rounds; the arms take turns."""
    times: dict[str, list[float]] = {arm.name: [] for arm in speed}
    theirs: list[float] = []
    for _ in range(repeats):
        for arm in speed:
            found = fedloom(arm)
            times[arm.name] += found.rounds
            print(f"{arm.name}: {shown(statistics.median(found.rounds))} a round", flush=True)
        if peer:
            theirs += flower(peer, 5)
            print(f"Flower: {shown(statistics.median(theirs))} a round", flush=True)
    rows = []
    for arm in speed if repeats else ():
        own = times[arm.name]
        rows.append(f"| {arm.name} | {shown(statistics.median(own))} | {shown(max(own))} | below {shown(arm.target)} |")
    if theirs and speed:
        ratio = statistics.median(theirs) / statistics.median(times[speed[0].name])
        rows.append(
            f"| Flower 1.41, 0.2 million numbers, 3 clients | {shown(statistics.median(theirs))} | "
            f"{shown(max(theirs))} | 50 times ours: {ratio:.0f} times |"
        )
    return rows


def remembered(arm: Arm) -> str:
    """Return the row of the server's memory."""
    found, size = fedloom(arm), arm.millions * 4e6
    row = f"| {arm.clients} clients | {found.held / size:.2f} models | {found.files / size:.2f} models |"
    print(row, flush=True)
    return row


def renewed(text: str, rows: list[str]) -> str:
    """Return a result with some rows measured again; rows that it had not go below those before them."""
    lines, at = text.splitlines(), 0
    for row in rows:
        name = row.split("|")[1]
        found = next((i for i, line in enumerate(lines) if line.startswith(f"|{name}|")), None)
        at = at + 1 if found is None else found
        lines[at : at + (found is not None)] = [row]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="a Python with Flower 1.41")
    parser.add_argument("--repeats", type=int, default=3, help="of the rounds; 0 for the memory alone")
    parser.add_argument("--only", help="arms by their model's function, such as small,ten", default="")
    parser.add_argument("--memory", help="memory with so many clients, such as 2,20; none for no arm", default="")
    parser.add_argument("--out", type=Path, help="the result as Markdown; of one that is there, rows are renewed")
    given = parser.parse_args()
    wanted = given.only.split(",") if given.only else [arm.model for arm in SPEED]
    rounds = measured(given.repeats, [arm for arm in SPEED if arm.model in wanted], given.peer)
    counts = given.memory.split(",") if given.memory else [str(arm.clients) for arm in MEMORY]
    memory = [remembered(arm) for arm in MEMORY if str(arm.clients) in counts]
    if given.out and given.out.is_file():
        given.out.write_text(renewed(given.out.read_text(), [*rounds, *memory]))
        return
    lines = [
        "# A round over the network, beside Flower",
        "",
        f"`OMP_NUM_THREADS=1 python benchmarks/network_speed.py --peer PYTHON`, {date.today()}. Processes on loopback,",
        "with TLS, a checkpoint and a line of the log per round; clients train nothing, they send back a thousandth of what",
        "they got. Flower: SuperLink, SuperNodes, `flwr run`, clients that send back what they got.",
        "",
        "| what | median round | slowest | target |",
        "| --- | --- | --- | --- |",
        *rounds,
        "",
        "The server's memory beyond what it had before there was a model (target: below 3 models held); all clients get",
        "the model at once, and send an update of its size at once:",
        "",
        "| 25 million numbers (100 MB) | held | files looked at |",
        "| --- | --- | --- |",
        *memory,
        "",
        machine("gRPC " + version("grpcio")),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
