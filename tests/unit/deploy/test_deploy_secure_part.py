"""What a client insists on before anything of its update leaves it, whatever the server asks for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedloom.algorithms.sealed import SEALED
from fedloom.deploy.joining.memory import Memory
from fedloom.deploy.protocol.messages import TRAIN, Task
from fedloom.deploy.sealing.legs import Leg, broadcast_of, session_of
from fedloom.deploy.sealing.part import NOTES, Part, Terms
from fedloom.deploy.trust.identity import Keys
from fedloom.errors import DataError, UsageError
from fedloom.privacy.secagg import Config, Server, Step, plan
from fedloom.records import ClientUpdate

pytest.importorskip("cryptography")
RUN, SIZE, BITS, DROPOUTS = "run-1", 40, 24, 0.2


class Group:
    """Clients of a run, and a server that may lie."""

    def __init__(self, folder, count: int = 5, least: int = 3) -> None:
        self.folder, self.count, self.least = folder, count, least
        self.keys = [Keys.make() for _ in range(count)]
        chance = np.random.default_rng(0)
        self.vectors = [chance.integers(0, 1 << BITS, SIZE, dtype=np.uint32) for _ in range(count)]
        self.said: list[str] = []
        self.parts = [self.part(number) for number in range(count)]

    def part(self, number: int) -> Part:
        """Return a client as it is when it was just started."""
        known, keys = tuple(key.public for key in self.keys), self.keys[number]
        terms = Terms(RUN, number, known, BITS, DROPOUTS, self.least)
        return Part(terms, keys.private, keys.public, self.memory(number), self.said.append)

    def memory(self, number: int) -> Memory:
        return Memory(self.folder / str(number))

    def task(self, number: int, lr: float = 0.1) -> Task:
        return Task(TRAIN, number, vector=torch.full((7,), float(number)), lr=lr)

    def train(self, number: int, lr: float = 0.1) -> bytes:
        """Let all be ready in a round; returns what they were sent."""
        task = self.task(number, lr)
        for i, part in enumerate(self.parts):
            extra = {SEALED: torch.from_numpy(self.vectors[i].view(np.int32))}
            self.memory(i).save(task, ClientUpdate(f"client_{i}", torch.zeros(0), 1.0, 1, extra=extra))
            part.ready(task)
        return broadcast_of(task)

    def config(self, number: int, broadcast: bytes, nonce: bytes = bytes(32), n: int = 0, **other) -> Config:
        n = n or self.count
        made = plan(n, DROPOUTS)
        given = {"neighbours": made.neighbours, "threshold": made.threshold, "minimum": made.minimum, "bits": BITS}
        given |= {"identities": tuple(key.public for key in self.keys[:n]), "round": number, "size": SIZE}
        return Config(**{"session": session_of(RUN, number, nonce, broadcast), "clients": n, **given, **other})

    def first(self, config: Config, cohort=None, nonce: bytes = bytes(32)) -> Task:
        cohort = tuple(range(config.clients)) if cohort is None else cohort
        return Leg(Step.ADVERTISE, config.session, config.to_bytes(), cohort, nonce).task(config.round, 0)


@pytest.fixture
def group(tmp_path):
    return Group(tmp_path)


def play(group: Group, config: Config, until: Step = Step.REVEAL) -> tuple[Server, dict[int, Task]]:
    """Run a sum up to a step; returns the server, and what it asks for next."""
    server = Server(config)
    tasks = dict.fromkeys(range(config.clients), group.first(config))
    for step in [step for step in Step if step <= until]:
        for i, task in tasks.items():
            answer = group.parts[i].answer(task)
            assert not answer.failure, answer.reason
            server.receive(answer.encoded)
        inbox = server.advance()
        if step < Step.REVEAL:
            tasks = {i: Leg(Step(step + 1), config.session, data).task(config.round, 0) for i, data in inbox.items()}
    return server, tasks


def test_clients_that_are_asked_for_what_they_agreed_to_make_the_sum(group):
    for number in (1, 2):
        config = group.config(number, group.train(number))
        server, _ = play(group, config)
        assert np.array_equal(server.finish(), sum(group.vectors) & ((1 << BITS) - 1))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"minimum": 3, "threshold": 3, "n": 4}, "4 were agreed to"),
        ({"minimum": 4, "threshold": 4}, "in another way"),
        ({"bits": 32}, "other numbers"),
        ({"size": SIZE + 1}, "other numbers"),
        ({"identities": ()}, "keys in the secure sum"),
        ({"session": bytes(16)}, "others had another one"),
        ({"round": 2}, "of another round"),
    ],
    ids=["fewer", "threshold", "bits", "size", "unsigned", "session", "round"],
)
def test_a_sum_that_hides_less_is_refused(tmp_path, other, words):
    group = Group(tmp_path, least=4)
    good = {"minimum": 4} | other
    config = group.config(1, group.train(1), **{"round": 1} | good) if "round" not in other else None
    if config is None:
        config = replace(group.config(1, group.train(1), minimum=4), round=2)
        asked = replace(group.first(config), round=1)
    else:
        asked = group.first(config)
    answer = group.parts[0].answer(asked)
    assert words in answer.reason
    assert (answer.encoded, answer.failure) == (b"", "dropped")


def test_the_planned_minimum_of_the_cohort_counts_even_where_less_was_agreed_to(tmp_path):
    group = Group(tmp_path, count=5, least=2)
    config = group.config(1, group.train(1))
    assert config.minimum == 3
    assert not group.parts[0].answer(group.first(config)).failure
    # A configuration cannot even say less than a majority.
    with pytest.raises(UsageError, match="above half of"):
        group.config(1, bytes(32), minimum=2, threshold=2)


def test_a_sum_of_one_is_refused(group):
    data = bytearray(group.config(1, group.train(1)).to_bytes())
    data[28:32] = (1).to_bytes(4, "little")
    one = bytes(data[:52]) + group.keys[0].public
    for cohort in ((0,), (0, 0)):
        asked = Leg(Step.ADVERTISE, bytes(16), one, cohort, bytes(32)).task(1, 0)
        answer = group.parts[0].answer(asked)
        assert "from 2 to" in answer.reason
        assert not answer.encoded


@pytest.mark.parametrize("cohort", [(1, 0, 2, 3, 4), (1, 2, 3, 4, 9), (0, 1, 2), (0, 0, 2, 3, 4)])
def test_a_cohort_of_others_than_take_part_is_refused(group, cohort):
    config = group.config(1, group.train(1))
    answer = group.parts[0].answer(group.first(config, cohort))
    assert "in the secure sum" in answer.reason
    assert not answer.encoded


def test_invented_clients_are_refused_with_their_keys(group):
    config = group.config(1, group.train(1))
    invented = tuple(Keys.make().public for _ in range(4))
    config = replace(config, identities=(group.keys[0].public, *invented))
    assert "not those of the clients" in group.parts[0].answer(group.first(config)).reason


def test_the_clients_of_a_run_are_those_that_it_began_with(group):
    group.keys[3] = Keys.make()
    with pytest.raises(UsageError, match="changed who takes part"):
        group.part(0)
    group.keys[0] = Keys.make()
    known = tuple(key.public for key in group.keys[1:])
    with pytest.raises(UsageError, match="does not have this one"):
        Part(
            Terms(RUN, 0, known, BITS, DROPOUTS, 3), group.keys[0].private, group.keys[0].public, group.memory(9), print
        )


def test_clients_that_were_sent_different_models_are_in_no_sum_together(group):
    broadcast = group.train(1)
    other = replace(group.task(1), vector=torch.zeros(7))
    group.parts[4].ready(other)
    asked = group.first(group.config(1, broadcast))
    assert [bool(part.answer(asked).failure) for part in group.parts] == [False] * 4 + [True]
    assert broadcast_of(other) != broadcast
    assert broadcast_of(replace(group.task(1), lr=0.2)) != broadcast
    assert broadcast_of(replace(group.task(1), extra={"control": torch.zeros(2)})) != broadcast


def test_a_message_that_is_asked_for_again_is_the_same_one(group):
    config = group.config(1, group.train(1))
    _, tasks = play(group, config, Step.SHARE)
    first = group.parts[0].answer(tasks[0])
    assert first.encoded
    assert group.parts[0].answer(tasks[0]) == first
    assert group.parts[0].answer(group.first(config)).failure  # an earlier step: it would mask anew


@pytest.mark.parametrize("killed", [False, True])
def test_an_update_is_masked_once_per_round(group, killed):
    config = group.config(1, group.train(1))
    _, tasks = play(group, config, Step.SHARE)
    assert group.parts[0].answer(tasks[0]).encoded
    assert json.loads((group.folder / "0" / NOTES).read_text())["masked"] == 1
    if killed:
        group.parts[0] = group.part(0)
        assert "keys were in memory" in group.parts[0].answer(tasks[0]).reason
    broadcast = group.train(1)
    nonce = b"\x01" * 32
    again = group.parts[0].answer(group.first(group.config(1, broadcast, nonce), nonce=nonce))
    assert "two would show its update" in again.reason
    assert not again.encoded
    # A new learning rate makes another update of the same round: no, too.
    broadcast = group.train(1, lr=0.7)
    assert group.parts[0].answer(group.first(group.config(1, broadcast))).failure
    group.parts[1].answer(tasks[1])
    fresh = group.config(2, group.train(2))
    assert not group.parts[0].answer(group.first(fresh)).failure


def test_what_leaves_is_written_down_first(group, monkeypatch):
    config = group.config(1, group.train(1))
    _, tasks = play(group, config, Step.SHARE)
    from fedloom.errors import StorageError

    def full(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr("fedloom.files.write_json", full)
    answer = group.parts[0].answer(tasks[0])
    assert (answer.encoded, answer.reason) == (b"", "the disk is full")


def test_secrets_are_on_no_disk(group):
    _, tasks = play(group, group.config(1, group.train(1)), Step.MASK)
    secrets = [getattr(group.parts[0]._core, name) for name in ("_mask_secret", "_share_secret", "_seed")]
    for path in (path for path in group.folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert not any(secret in data or secret.hex().encode() in data for secret in secrets)
    assert tasks


@pytest.mark.parametrize("text", ['{"masked": -1}', '{"masked": "1"}', '{"turn": 3}', "[]", '{"broadcast": "x"}'])
def test_damaged_notes_are_no_reason_to_send_again(group, text):
    (group.folder / "0" / NOTES).write_text(text)
    asked = group.first(group.config(1, bytes(32)))
    assert not group.parts[0].answer(asked).encoded
    with pytest.raises(DataError):
        group.part(0)


def test_a_client_that_is_not_ready_says_so(group):
    config = group.config(3, group.train(1))
    assert "no update of round 3" in group.parts[0].answer(group.first(config)).reason
