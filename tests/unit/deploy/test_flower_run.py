"""A run over Flower's messages, without a SuperLink: the bits of the simulation, and what goes wrong on the way."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedloom import events as log
from fedloom.config import Config
from fedloom.deploy.flower import consent
from fedloom.deploy.flower.consent import Node
from fedloom.deploy.serving.desk import Desk
from fedloom.deploy.serving.host import Terms
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.identity import Keys
from fedloom.errors import NetworkError, UsageError
from fedloom.simulation.simulate import simulate

flower = pytest.importorskip("flwr.app")
from flwr.serverapp import Grid  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402 - Flower's processes know who they are

from fedloom.deploy.flower import app, courier  # noqa: E402
from fedloom.deploy.flower.letters import Letter  # noqa: E402
from fedloom.deploy.flower.node import UPLOAD  # noqa: E402

PACE = 0.01
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class Here(Grid):
    """A grid in this process; every message goes through Flower's own bytes, and is answered in a thread."""

    def __init__(self, client_app, folders) -> None:
        self.client_app, self.folders = client_app, dict(folders)
        self.away: set[int] = set()
        self.lost = lambda node, message: False
        self.changed = lambda node, message, reply: reply
        self.count, self.sent, self.answers = 0, [], {}
        self.threads = ThreadPoolExecutor(4)
        self.lock = threading.Lock()

    def set_run(self, run) -> None:
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def get_node_ids(self):
        return [node for node in self.folders if node not in self.away]

    def push_messages(self, messages):
        return [self.push(message) for message in messages]

    def push(self, message) -> str:
        with self.lock:
            self.count += 1
            name = f"m{self.count}"
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = name
        self.sent.append((node, message))
        if not self.lost(node, message):
            self.threads.submit(self.answer, node, name, message)
        return name

    def answer(self, node, name, message) -> None:
        config = {app.STATE: str(self.folders[node])}
        context = flower.Context(1, node, config, flower.RecordDict(), {})
        try:
            reply = self.client_app(again(message), context)
        except Exception as error:  # as Flower does
            reply = flower.Message(flower.Error(2, str(error)), reply_to=message)
        self.answers[name] = self.changed(node, message, again(reply))

    def pull_messages(self, message_ids):
        return [self.answers.pop(name) for name in list(message_ids) if name in self.answers]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def again(message):
    """Return a message with its content as it arrives: from its bytes."""
    if message.has_content():
        message.content = inflated(message.content)
    return message


def inflated(records):
    made = flower.RecordDict()
    for name, record in records.items():
        children = {
            key: type(child).inflate(child.deflate(), _deep(child)) for key, child in (record.children or {}).items()
        }
        made[name] = type(record).inflate(record.deflate(), children or None)
    return made


def _deep(record):
    return {
        key: type(child).inflate(child.deflate(), _deep(child)) for key, child in (record.children or {}).items()
    } or None


class Fleet:
    """Nodes with folders of their own, and what a server says."""

    def __init__(self, folder: Path, config: Config, tools, agree: bool) -> None:
        self.folder, self.config, self.tools = folder, config, tools
        self.said: list[str] = []
        self.agreeing: list[threading.Thread] = []
        self.nodes = {100 + n: folder / f"node{n}" for n in range(config.data.clients)}
        for number, path in enumerate(self.nodes.values()):
            data = tools.part(config, number)
            np.savez(folder / f"part{number}.npz", x=data.x, y=data.y)
            node = Node(str(folder / f"part{number}.npz"), f"c{number}", number, device="cpu", base=str(folder))
            if agree:
                self.join(path, node)
        self.grid = Here(app.client_app(), self.nodes)

    def join(self, path: Path, node: Node, yes=lambda found: True) -> None:
        def go() -> None:
            with suppress(NetworkError):  # a test that ends before a run has asked
                consent.enrol(path, node, yes, patience=30.0, say=lambda text: None)

        self.agreeing.append(threading.Thread(target=go, daemon=True))
        self.agreeing[-1].start()

    def serve(self, patience: Patience | None = None, **terms):
        told = app.settings(self.config, self.folder / "run", Terms(patience or Patience(), **terms))
        return app.run(self.grid, told, self.said.append, PACE)


