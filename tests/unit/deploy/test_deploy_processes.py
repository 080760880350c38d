"""Real processes over gRPC on this machine: the bits of the simulation, through kills of a client and of the server."""

from __future__ import annotations

import re

import pytest
import torch
from forked import Forked
from processes import SERVE, prepared

pytest.importorskip("grpc")


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


@pytest.mark.parametrize("process", [Forked], ids=["forked"])
def test_secure_sums_of_processes_have_the_bits_of_the_simulation_through_a_kill_of_the_server(
    tmp_path, tools, process, started
):
    there = prepared(tmp_path, tools, secure_aggregation="protocol", clients=3, rounds=4)
    server = started("server", *SERVE, "--away", "30")
    text = server.until(r"fedloom join (\S+)")[1]
    clients = [
        started(f"c{n}", "join", text, "--data", f"part{n}.npz", "--name", f"ana{n}", "--number", n, "--yes")
        for n in range(3)
    ]
    clients[0].until("round 2: trained")
    server.kill()
    server = started("server", *SERVE, "--away", "30")
    assert server.code() == 0, server.text()
    assert [one.code() for one in clients] == [0, 0, 0], "".join(one.text() for one in clients)
    assert torch.equal(tools.vector(tmp_path / "run" / "model.keras"), tools.vector(there.model))
    assert "only the sum of the updates of 2 clients or more" in clients[0].text()
    assert len(set(re.findall(r"fingerprint (\w+)", "".join(one.text() for one in clients)))) == 1
