"""A run over the fake network: a server in this thread or another one, and clients in threads of their own."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from loopback import Desk, Net
from processes import Process

import fedloom
from fedloom.config import Config
from fedloom.data import load_pair
from fedloom.data.dataset import Dataset
from fedloom.deploy.carrier.fake import FakeNetwork
from fedloom.deploy.joining.client import Client, Manners
from fedloom.deploy.protocol.messages import Upload
from fedloom.deploy.serving.host import Terms, host
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.trust.identity import Keys
from fedloom.errors import FedloomError
from fedloom.privacy.secagg import Step
from fedloom.simulation.population import divide

SMALL = {
    **{"data": "digits", "clients": 3, "sampling": "all", "rounds": 2, "model": "2nn", "plan": "loop", "lr": 0.1},
    **{"batch_size": 50, "threads": 1, "device": "cpu"},
}
QUICK = Manners(wait=1.0, beat=0.1, least=0.02, most=0.1, patience=15.0)


def part(config: Config, number: int) -> Dataset:
    """What a simulation gives client ``number``, as a data set of its own; what it is to keep apart is in it."""
    train, _ = load_pair("digits")
    rows = divide(train, replace(config.data, holdout=0.0), config.run.seed).parts[number]
    return Dataset.of(
        train.x[rows], train.y[rows], name=f"part {number}", class_names=train.class_names, high=train.high
    )


def vector(path) -> torch.Tensor:
    return fedloom.load_model(path).vector()


class Gone(BaseException):
    """What the kill of a client looks like from inside."""


class World:
    """One run, its network, and the clients that were started."""

    def __init__(self, folder, config: Config) -> None:
        self.folder, self.config = folder, config
        self.network = FakeNetwork(None)
        self.threads: list[threading.Thread] = []
        self.ends: dict[str, object] = {}
        self.said: list[str] = []
        self.up = threading.Event()

    @contextmanager
    def listen(self, server):
        self.network.service = server
        self.up.set()
        try:
            yield lambda count: self.said.append(f"{count} of {self.config.data.clients}")
        finally:
            self.network.service = None

    def part(self, number: int) -> Dataset:
        return part(self.config, number)

    def client(self, number: int | None, name: str = "", data: Dataset | None = None, **more) -> Client:
        name = name or f"c{number}"
        given = {"manners": QUICK, "number": number, **more}
        data = part(self.config, number or 0) if data is None else data
        return Client(self.network.channel(name), name, data, self.folder / f"home-{name}", **given)

    def start(self, client: Client, name: str) -> threading.Thread:
        def go() -> None:
            self.up.wait(60)
            try:
                self.ends[name] = client.run()
            except (FedloomError, Gone) as error:
                self.ends[name] = error

        thread = threading.Thread(target=go, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def serve(self, patience: Patience | None = None, **terms):
        given = Terms(patience or Patience(), **terms)
        run = host(self.config, self.folder / "run", self.listen, given, say=self.said.append)
        for thread in self.threads:
            thread.join(20)
        return run


class SecureWorld(World):
    """One whose clients have keys of their own; what they send is kept."""

    def __init__(self, folder, config: Config) -> None:
        super().__init__(folder, config)
        self.uploads: list[tuple[str, Upload]] = []

    def client(self, number: int | None, name: str = "", data: Dataset | None = None, **more) -> Client:
        name = name or f"c{number}"
        keys = Keys.at(self.folder / f"home-{name}" / "identity.key")
        made = super().client(number, name, data, keys=keys, **more)
        made._channel = channel = self.network.channel(name, keys.public)
        upload = channel.upload
        channel.upload = lambda update: (self.uploads.append((name, update)), upload(update))[1]
        return made

    def all(self, **more) -> list[Client]:
        """Make and start all clients."""
        made = [self.client(number, **more) for number in range(self.config.data.clients)]
        for number, client in enumerate(made):
            self.start(client, f"c{number}")
        return made

    def leg(self, client: Client, act) -> None:
        """Let ``act(task, step)`` happen before a client answers a step of a secure sum."""
        leg = client._leg
        client._leg = lambda task: (act(task, Step(task.facts["step"])), leg(task))[1]


@pytest.fixture
def secure(tmp_path):
    def make(**given) -> SecureWorld:
        return SecureWorld(tmp_path, Config.of(**(SMALL | {"secure_aggregation": "sum"} | given)))

    return make


@pytest.fixture
def world(tmp_path):
    def make(**given) -> World:
        return World(tmp_path, Config.of(**(SMALL | given)))

    return make


@pytest.fixture
def tools():
    return SimpleNamespace(part=part, vector=vector, small=SMALL, quick=QUICK, gone=Gone)


@pytest.fixture
def process():
    """What a command runs in."""
    return Process


@pytest.fixture
def started(tmp_path, process):
    made = []

    def start(name, *arguments) -> Process:
        made.append(process(tmp_path, name, *arguments))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)


@pytest.fixture
def net(tmp_path):
    made = Net(tmp_path)
    yield made
    made.close()


@pytest.fixture
def plain(tmp_path):
    made = Net(tmp_path, tls=False)
    yield made
    made.close()


@pytest.fixture(params=["fake", "grpc"])
def pair(request, tmp_path):
    """A service, and a client's channel to it."""
    if request.param == "fake":
        desk = Desk()
        yield desk, FakeNetwork(desk).channel("ana")
        return
    made = Net(tmp_path)
    yield made.desk, made.join("ana")
    made.close()
