"""Commands of fedloom in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np

from fedloom.config import Config
from fedloom.simulation.simulate import simulate

TIME = 120.0


class Process:
    """A command of fedloom in a process of its own, its output in a file."""

    def __init__(self, folder, name, *arguments) -> None:
        self.path = folder / f"{name}-{time.monotonic_ns()}.log"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "FEDLOOM_HOME": str(folder / "home")}
        with self.path.open("w") as log:
            command = [sys.executable, "-m", "fedloom", *map(str, arguments)]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=folder
            )

    def text(self) -> str:
        return self.path.read_text()

    def until(self, pattern: str):
        ends = time.monotonic() + TIME
        while time.monotonic() < ends:
            found = re.search(pattern, self.text())
            if found:
                return found
            assert self.process.poll() is None or re.search(pattern, self.text()), self.text()
            time.sleep(0.02)
        raise AssertionError(f"{pattern} did not come:\n{self.text()}")

    def kill(self, number=signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(TIME)

    def code(self) -> int:
        return self.process.wait(TIME)


def prepared(folder, tools, **given):
    """Write the experiment and the clients' parts; returns the simulation's run."""
    given = tools.small | {"clients": 2, "threads": 0} | given
    config = Config.of(**given)
    (folder / "exp.toml").write_text(config.to_toml())
    for number in range(config.data.clients):
        data = tools.part(config, number)
        np.savez(folder / f"part{number}.npz", x=data.x, y=data.y)
    return simulate(config, out=folder / "there", progress=False)


SERVE = ("serve", "exp.toml", "--out", "run", "--listen", "127.0.0.1:0", "--quiet")
