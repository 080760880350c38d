"""Calls over gRPC that were recorded, changed, forged, repeated or are too many."""

from __future__ import annotations

import collections
import itertools
import threading
import time

import grpc
import pytest
import torch
from loopback import BIG, VECTOR, Net, Raw

from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.protocol import messages
from fedloom.deploy.protocol.messages import Beat, Hello, Poll, Receipt, Upload, decode
from fedloom.deploy.seam import Refused, Unreachable
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.frames import PLACE
from fedloom.deploy.trust.identity import Keys

BEAT = messages.encode(Beat("hello"))


def test_a_recorded_call_is_refused(plain):
    raw = Raw(plain)
    request = raw.head(frames.BEAT, BEAT) + BEAT
    raw.call("Ask", request)
    raw.refused("Ask", request, "second time")
    assert len(plain.desk.calls) == 1
    data = messages.encode(Upload(1, delta=VECTOR))
    push = [raw.head(frames.UPLOAD, data) + PLACE.pack(0), frames.chunk(0, data)]
    assert decode(raw.call("Push", push), Receipt).accepted
    raw.refused("Push", push, "second time")
    assert len(plain.desk.calls) == 2


def test_one_client_cannot_speak_for_another(plain):
    raw, bob = Raw(plain), Keys.make()
    bobs = plain.join("bob", bob).open()
    raw.refused("Ask", raw.head(frames.BEAT, BEAT, keys=bob) + BEAT, "signature")
    raw.refused("Ask", raw.head(frames.BEAT, BEAT, session=bobs) + BEAT, "signature")
    raw.refused("Ask", raw.head(frames.BEAT, BEAT, session=bytes(16)) + BEAT, "session is unknown")
    raw.call("Ask", raw.head(frames.BEAT, BEAT, session=bobs, keys=bob) + BEAT)
    assert [name for _, name, *_ in plain.desk.calls] == ["bob"]
    plain.join("cleo").register(Hello("ana"))  # what a message says of its sender counts for nothing
    assert plain.desk.calls[-1][1] == "cleo"


def test_a_changed_or_wrong_message_is_refused(plain):
    raw = Raw(plain)
    other = messages.encode(Beat("hellO"))
    raw.refused("Ask", raw.head(frames.BEAT, BEAT) + other, "not the one that was signed")
    raw.refused("Ask", raw.head(frames.BEAT, BEAT) + BEAT + b"x", "not the one that was signed")
    raw.refused("Ask", raw.head(frames.UPLOAD, BEAT) + BEAT, "signature")
    raw.refused("Ask", raw.head(frames.POLL, BEAT) + BEAT, "expected the message Poll")
    for wait in (-1.0, float("nan")):
        poll = messages.encode(Poll(wait))
        raw.refused("Ask", raw.head(frames.POLL, poll) + poll, "a wait of less than nothing")
    for name, noise in itertools.product(("Open", "Ask", "Offer"), (b"", b"x", bytes(500))):
        raw.refused(name, noise, "")
    for noise in ([], [b""], [bytes(500)]):
        raw.refused("Push", noise, "")
    bad = bytearray(messages.encode(Upload(1)))
    bad[-40] ^= 1
    push = [raw.head(frames.UPLOAD, bytes(bad)) + PLACE.pack(0), frames.chunk(0, bytes(bad))]
    raw.refused("Push", push, "checksum is wrong")
    assert not plain.desk.calls
    raw.honest.heartbeat("still here")


def test_a_damaged_or_misplaced_chunk_costs_only_itself(plain):
    raw, data = Raw(plain), messages.encode(Upload(1, delta=BIG))
    cut = [data[i : i + frames_size] for i in range(0, len(data), frames_size)]
    bad = bytearray(frames.chunk(frames_size, cut[1]))
    bad[100] ^= 1
    start = raw.head(frames.UPLOAD, data) + PLACE.pack(0)
    code = raw.refused("Push", [start, frames.chunk(0, cut[0]), bytes(bad)], "damaged on the way")
    assert code is grpc.StatusCode.ABORTED
    assert PLACE.unpack(raw.call("Offer", raw.head(frames.OFFER, data)))[0] == frames_size
    there = raw.head(frames.UPLOAD, data) + PLACE.pack(frames_size)
    raw.refused("Push", [there, frames.chunk(3 * frames_size, cut[3])], "goes on at byte")
    raw.refused("Push", [raw.head(frames.UPLOAD, data) + PLACE.pack(7)], "goes on at byte")
    assert raw.honest.upload(Upload(1, delta=BIG)).accepted
    assert torch.equal(plain.desk.uploads[0].delta, BIG)


