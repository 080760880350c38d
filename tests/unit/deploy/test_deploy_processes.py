"""Real processes over gRPC on this machine: the bits of the simulation, through kills of a client and of the server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fedloom.config import Config
from fedloom.simulation.simulate import simulate

pytest.importorskip("grpc")
TIME = 60.0


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


@pytest.fixture
def started(tmp_path):
    made = []

    def start(name, *arguments) -> Process:
        made.append(Process(tmp_path, name, *arguments))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)


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


def test_two_processes_give_the_bits_of_the_simulation_through_kills_of_a_client_and_the_server(
    tmp_path, tools, started
):
    there = prepared(tmp_path, tools, algorithm="scaffold", rounds=8)
    server = started("server", *SERVE, "--away", "30")
    text = server.until(r"fedloom join (\S+)")[1]

    def client(n):
        return started(f"c{n}", "join", text, "--data", f"part{n}.npz", "--name", f"ana{n}", "--number", n, "--yes")

    clients = [client(0), client(1)]
    clients[0].until("round 2: trained")
    clients[0].kill()
    server.kill()
    clients[0] = client(0)
    server = started("server", *SERVE, "--away", "30")
    assert server.code() == 0, server.text()
    assert [one.code() for one in clients] == [0, 0], clients[0].text() + clients[1].text()
    assert torch.equal(tools.vector(tmp_path / "run" / "model.keras"), tools.vector(there.model))
    assert "waiting for 2 of 2 clients" not in server.text()  # it knew both
    assert "scaffold, 8 rounds with 2 clients" in clients[0].text()
    assert "over: the run is over" in clients[0].text()
