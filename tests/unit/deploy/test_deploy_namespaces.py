"""Hosts with network cards and addresses of their own, in network namespaces: a server and two clients behind a bridge."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fedloom.config import Config
from fedloom.simulation.simulate import simulate

pytest.importorskip("grpc")
HOSTS = ("server", "ana", "bob")
ADDRESS = {"server": "10.203.7.1", "ana": "10.203.7.2", "bob": "10.203.7.3"}
TIME, ROUNDS = 60.0, 12


def ip(*words: str) -> str:
    """Run ``ip``; what it says, if it fails, is why the machine does not allow this."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Lan:
    """A bridge, and hosts that are connected with it."""

    def __init__(self, name: str) -> None:
        self.name, self.made, self.running = name, [], []

    def build(self) -> None:
        self._host("bridge")
        ip("-n", self._of("bridge"), "link", "add", "br0", "type", "bridge")
        ip("-n", self._of("bridge"), "link", "set", "br0", "up")
        for host in HOSTS:
            self._host(host)
            here, there = ("-n", self._of("bridge")), ("-n", self._of(host))
            ip(*here, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", self._of(host))
            ip(*here, "link", "set", host, "master", "br0", "up")
            ip(*there, "addr", "add", f"{ADDRESS[host]}/24", "dev", "eth0")
            ip(*there, "link", "set", "eth0", "up")

    def _host(self, host: str) -> None:
        ip("netns", "add", self._of(host))
        self.made.append(self._of(host))
        ip("-n", self._of(host), "link", "set", "lo", "up")

    def _of(self, host: str) -> str:
        return f"{self.name}-{host}"

    def plug(self, host: str, state: str) -> None:
        """Pull a host's cable out (``down``), or in again (``up``)."""
        ip("-n", self._of("bridge"), "link", "set", host, state)

    def abort(self, host: str) -> None:
        """Let a host's connections end as after minutes without an answer, where its kernel can do that."""
        if shutil.which("ss"):
            command = ["ip", "netns", "exec", self._of(host), "ss", "-K", "dport", "=", "8443"]
            subprocess.run(command, capture_output=True, timeout=20, check=False)

    def cards(self, host: str) -> dict[str, int]:
        """Return how many bytes a host has received, by network card."""
        found = json.loads(ip("-n", self._of(host), "-s", "-j", "link"))
        return {card["ifname"]: card["stats64"]["rx"]["bytes"] for card in found}

    def start(self, host: str, folder, *words: str) -> Program:
        command = ["ip", "netns", "exec", self._of(host), sys.executable, "-m", "fedloom", *words]
        self.running.append(Program(folder, host, command))
        return self.running[-1]

    def remove(self) -> None:
        for program in self.running:
            program.process.kill()
            program.process.wait(10)
        for name in self.made:
            ip("netns", "del", name)


class Program:
    """A command of fedloom on one of the hosts."""

    def __init__(self, folder, host, command) -> None:
        self.path = folder / f"{host}.log"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "FEDLOOM_HOME": str(folder / f"home-{host}")}
        with self.path.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=folder
            )

    def until(self, pattern: str) -> re.Match[str]:
        ends = time.monotonic() + TIME
        while True:
            if found := re.search(pattern, self.path.read_text()):
                return found
            assert time.monotonic() < ends, self.path.read_text()
            assert self.process.poll() is None, self.path.read_text()
            time.sleep(0.01)


@pytest.fixture
def lan():
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip (iproute2)")
    made = Lan(f"fedloom{os.getpid()}")
    try:
        made.build()
    except OSError as error:
        made.remove()
        pytest.skip(f"this machine does not let us make network namespaces ({error})")
    yield made
    made.remove()


def test_hosts_in_a_network_train_through_a_cable_that_is_pulled_out(lan, tmp_path, tools):
    config = Config.of(**tools.small | {"clients": 2, "threads": 0, "rounds": ROUNDS, "algorithm": "scaffold"})
    (tmp_path / "exp.toml").write_text(config.to_toml())
    for number, name in enumerate(HOSTS[1:]):
        data = tools.part(config, number)
        np.savez(tmp_path / f"{name}.npz", x=data.x, y=data.y)
    serve = ("serve", "exp.toml", "--out", "run", "--listen", f"{ADDRESS['server']}:8443", "--quiet")
    server = lan.start("server", tmp_path, *serve, "--away", "40")
    invitation = server.until(r"fedloom join (\S+)")[1]
    assert invitation.startswith(ADDRESS["server"])
    clients = {}
    for number, name in enumerate(HOSTS[1:]):
        join = ("join", invitation, "--data", f"{name}.npz", "--name", name, "--number", str(number), "--yes")
        clients[name] = lan.start(name, tmp_path, *join)
    there = simulate(config, out=tmp_path / "there", progress=False)
    clients["bob"].until("round 2: trained")
    lan.plug("bob", "down")
    lan.abort("bob")
    time.sleep(0.5)
    stuck = clients["ana"].path.read_text().count("trained")
    time.sleep(1.0)
    assert clients["ana"].path.read_text().count("trained") == stuck < ROUNDS  # nobody goes on without bob
    lan.plug("bob", "up")
    assert server.process.wait(TIME) == 0, server.path.read_text()
    assert [one.process.wait(TIME) for one in clients.values()] == [0, 0]
    here = tools.vector(tmp_path / "run" / "model.keras")
    assert torch.equal(here, tools.vector(there.model))
    assert clients["bob"].path.read_text().count("trained") == ROUNDS
    assert lan.cards("ana")["eth0"] > ROUNDS * here.numel() * 4  # the model came through the cable