frames_size = 1 << 20


def test_a_receipt_that_was_lost_is_given_again(plain):
    raw, data = Raw(plain), messages.encode(Upload(1, delta=VECTOR))
    push = [PLACE.pack(0), frames.chunk(0, data)]
    first = raw.call("Push", [raw.head(frames.UPLOAD, data) + push[0], push[1]])
    again = raw.call("Push", [raw.head(frames.UPLOAD, data) + push[0], push[1]])
    assert first == again
    assert [what for what, *_ in plain.desk.calls] == ["upload"]


def test_a_receipt_that_says_no_is_not_kept(plain):
    raw = Raw(plain)
    answers = [Receipt(True), Receipt(False, "too early")]
    plain.desk.upload = lambda who, update: answers.pop()
    assert raw.honest.upload(Upload(1, delta=VECTOR)) == Receipt(False, "too early")
    assert raw.honest.upload(Upload(1, delta=VECTOR)) == Receipt(True)
    assert raw.honest.upload(Upload(1, delta=VECTOR)) == Receipt(True)


def test_an_upload_that_is_brought_again_while_it_is_taken_counts_once(plain):
    raw, data = Raw(plain), messages.encode(Upload(1, delta=VECTOR))
    taken, go, answers = [], threading.Event(), []

    def upload(who, update):
        taken.append(update)
        go.wait(10.0)
        return Receipt(True)

    plain.desk.upload = upload
    first = [raw.head(frames.UPLOAD, data) + PLACE.pack(0), frames.chunk(0, data)]
    rest = [raw.head(frames.UPLOAD, data) + PLACE.pack(len(data))]
    callers = [threading.Thread(target=lambda p=push: answers.append(raw.call("Push", p))) for push in (first, rest)]
    callers[0].start()
    until = time.monotonic() + 5.0
    while not taken and time.monotonic() < until:
        time.sleep(0.01)
    callers[1].start()
    time.sleep(0.3)
    go.set()
    for caller in callers:
        caller.join(10.0)
    assert [decode(answer, Receipt).accepted for answer in answers] == [True, True]
    assert len(taken) == 1


def test_an_error_that_nobody_expected_is_not_tried_again(plain):
    channel = plain.join("ana")
    plain.desk.no = KeyError("a bug")
    for call in (lambda: channel.register(Hello("ana")), lambda: channel.upload(Upload(1))):
        with pytest.raises(Refused, match="the server failed"):
            call()


def test_what_is_too_large_is_refused_before_it_is_sent(tmp_path):
    net = Net(tmp_path, tls=False, limits=Limits(message=1 << 20))
    raw = Raw(net)
    with pytest.raises(Refused, match="takes 1048576 at most"):
        raw.honest.upload(Upload(1, delta=BIG))
    data = messages.encode(Upload(1, delta=VECTOR))
    short = raw.head(frames.UPLOAD, data, length=100) + PLACE.pack(0)
    raw.refused("Push", [short, frames.chunk(0, data)], "goes on at byte")  # more than was announced
    raw.refused("Ask", raw.head(frames.BEAT, BEAT) + bytes(3 << 20), "larger than max")
    raw.refused(
        "Push", [raw.head(frames.UPLOAD, data) + PLACE.pack(0), frames.chunk(0, bytes(3 << 20))], "larger than max"
    )
    assert not net.desk.uploads
    raw.honest.upload(Upload(1, delta=VECTOR))
    net.close()


def test_who_asks_too_much_waits_and_others_do_not(tmp_path):
    net = Net(tmp_path, tls=False, limits=Limits(rate=5.0, burst=10.0, opens=1.0, opens_burst=3.0))
    ana, bob = net.join("ana"), net.join("bob")
    with pytest.raises(Unreachable, match="too often"):
        collections.deque((ana.heartbeat("now") for _ in range(40)), 0)
    bob.heartbeat("now")
    time.sleep(0.5)
    ana.heartbeat("later")
    with pytest.raises(Unreachable, match="too many clients"):
        collections.deque(map(net.join, ("cleo", "dan", "eve", "flo")), 0)
    net.close()
