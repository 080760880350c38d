"""Messages: what is sent arrives, and bytes that are none are a DataError and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.deploy.protocol import messages, wire
from fedloom.deploy.protocol.messages import (
    KINDS,
    Beat,
    Hello,
    Leave,
    Nothing,
    Open,
    Opened,
    Poll,
    Receipt,
    Task,
    Upload,
    Welcome,
    decode,
    encode,
)
from fedloom.errors import DataError

VECTOR = torch.arange(5, dtype=torch.float32)
SAMPLES = {
    Hello: Hello("ana", "0.1", 600, {"shape": [28, 28], "classes": 10}),
    Welcome: Welcome(3, 30, "run", {"run": {"rounds": 3}}, {"kind": "zoo"}, {"start": VECTOR}, {"unlabelled": b"abc"}),
    Task: Task("train", 7, 1, VECTOR, b"", {"c": VECTOR * 2}, 0.1, 60.0, 2, 1, "go", {"x": [1, None]}),
    Upload: Upload(7, 1, "train", None, b"codec", {"c": VECTOR}, 600.0, 20, {"loss": 0.5}, 20, "", "", {}),
    Receipt: Receipt(False, "too late", True),
    Poll: Poll(20.0),
    Beat: Beat("training round 7"),
    Leave: Leave("over"),
    Nothing: Nothing(),
    Open: Open(bytes(32), b"k" * 32, "ana", bytes(16)),
    Opened: Opened(b"s" * 16, "ana"),
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def sealed(data: bytes) -> bytes:
    """Bytes with a checksum that is right, so that what is wrong with them is found behind it."""
    return data + hashlib.sha256(data).digest()


def made(kind: int, head: object, body: bytes = b"") -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return sealed(wire.HEAD.pack(b"FLNW", 1, kind, 0, len(text), 0, len(body)) + text + body)


def test_there_is_a_sample_of_every_message():
    assert set(SAMPLES) == set(KINDS.values())


@pytest.mark.parametrize("cls", KINDS.values(), ids=lambda c: c.__name__)
def test_what_is_sent_arrives(cls):
    data = encode(SAMPLES[cls])
    for found in (decode(data, cls), decode(bytearray(data), cls)):
        assert all(same(getattr(found, name), value) for name, value in vars(SAMPLES[cls]).items())


@pytest.mark.parametrize("dtype", list(wire._DTYPES.values()), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_every_type_and_shape_arrives(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    found = decode(encode(Task("train", extra={"": tensor, "b": tensor[..., :1] if shape else tensor})), Task)
    assert same(found.extra[""], tensor)


@given(
    st.lists(st.floats(width=32), max_size=50),
    st.dictionaries(st.text(max_size=5).filter(lambda t: t.isascii()), st.floats(), max_size=3),
    st.binary(max_size=200),
)
@settings(max_examples=50, deadline=None)
def test_any_numbers_arrive_bit_by_bit(numbers, metrics, blob):
    delta = torch.tensor(numbers, dtype=torch.float32)
    found = decode(encode(Upload(1, delta=delta, metrics=metrics, encoded=blob)), Upload)
    assert found.delta.view(torch.int32).tolist() == delta.view(torch.int32).tolist()
    assert found.encoded == blob
    assert {k: repr(v) for k, v in found.metrics.items()} == {k: repr(v) for k, v in metrics.items()}


def test_golden_bytes():
    data = encode(Upload(1, delta=torch.tensor([1.0, -2.0])))
    assert data[:8] == b"FLNW\x01\x04\x00\x00"
    head, zero, body = struct.unpack_from("<IIQ", data, 8)
    assert (zero, body, (24 + head) % 64) == (0, 64, 0)
    assert data[24 + head : 24 + head + 8] == struct.pack("<ff", 1.0, -2.0)
    assert json.loads(data[24 : 24 + head])["arrays"] == [["delta", "", "float32", [2]]]
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]


def test_vectors_are_not_copied():
    delta = torch.ones(1000)
    parts = messages.pieces(Upload(1, delta=delta))
    delta[0] = 7.0
    assert any(bytes(part[:4]) == struct.pack("<f", 7.0) for part in parts)
    data = bytearray(encode(Upload(1, delta=delta)))
    found = decode(data, Upload).delta
    start = data.index(struct.pack("<f", 7.0))
    data[start : start + 4] = struct.pack("<f", 8.0)
    assert found[0] == 8.0


def test_nan_is_a_number_and_a_terminal_is_not_driven():
    found = decode(encode(Upload(1, weight=math.nan, reason="a\x1b[31mb\nc" + "x" * 5000)), Upload)
    assert math.isnan(found.weight)
    assert found.reason.startswith("a [31mb\nc")
    assert len(found.reason) == 2000


@pytest.mark.parametrize(
    "message",
    [
        Hello("ana\x1b"),
        Hello("a\nb"),
        Hello("x" * 65),
        Hello("ana", samples=-1),
        Task("train", round=True),
        Task("train", facts={"x": object()}),
        Task("train", facts={"x": "\ud800"}),
        Task("train", extra={"a": torch.ones(2, dtype=torch.complex64)}),
        Upload(1, facts={"x": "a" * (5 << 20)}),
    ],
)
def test_what_cannot_be_sent_is_refused(message):
    with pytest.raises(DataError):
        encode(message)


ROW = ["delta", "", "float32", [2]]
FACTS = {"round": 1}


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"", b""),
        (b"\xff", b""),
        (b"[" * 100_000, b""),
        (b'{"facts": {"round": 1, "reason": "\\ud800"}, "arrays": []}', b""),
        (b'{"facts": {"round": ' + b"9" * 5000 + b'}, "arrays": []}', b""),
        ([], b""),
        ({"facts": FACTS}, b""),
        ({"facts": [], "arrays": []}, b""),
        ({"facts": {}, "arrays": []}, b""),
        ({"facts": {"round": "1"}, "arrays": []}, b""),
        ({"facts": {"round": 1.0}, "arrays": []}, b""),
        ({"facts": {"round": 2**60}, "arrays": []}, b""),
        ({"facts": {"round": 1, "weight": 10**400}, "arrays": []}, b""),
        ({"facts": {"round": 1, "reason": "\x1b"}, "arrays": []}, b""),
        ({"facts": {"round": 1, "unheard": 1}, "arrays": []}, b""),
        ({"facts": {"round": 1, "delta": 1}, "arrays": []}, b""),
        ({"facts": {"round": 1, "metrics": {"a": "b"}}, "arrays": []}, b""),
        ({"facts": FACTS, "arrays": [ROW]}, b""),
        ({"facts": FACTS, "arrays": [ROW]}, bytes(8) + b"\x01" + bytes(55)),
        ({"facts": FACTS, "arrays": [ROW]}, bytes(128)),
        ({"facts": FACTS, "arrays": [ROW, ROW]}, bytes(128)),
        ({"facts": FACTS, "arrays": [["delta", "x", "float32", [2]]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["round", "", "float32", [2]]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["delta", "", "bytes", [2]]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["encoded", "", "bytes", []]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["delta", "", "object", [2]]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["delta", "", "float32", [-2]]]}, b""),
        ({"facts": FACTS, "arrays": [["delta", "", "float32", [True]]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["delta", "", "float32", [0, 2**70]]]}, b""),
        ({"facts": FACTS, "arrays": [["delta", "", "float32", [0, 2**40, 2**40]]]}, b""),
        ({"facts": FACTS, "arrays": [["delta", "", "float32", [0] * 100]]}, b""),
        ({"facts": FACTS, "arrays": [["delta", "", "float32", [2**38]]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["delta", "", "bool", [2]]]}, b"\x02" + bytes(63)),
        ({"facts": FACTS, "arrays": [["delta", "", [], [2]]]}, bytes(64)),
        ({"facts": FACTS, "arrays": [["extra", str(i), "float32", [0]] for i in range(5000)]}, b""),
        ({"facts": FACTS, "arrays": 3}, b""),
        ({"facts": FACTS, "arrays": [3]}, b""),
    ],
)
def test_a_made_up_message_with_a_right_checksum_is_refused(head, body):
    with pytest.raises(DataError):
        decode(made(4, head, body), Upload)


def test_the_made_up_messages_above_are_wrong_for_the_reason_that_they_name():
    assert decode(made(4, {"facts": FACTS, "arrays": [ROW]}, bytes(64)), Upload).delta.tolist() == [0.0, 0.0]


def test_an_announced_size_takes_no_memory():
    data = sealed(wire.HEAD.pack(b"FLNW", 1, 4, 0, 40, 0, 1 << 40) + b"{}")
    tracemalloc.start()
    with pytest.raises(DataError, match="announced"):
        decode(data, Upload)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("cls", KINDS.values(), ids=lambda c: c.__name__)
def test_another_message_is_refused(cls):
    other = Nothing if cls is not Nothing else Beat
    with pytest.raises(DataError, match="expected the message"):
        decode(encode(SAMPLES[other]), cls)


@given(st.sampled_from(list(KINDS.values())), st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_noise_is_refused(cls, data):
    for bad in (data, sealed(data), b"FLNW" + data, made(3, data)):
        with pytest.raises(DataError):
            decode(bad, cls)


@given(st.sampled_from(list(KINDS.values())), st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_and_behind_the_checksum_never_crash(cls, data):
    whole = encode(SAMPLES[cls])
    bad = bytearray(whole[:-32])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(bad) - 1))
        bad[place] = data.draw(st.integers(0, 255))
    if bytes(bad) != whole[:-32]:
        with pytest.raises(DataError):
            decode(bytes(bad) + whole[-32:], cls)
    with contextlib.suppress(DataError):
        assert isinstance(decode(sealed(bytes(bad)), cls), cls)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DataError):
        decode(whole[:cut], cls)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 50), st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_chunks_are_the_whole_in_order(parts, size, skip):
    found = list(wire.chunks(parts, size, skip))
    assert b"".join(found) == b"".join(parts)[skip:]
    assert all(len(c) == size for c in found[:-1])
    assert all(0 < len(c) <= size for c in found)
