"""Fuzz: what a secure sum reads from the network and from its disk."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.deploy.protocol.messages import Task, Upload, decode, encode
from fedloom.deploy.sealing import begun as begins
from fedloom.deploy.sealing import journal
from fedloom.deploy.sealing.begun import Begun, Gone, closed_from_bytes, closed_to_bytes
from fedloom.deploy.sealing.legs import SECURE, Leg
from fedloom.errors import DataError
from fedloom.privacy.secagg import Config, Step
from fedloom.records import ClientFailure, ClientUpdate

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(["step", "session", "cohort", "nonce", "other"])
LEGS = st.builds(
    lambda step, session, data, cohort, nonce: (
        Leg(step, session, data, cohort, nonce) if step is Step.ADVERTISE else Leg(step, session, data)
    ),
    st.sampled_from(Step),
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=50),
    st.lists(st.integers(0, 1 << 40), max_size=5).map(tuple),
    st.binary(min_size=32, max_size=32),
)


@given(LEGS)
def test_a_leg_arrives_as_it_was_sent(leg):
    assert Leg.read(decode(encode(leg.task(3, 0)), Task)) == leg
    found = Leg.read(decode(encode(leg.upload(3, 0)), Upload))
    assert (found.step, found.session, found.data) == (leg.step, leg.session, leg.data)


@given(st.dictionaries(NAMES, JSON), st.booleans())
def test_facts_that_are_no_leg_are_refused(facts, up):
    said = Upload(1, task=SECURE, facts=facts) if up else Task(SECURE, 1, facts=facts)
    try:
        found = Leg.read(said)
    except DataError:
        return
    assert len(found.session) == 16
    assert found.step in Step


def beginning() -> Begun:
    config = Config.of(bytes(range(16)), 3, 2, 10, identities=(b"a" * 32, b"b" * 32))
    metrics, kept = {"loss": 1 / 3, "before": float("nan")}, {"turn": torch.tensor([3, 0])}
    ready = ClientUpdate("client_4", torch.zeros(10), 1.0, 5, metrics, kept=kept)
    results = {4: ready, 1: ClientFailure("client_1", "gone", "late"), 2: begins.placeholder("client_2", 10, 7, {})}
    return Begun(config, b"n" * 32, (4, 2), results)


def test_a_beginning_is_read_as_it_was_written():
    made = beginning()
    found = Begun.from_bytes(made.to_bytes(), 10)
    assert (found.config, found.nonce, found.cohort, list(found.results)) == (
        made.config,
        made.nonce,
        (4, 2),
        [4, 1, 2],
    )
    assert found.results[1] == made.results[1]
    assert found.results[4].metrics["loss"] == 1 / 3
    assert found.results[4].kept["turn"].tolist() == [3, 0]
    assert found.results[4].delta.shape == (10,)
    assert found.results[2].kept is None


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_beginning_is_a_data_error(data):
    rows = json.loads(beginning().to_bytes())
    place = data.draw(st.sampled_from(["config", "nonce", "cohort", "results"]))
    rows[place] = data.draw(JSON)
    text = json.dumps(rows).encode()
    if data.draw(st.booleans()):
        text = text[: data.draw(st.integers(0, len(text)))]
    try:
        found = Begun.from_bytes(text, 10)
    except DataError:
        return
    assert set(found.cohort) <= set(found.results)


@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_the_end_of_a_step_is_one_or_a_data_error(data):
    try:
        step, _ = closed_from_bytes(data)
    except DataError:
        return
    assert step in Step


def test_the_end_of_a_step_is_read_as_it_was_written():
    gone = {3: Gone("late", "it was slow"), 0: Gone("dropped", "it left")}
    assert closed_from_bytes(closed_to_bytes(Step.MASK, gone)) == (Step.MASK, gone)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "a.journal"
    file = journal.Journal(path)
    for kind, data in ((1, b"begin"), (2, b""), (2, bytes(range(100))), (3, b"end")):
        file.add(kind, data)
    file.close()
    return path, path.read_bytes(), [(e.kind, e.data, e.end) for e in journal.read(path)]


@settings(max_examples=150)
@given(st.data())
def test_a_journal_that_was_damaged_is_the_beginning_of_what_it_was(written, data):
    path, whole, entries = written
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(whole)))
    other = path.with_name("b.journal")
    other.write_bytes(changed[:cut] + data.draw(st.binary(max_size=40)))
    found = [(e.kind, e.data, e.end) for e in journal.read(other)]
    assert found == entries[: len(found)]
    assert len(entries) == 4


def test_a_journal_of_entries_that_were_moved_is_cut(written):
    path, whole, entries = written
    first, second = entries[0][2], entries[1][2]
    other = path.with_name("c.journal")
    other.write_bytes(whole[first:second] + whole[:first])
    assert list(journal.read(other)) == []
    other.write_bytes(whole[:first] * 2)
    assert len(list(journal.read(other))) == 1
