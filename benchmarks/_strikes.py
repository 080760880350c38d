"""Who dies in benchmarks/network_faults.py: clients with their processes or alone, and the server."""

from __future__ import annotations

import multiprocessing
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from _fleet import Crew, man

SHARE = 0.1
"""Of the clients die in a round."""


@dataclass
class Fleet:
    """All clients, in processes.

    Attributes:
        crews: Who is in which process.
        chance: Decides who dies when.
    """

    crews: list[Crew]
    chance: random.Random
    killed: int = 0
    died: int = 0
    _running: list[tuple[BaseProcess, Connection]] = field(default_factory=list)
    _back: list[tuple[float, int]] = field(default_factory=list)

    def start(self) -> None:
        """Start all processes; they share a parent that has loaded PyTorch already."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["_fleet"])
        self._running = [self._started(crew) for crew in self.crews]

    def _started(self, crew: Crew) -> tuple[BaseProcess, Connection]:
        there, here = self._context.Pipe(duplex=False)
        process = self._context.Process(target=man, args=(crew, there), daemon=True)
        process.start()
        there.close()
        return process, here

    def strike(self, deadline: float) -> None:
        """Kill one in ten: half of them with their processes."""
        size, count = len(self.crews[0].numbers), sum(len(crew.numbers) for crew in self.crews)
        whole = self.chance.sample(range(len(self.crews)), max(1, round(SHARE * count / 2 / size)))
        for place in whole:
            if all(place != waiting for _, waiting in self._back):
                self._running[place][0].kill()
                self.killed += len(self.crews[place].numbers)
                self._back.append((time.monotonic() + self._pause(deadline), place))
        others = [(place, n) for place, crew in enumerate(self.crews) if place not in whole for n in crew.numbers]
        for place, number in self.chance.sample(others, max(1, round(SHARE * count / 2))):
            try:
                self._running[place][1].send((number, self._pause(deadline)))
                self.died += 1
            except OSError:
                continue  # its whole process is dead

    def revive(self) -> None:
        """Start again what has been dead for long enough."""
        now = time.monotonic()
        for when, place in [pair for pair in self._back if pair[0] <= now]:
            self._back.remove((when, place))
            self._running[place][1].close()
            self._running[place][0].join()
            self._running[place] = self._started(self.crews[place])

    def end(self) -> None:
        """Kill all that is left."""
        for process, pipe in self._running:
            pipe.close()
            process.kill()
            process.join()

    def _pause(self, deadline: float) -> float:
        """Most come back soon, and one in eight too late for this round."""
        return self.chance.expovariate(2.0) + (deadline if self.chance.random() < 1 / 8 else 0.0)


class Server:
    """``fedloom serve``, which may be killed and started again with the same words."""

    def __init__(self, folder: Path, patience: tuple[float, float]) -> None:
        self._folder, self.peak, self.threads = folder, 0, 0
        self._words = ["serve", "exp.toml", "--out", "run", "--listen", "127.0.0.1:0", "--quiet"]
        self._words += ["--deadline", str(patience[0]), "--away", str(patience[1])]
        self.log = folder / "server.log"
        self.start()

    def start(self) -> None:
        """Start it."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedloom", *self._words], stdout=log, stderr=log, cwd=self._folder
            )

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until it has said something."""
        while True:
            if found := re.search(pattern, self.log.read_text()):
                return found
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def look(self) -> None:
        """Take note of its memory (KiB) and its threads."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        found = dict(re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE))
        self.peak = max(self.peak, int(found.get("VmHWM", 0)))
        self.threads = max(self.threads, int(found.get("Threads", 0)))

    def kill(self) -> None:
        """End it with kill -9, and start it again."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.start()