@pytest.fixture
def fleet(tmp_path, tools, monkeypatch):
    from fedloom.deploy.flower import peers

    monkeypatch.setattr(peers, "FIRST", 0.1)
    monkeypatch.setattr(consent, "PAUSE", 0.05)

    def make(agree=True, **given) -> Fleet:
        return Fleet(tmp_path, Config.of(**(tools.small | given)), tools, agree)

    return make


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"algorithm": "scaffold", "rounds": 3, "sampling": "uniform", "per_round": 2, "clients": 4},
        {"compress": "topk:0.1 | int8", "compress_down": "float16", "rounds": 3},
        {"privacy": "central", "noise": 0.5, "noise_seed": 1},
        {"algorithm": "ditto", "holdout": 0.2, "rounds": 1},
    ],
    ids=["fedavg", "scaffold", "compressed", "private", "apart"],
)
def test_a_run_over_flower_has_the_bits_of_its_simulation(fleet, tools, tmp_path, given):
    made = fleet(**given)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    here = made.serve()
    assert torch.equal(tools.vector(here.model), tools.vector(there.model))
    assert [r.client_loss for r in here.records] == [r.client_loss for r in there.records]
    assert here.clients == there.clients
    assert [(r.bytes_up, r.bytes_down) for r in here.records] == [(r.bytes_up, r.bytes_down) for r in there.records]
    assert log.read(here.folder).rows[-1]["event"] == "end"


def reasons(run) -> list[str]:
    return [failure.reason for record in run.records for failure in record.failures]


def test_nothing_is_trained_before_a_nodes_owner_has_agreed(fleet, tools, tmp_path):
    made = fleet(agree=False, clients=1, rounds=1)
    seen = []
    path = tmp_path / "node100"
    made.grid.folders = {100: path}
    data = str(tmp_path / "part0.npz")

    def no(found) -> bool:
        seen.append((found.samples, (path / "sent.jsonl").exists(), len(types(made, "train"))))
        return False

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(consent.enrol, path, Node(data, "ana", 0), no, patience=30.0, say=lambda text: None)
        server = threading.Thread(target=made.serve, daemon=True)
        server.start()
        with pytest.raises(UsageError, match="you did not agree: nothing was sent"):
            going.result(30)
    assert seen == [(1438, False, 0)]
    assert types(made, "train") == []
    made.join(path, Node(data, "ana", 0))
    server.join(30)
    assert not server.is_alive()
    assert len(types(made, "train")) == 2  # a check, and one round
    agreed = json.loads((path / consent.AGREED).read_text())
    assert [terms["samples"] for terms in agreed.values()] == [1438]


def types(made, kind: str) -> list:
    return [message for _, message in made.grid.sent if message.metadata.message_type == kind]


def test_a_task_of_a_run_with_other_terms_is_refused(fleet, tmp_path):
    made = fleet(clients=1, rounds=2)
    node, once = made.nodes[100], []

    def forgets(node_id, message, reply):
        letter = Letter.read(reply.content)
        if letter.kind == "task" and not once:  # after its check, before round 1
            once.append(letter)
            terms = json.loads((node / consent.AGREED).read_text())
            for one in terms.values():
                one["tables"]["training"]["epochs"] = 2
            (node / consent.AGREED).write_text(json.dumps(terms))
        return reply

    made.grid.changed = forgets
    run = made.serve()
    assert [record.clients for record in run.records] == [0, 0]
    assert reasons(run)[0].startswith("client_0 (c0): you did not agree")
    assert "client_0 (c0) has left: you did not agree" in "\n".join(made.said)
    assert not (node / "sent.jsonl").exists()


@pytest.mark.parametrize("how", ["another's", "unsigned", "old", "changed"])
def test_an_answer_that_a_node_has_not_signed_does_not_count(fleet, how):
    made = fleet(rounds=1)
    kept = {}

    def forged(node, message, reply):
        letter = Letter.read(reply.content)
        if letter.kind != "task" or UPLOAD not in letter.parts:
            return reply
        before = kept.setdefault(node, letter)
        if node != 100 or before is letter:  # the check comes first, and passes
            return reply
        if how == "another's":
            stranger = Keys.make()
            letter = replace(letter, signature=b"").answered(stranger, letter.parts)
        elif how == "unsigned":
            letter = replace(letter, signature=bytes(64))
        elif how == "old":
            letter = before
        else:
            letter = replace(letter, parts={UPLOAD: before.parts[UPLOAD]})
        reply.content = letter.records()
        return reply

    made.grid.changed = forged
    run = made.serve()
    assert reasons(run) == ["client_0 (c0): its answer is not signed with its key"]
    assert run.records[0].clients == 2


