"""The messages as bytes: golden ones, and decoders that bear everything."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.errors import DataError
from fedloom.privacy.secagg import messages
from fedloom.privacy.secagg.envelope import EVERYBODY

HEAD = {"session": bytes(range(16)), "round": 7, "client": 2, "seal": b"s" * 64}
EVERY = [
    messages.Advertise(**HEAD, mask_key=b"m" * 32, share_key=b"k" * 32),
    messages.Roster(**HEAD, entries=((0, b"a" * 32, b"b" * 32, b"c" * 64), (5, b"d" * 32, b"e" * 32, b"f" * 64))),
    messages.Shares(**HEAD, commitment=b"h" * 32, entries=((1, b"x" * 82), (3, b"y" * 82))),
    messages.Delivery(**HEAD, entries=((1, b"x" * 82),)),
    messages.Masked(**HEAD, payload=b"abc"),
    messages.Survivors(**HEAD, alive=(0, 2), dropped=(1,)),
    messages.Agreed(**HEAD, alive=(0, 2), dropped=(1,)),
    messages.Agreement(**HEAD, entries=((0, b"p" * 64), (2, b"q" * 64))),
    messages.Reveal(**HEAD, seeds=((0, b"z" * 33),), keys=((1, b"w" * 33),)),
]
NAMES = [type(m).__name__ for m in EVERY]
GOLDEN = {
    "Advertise": "8fcce0f0cf19c479",
    "Roster": "170eefaf7dac0597",
    "Shares": "ff3d4511bfe9253e",
    "Delivery": "c314b086ca36237a",
    "Masked": "572d043917085459",
    "Survivors": "2706e8f40c02efd4",
    "Agreed": "849c8c1bf81c007b",
    "Agreement": "ca0d9ca790ab69c0",
    "Reveal": "b5be66057f82c793",
}


@pytest.mark.parametrize("message", EVERY, ids=NAMES)
def test_a_message_comes_back_as_it_was(message):
    assert type(message).from_bytes(message.to_bytes()) == message
    everybody = replace(message, client=EVERYBODY)
    assert type(message).from_bytes(everybody.to_bytes()) == everybody


@pytest.mark.parametrize("message", EVERY, ids=NAMES)
def test_the_bytes_stay_what_they_are(message):
    data = message.to_bytes()
    assert data[:32] == b"FLSA\x01" + bytes([message.kind, 0, 0]) + bytes(range(16)) + b"\7\0\0\0\2\0\0\0"
    assert hashlib.sha256(data).hexdigest()[:16] == GOLDEN[type(message).__name__]


@pytest.mark.parametrize("message", EVERY, ids=NAMES)
def test_every_shorter_message_is_refused_or_another_one(message):
    data = message.to_bytes()
    for length in range(len(data)):
        check(type(message), data[:length])


def check(kind, data: bytes) -> None:
    try:
        found = kind.from_bytes(data)
    except DataError:
        return
    assert found.to_bytes() == data


@pytest.mark.parametrize("message", EVERY, ids=NAMES)
@settings(deadline=None)
@given(data=st.data())
def test_any_bytes_give_a_message_or_a_data_error(message, data):
    good = message.to_bytes()
    tail = data.draw(st.binary(max_size=300))
    check(type(message), tail)
    check(type(message), good[:32] + tail)
    place, value = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 255))
    check(type(message), good[:place] + bytes([value]) + good[place + 1 :])


@pytest.mark.parametrize("message", EVERY, ids=NAMES)
def test_a_decoder_makes_nothing_larger_than_what_it_was_given(message):
    data = message.to_bytes()[:32] + b"\xff" * 4 + bytes(200)
    tracemalloc.start()
    check(type(message), data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda b: b[:50], "has 96 bytes or more: 50"),
        (lambda b: b"XXXX" + b[4:], "no message"),
        (lambda b: b[:4] + b"\2" + b[5:], "another version"),
        (lambda b: b[:5] + b"\3" + b[6:], r"expected the message Advertise \(kind 1\), found kind 3"),
        (lambda b: b[:6] + b"\1" + b[7:], "no message"),
        (lambda b: b[:28] + b"\0\0\1\0" + b[32:], "no client 65536"),
        (lambda b: b + b"\0", "64 bytes of keys, found 65"),
    ],
)
def test_what_is_wrong_is_said(change, text):
    with pytest.raises(DataError, match=text):
        messages.Advertise.from_bytes(change(EVERY[0].to_bytes()))


def test_clients_are_named_once_and_in_order():
    for entries in (((3, b"x" * 82), (1, b"y" * 82)), ((1, b"x" * 82), (1, b"y" * 82))):
        with pytest.raises(DataError, match="once each, in rising order"):
            messages.Delivery.from_bytes(messages.Delivery(**HEAD, entries=entries).to_bytes())
