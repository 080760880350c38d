"""One port for two servers: who is handed on to whom, that no byte is lost, and that nobody blocks the others."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
import time

import pytest

from fedloom.addresses import bound
from fedloom.deploy.carrier.front import Front
from fedloom.deploy.carrier.greeting import CLIENTS, WEB
from fedloom.errors import UsageError

TIME = 20.0


class Echo:
    """Answers with its name, and with all that comes, in capitals; ends when its caller has ended."""

    def __init__(self, name: bytes) -> None:
        self.name, self.peers = name, []
        self.sock = bound("127.0.0.1", 0)
        self.port = self.sock.getsockname()[1]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, address = self.sock.accept()
                self.peers.append(address[1])
                threading.Thread(target=self._answer, args=(near,), daemon=True).start()

    def _answer(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            near.sendall(self.name)
            while data := near.recv(1 << 16):
                near.sendall(data.upper())
            near.sendall(b"!")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.thread.join(TIME)


@pytest.fixture
def behind():
    both = {WEB: Echo(b"web:"), CLIENTS: Echo(b"clients:")}
    yield both
    for one in both.values():
        one.close()


@pytest.fixture(params=[True, False], ids=["splice", "memory"])
def front(behind, request):
    made = Front(
        bound("127.0.0.1", 0),
        {kind: one.port for kind, one in behind.items()},
        patience=0.5,
        connections=8,
        splice=request.param,
    )
    yield made
    made.stop()


def call(front: Front) -> socket.socket:
    return socket.create_connection(("127.0.0.1", front.port), timeout=TIME)


def rest(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 16):
        parts.append(data)
    return b"".join(parts)


def sent_away(sock: socket.socket) -> bool:
    with sock:
        try:
            return rest(sock) == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        ([b"GET / http"], b"web:GET / HTTP!"),
        ([b"G", b"ET", b" /"], b"web:GET /!"),
        ([b"PRI * HTTP/2.0\r\n"], b"clients:PRI * HTTP/2.0\r\n!"),
        ([b"P", b"RI * HT", b"TP/2.0 more"], b"clients:PRI * HTTP/2.0 MORE!"),
        ([b"\x01\x02\x03"], b"clients:\x01\x02\x03!"),
    ],
)
def test_the_first_bytes_decide_and_none_is_lost(front, parts, answer):
    with call(front) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            sock.sendall(part)
            threading.Event().wait(0.02)  # so that they come one by one
        sock.shutdown(socket.SHUT_WR)  # its answer still comes back
        assert rest(sock) == answer


def test_much_goes_both_ways_while_nobody_reads(front):
    first, block, sent, enough = b"PRI * HTTP/2.0", b"abcdefgh" * (1 << 17), [], threading.Event()

    def send(sock: socket.socket) -> None:
        sock.sendall(first)
        while not enough.is_set():
            sock.sendall(block)
            sent.append(block)
        sock.shutdown(socket.SHUT_WR)

    with call(front) as sock:
        sender = threading.Thread(target=send, args=(sock,))
        sender.start()
        before = -1
        while len(sent) > before:  # until all on the way is full, and has to wait
            before = len(sent)
            time.sleep(0.5)
        assert len(sent) < 400  # megabytes: buffers of the system, and nothing of ours
        with call(front) as other:  # others go on
            other.sendall(b"GET /")
            other.shutdown(socket.SHUT_WR)
            assert rest(other) == b"web:GET /!"
        enough.set()
        found = rest(sock)
        sender.join(TIME)
    data = b"".join((first, *sent))
    assert hashlib.sha256(found).digest() == hashlib.sha256(b"clients:" + data.upper() + b"!").digest()


def test_who_says_nothing_is_sent_away_and_lets_others_in(front):
    silent = [call(front) for _ in range(8)]
    with call(front) as sock:
        sock.sendall(b"GET /")
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == b"web:GET /!"  # once one of the eight has been sent away
    assert all(sent_away(one) for one in silent)


def test_half_a_greeting_is_sent_away_too(front):
    with call(front) as sock:
        sock.sendall(b"\x16\x03\x01\x02")
        assert sent_away(sock)


def test_the_address_of_a_caller_is_known_behind_the_front(front, behind):
    with call(front) as sock:
        sock.sendall(b"GET /")
        assert sock.recv(4) == b"web:"
        (port,) = behind[WEB].peers
        assert front.address(port) == "ipv4:127.0.0.1"
        assert front.address(1) == ""


def test_where_no_server_is_behind_the_connection_ends(behind):
    closed = bound("127.0.0.1", 0)
    port = closed.getsockname()[1]
    closed.close()
    made = Front(bound("127.0.0.1", 0), {WEB: port, CLIENTS: behind[CLIENTS].port})
    try:
        with call(made) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(b"GET /")
            assert rest(sock) == b""
        with call(made) as sock:
            sock.sendall(b"PRI * HTTP/2.0")
            assert sock.recv(8) == b"clients:"
    finally:
        made.stop()


def test_the_end_cuts_what_is_open(front):
    sock = call(front)
    sock.sendall(b"GET /")
    assert sock.recv(4) == b"web:"
    front.stop()
    front.stop()
    with contextlib.suppress(ConnectionError):
        rest(sock)
    sock.close()
    with pytest.raises(OSError, match="refused"):
        call(front)


def test_tls_goes_through_whole_and_the_protocol_decides(front):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for offered, name in ((["http/1.1"], b"web:"), (["h2"], b"clients:")):
        context.set_alpn_protocols(offered)
        out = ssl.MemoryBIO()
        made = context.wrap_bio(ssl.MemoryBIO(), out)
        with pytest.raises(ssl.SSLWantReadError):
            made.do_handshake()
        data = out.read()
        with call(front) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert rest(sock) == name + data.upper() + b"!"


def test_an_address_that_cannot_be_listened_on_is_refused(front):
    with pytest.raises(UsageError, match="take another port"):
        bound("127.0.0.1", front.port)
    with pytest.raises(UsageError, match="no such address"):
        bound("no such host", 1)
