"""A small fleet over real gRPC and a bad network: connections are cut, clients die, the server is killed; the bits stay."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

import pytest
import torch

from fedloom import events as log
from fedloom.config import Config
from fedloom.deploy.carrier.cutting import Cutting
from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.joining.client import Client
from fedloom.deploy.seam import Unreachable
from fedloom.deploy.serving.engine import Remote
from fedloom.deploy.serving.host import Terms, host
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.settling import settled
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.tls import Certificates
from fedloom.errors import FedloomError
from fedloom.simulation.simulate import simulate

pytest.importorskip("grpc")
COUNT, ROUNDS = 8, 5


class Killed(BaseException):
    """What a kill looks like from inside."""


class Mortal:
    """A client's channel that can die: no call comes back, and nobody is told."""

    def __init__(self, channel) -> None:
        self._channel, self._dead = channel, False

    def die(self) -> None:
        self._dead = True
        self._channel.close()

    def heartbeat(self, doing) -> None:
        self._channel.heartbeat(doing)

    def __getattr__(self, name):
        def call(*given):
            try:
                return getattr(self._channel, name)(*given)
            finally:
                if self._dead:
                    raise Killed

        return call


class Door:
    """A server that listens over gRPC; clients come through the relay, which finds it again after a restart."""

    def __init__(self, folder, relay) -> None:
        self.folder, self.relay, self.invitation = folder, relay, None
        self.up = threading.Event()

    @contextlib.contextmanager
    def listen(self, server):
        admission = Admission(self.folder / "admission.json")
        certificates = Certificates.own(self.folder / "tls")
        heard = listen(server, admission, "127.0.0.1:0", certificates, folder=self.folder)
        self.relay.target = heard.port
        self.invitation = self.invitation or heard.invite("127.0.0.1", COUNT, self.relay.port)
        self.up.set()
        try:
            yield lambda count: None
        finally:
            heard.stop(0.0)


class Fleet:
    """Clients in threads, each with its key and its folder; one that dies is started again, as a service would do it."""

    def __init__(self, config, tools, door) -> None:
        self.config, self.tools, self.door = config, tools, door
        self.now: dict[int, Mortal] = {}
        self.ends: dict[int, str] = {}
        self.lives = [0] * COUNT
        self.threads = [threading.Thread(target=self._live, args=(n,), daemon=True) for n in range(COUNT)]

    def _live(self, number) -> None:
        self.door.up.wait(60)
        data, home = self.tools.part(self.config, number), self.door.folder / f"home-{number}"
        manners = replace(self.tools.quick, patience=20.0)
        while number not in self.ends:
            self.lives[number] += 1
            try:
                channel = connect(self.door.invitation, Keys.at(home / "identity.key"), f"c{number}")
                with contextlib.closing(channel):
                    self.now[number] = Mortal(channel)
                    client = Client(self.now[number], f"c{number}", data, home, number=number, manners=manners)
                    self.ends[number] = client.run()
            except (Unreachable, Killed):
                time.sleep(0.1)
            except FedloomError as error:
                self.ends[number] = str(error)


def test_a_fleet_behind_a_network_that_cuts_has_the_bits_of_the_simulation(tmp_path, tools, monkeypatch):
    config = Config.of(**tools.small | {"clients": COUNT, "rounds": ROUNDS, "algorithm": "scaffold"})
    there = simulate(config, out=tmp_path / "there", progress=False)
    killed = []

    class Dying(Remote):
        """Kills two clients in every round, and the server once."""

        def __call__(self, order):
            for position, result in enumerate(super().__call__(order)):
                if position == 1:
                    for number in (2 * order.round % COUNT, (2 * order.round + 1) % COUNT):
                        fleet.now[number].die()
                if position == 4 and order.round == 3 and not killed:
                    killed.append(order.round)
                    raise Killed
                yield result

    monkeypatch.setattr("fedloom.deploy.serving.host.Remote", Dying)
    terms = Terms(Patience(away=30.0))
    with settled(), Cutting(0, size=1.5e6, seconds=3.0, seed=1) as relay:
        door = Door(tmp_path, relay)
        fleet = Fleet(config, tools, door)
        for thread in fleet.threads:
            thread.start()
        with pytest.raises(Killed):
            host(config, tmp_path / "run", door.listen, terms)
        here = host(config, tmp_path / "run", door.listen, terms)
        for thread in fleet.threads:
            thread.join(20)
        cuts = relay.cuts
    assert [record.round for record in log.rounds(log.read(here.folder).rows)] == list(range(1, ROUNDS + 1))
    assert set(fleet.ends.values()) == {"the run is over"}
    assert [failure for record in here.records for failure in record.failures] == []
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert killed
    assert cuts
    assert sum(fleet.lives) > COUNT