def test_a_node_that_fails_is_a_failure_with_its_reason_and_the_round_goes_on(fleet):
    made = fleet(rounds=2)

    def breaks(node, message, reply):
        if node == 101 and reply.metadata.group_id == "1":
            return flower.Message(flower.Error(2, "no memory\nleft"), reply_to=message)
        return reply

    made.grid.changed = breaks
    run = made.serve()
    assert reasons(run) == ["client_1 (c1): Flower reports error 2: no memory left"]
    assert [record.clients for record in run.records] == [2, 3]


def test_a_node_that_does_not_answer_is_late_and_one_that_goes_is_lost(fleet):
    made = fleet(rounds=2)

    def lost(node, message) -> bool:
        if message.metadata.group_id == "2" and node == 102:
            made.grid.away.add(102)
        return (node, message.metadata.group_id) in ((101, "1"), (102, "2"))

    made.grid.lost = lost
    run = made.serve(Patience(deadline=3.0, away=1.0))
    first, second = (sorted(failure.reason for failure in record.failures) for record in run.records)
    assert "client_1 (c1) was not back within 3 s" in first  # others may be late, too, where the machine is busy
    assert any("client_2 (c2)" in reason for reason in second)
    lives = {m.metadata.ttl for m in types(made, "train") if m.metadata.group_id}
    assert max(lives) <= 3.0 + courier.GRACE


def test_a_node_that_has_lost_the_description_of_the_run_gets_it_again(fleet, tools, tmp_path):
    made = fleet(rounds=2)
    there = simulate(made.config, out=tmp_path / "there", progress=False)

    def forgets(node, message, reply):
        if reply.metadata.group_id == "1":
            for path in made.nodes[node].glob("welcome-*"):
                path.unlink()
        return reply

    made.grid.changed = forgets
    run = made.serve()
    assert torch.equal(tools.vector(run.model), tools.vector(there.model))
    assert all(list(path.glob("welcome-*")) for path in made.nodes.values())


def test_a_server_that_was_killed_goes_on_with_the_same_nodes(fleet, tools, tmp_path, monkeypatch):
    made = fleet(algorithm="scaffold", rounds=3)
    there = simulate(made.config, out=tmp_path / "there", progress=False)
    post = Desk.post

    def dies(desk, order, form):
        post(desk, order, form)
        if order.round == 2:
            raise Killed

    monkeypatch.setattr(Desk, "post", dies)
    with pytest.raises(Killed):
        made.serve()
    monkeypatch.setattr(Desk, "post", post)
    made.grid.folders = {
        node + 100: folder for node, folder in made.grid.folders.items()
    }  # Flower gives them new names
    run = made.serve()
    assert len(run.records) == 3
    assert torch.equal(tools.vector(run.model), tools.vector(there.model))


class Killed(BaseException):
    """What a kill looks like from inside."""


def test_two_nodes_with_one_folder_are_not_two_clients(fleet):
    made = fleet(clients=1, rounds=1)
    made.grid.folders[200] = made.grid.folders[100]
    run = made.serve()
    assert run.records[0].clients == 1
    assert any("which is there, too: each needs a folder of its own" in text for text in made.said)


def test_the_audit_log_names_who_was_asked_what(fleet):
    made = fleet(clients=1, rounds=1)
    run = made.serve()
    rows = [json.loads(line) for line in (run.folder / "audit.jsonl").read_text().splitlines()]
    assert [row["what"] for row in rows if row.get("round")] == ["asked train", "answered train"]
    assert all(row["client"] == "c0" and row["bytes"] > 4 * 55_210 for row in rows if row.get("round"))


def test_a_server_that_flower_does_not_listen_to_ends_itself(monkeypatch, tmp_path):
    class Deaf(Here):
        def get_node_ids(self):
            raise ConnectionError("stopped by its user")

    monkeypatch.setattr(courier, "DEAF", 0.05)
    said, over = [], threading.Event()
    grid = Deaf(None, {})
    made = courier.Courier(grid, None, Admission(tmp_path / "a.json"), said.append, pace=PACE, end=over.set)
    with made.running():
        assert over.wait(20)
    assert said[0] == "no message can be carried now (ConnectionError: stopped by its user); trying again"
    assert said[-1].startswith("Flower has carried nothing for")


def test_secure_aggregation_is_refused(fleet):
    with pytest.raises(UsageError, match="secure aggregation does not go over Flower"):
        fleet(agree=False, secure_aggregation="protocol").serve()
