"""The first bytes of a connection: real greetings of TLS, cut and split in all ways, and bytes that are none."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.deploy.carrier.greeting import CLIENTS, MOST, WEB, protocols, route


def hello(*names: str) -> bytes:
    """What Python's own TLS says first, offering these protocols."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if names:
        context.set_alpn_protocols(list(names))
    out = ssl.MemoryBIO()
    made = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="fedloom.invalid")
    with pytest.raises(ssl.SSLWantReadError):
        made.do_handshake()
    return out.read()


BROWSER, CURL, GRPC, SILENT = hello("h2", "http/1.1"), hello("http/1.1"), hello("h2"), hello()
KNOWN = [(BROWSER, WEB), (CURL, WEB), (GRPC, CLIENTS), (SILENT, WEB)]
IDS = ["browser", "curl", "grpc", "script"]


def in_records(data: bytes, sizes: list[int]) -> bytes:
    """The same message in several records."""
    body, parts = data[5:], []
    for size in [*sizes, len(body)]:
        if body:
            piece, body = body[:size], body[size:]
            parts.append(data[:3] + len(piece).to_bytes(2, "big") + piece)
    return b"".join(parts)


@pytest.mark.parametrize(("data", "kind"), KNOWN, ids=IDS)
def test_a_greeting_says_who_calls_as_soon_as_it_is_whole_and_not_before(data, kind):
    assert route(data) == kind
    assert route(data + b"\x17\x03\x03\x00\x05later") == kind
    assert all(route(data[:length]) is None for length in range(len(data)))


@pytest.mark.parametrize(("data", "kind"), KNOWN, ids=IDS)
@given(sizes=st.lists(st.integers(1, 80), max_size=20))
def test_a_greeting_may_come_in_several_records(data, kind, sizes):
    whole = in_records(data, sizes)
    assert route(whole) == kind
    assert route(whole[:-1]) is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", CLIENTS),
        (b"PRI * HTT", None),
        (b"GET / HTTP/1.1\r\n", WEB),
        (b"POST /enter HTTP/1.1\r\n", WEB),
        (b"PROPFIND / HTTP/1.1\r\n", WEB),
        (b"GE", None),
        (b"", None),
        (b"P", None),
        (b"\x00\x00", CLIENTS),
        (b"hello there", CLIENTS),
        (b"A" * 40, CLIENTS),
    ],
)
def test_without_tls_the_first_word_tells(data, kind):
    assert route(data) == kind


@given(st.binary(max_size=300))
def test_any_bytes_get_an_answer(data):
    assert route(data) in (None, WEB, CLIENTS)
    assert route(b"\x16\x03\x01" + data) in (None, WEB, CLIENTS)
    protocols(data)


@given(place=st.integers(0, len(BROWSER) - 1), value=st.integers(0, 255), cut=st.integers(0, len(BROWSER)))
def test_a_damaged_greeting_gets_an_answer(place, value, cut):
    data = bytearray(BROWSER)
    data[place] = value
    assert route(bytes(data[:cut])) in (None, WEB, CLIENTS)


@given(st.binary(min_size=1, max_size=300), st.sampled_from([b"", b"\x16\x03\x01\x40\x00\x01\x00\x7f\x00"]))
def test_nobody_is_looked_at_for_ever(data, start):
    assert route(start + data * MOST) is not None


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=5))
def test_offered_protocols_are_read_back(names):
    listed = b"".join(bytes([len(n)]) + n for n in names)
    extension = len(listed).to_bytes(2, "big") + listed
    body = b"\x00\x0a\x00\x02\xaa\xbb" + b"\x00\x10" + len(extension).to_bytes(2, "big") + extension
    start = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    assert protocols(start + len(body).to_bytes(2, "big") + body) == names
