"""The seam, over the fake and over gRPC: one suite for both; and who gets to talk to whom."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import torch
from loopback import BIG, VECTOR, Desk, Net

from fedloom.deploy.carrier import grpc_client
from fedloom.deploy.carrier.fake import FakeNetwork
from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.protocol.messages import Hello, Receipt, Task, Upload
from fedloom.deploy.seam import Refused, Unreachable
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.invitation import INSECURE, Invitation
from fedloom.deploy.trust.tls import Certificates, fetch_authority
from fedloom.errors import UsageError


def test_the_seam(pair):
    desk, channel = pair
    welcome = channel.register(Hello("ana", samples=600))
    assert torch.equal(welcome.vectors["start"], VECTOR)
    desk.tasks.append(Task("train", 1, 0, BIG, lr=0.5))
    task = channel.next_task(5.0)
    assert torch.equal(task.vector, BIG)
    assert (task.round, task.lr) == (1, 0.5)
    assert channel.upload(Upload(1, delta=BIG * 2, weight=600.0)) == Receipt(True)
    assert channel.upload(Upload(1, delta=BIG * 2, weight=600.0)).accepted
    assert len(desk.uploads) == 1
    assert torch.equal(desk.uploads[0].delta, BIG * 2)
    channel.heartbeat("training")
    channel.leave("over")
    assert [(what, name) for what, name, *_ in desk.calls if what != "upload"] == [
        ("register", "ana"),
        ("heartbeat", "ana"),
        ("leave", "ana"),
    ]
    assert len({key for _, _, key, _ in desk.calls}) == 1


def test_waiting_for_nothing_ends_in_time(pair):
    _, channel = pair
    began = time.monotonic()
    assert channel.next_task(0.3) is None
    assert 0.25 < time.monotonic() - began < 2.0


def test_what_the_service_refuses_is_said(pair):
    desk, channel = pair
    desk.no = Refused("the run is over")
    for call in (lambda: channel.register(Hello("ana")), lambda: channel.upload(Upload(1))):
        with pytest.raises(Refused, match="the run is over"):
            call()
    desk.no = UsageError("nonsense")
    with pytest.raises(Refused, match="nonsense"):
        channel.heartbeat("")
    desk.no = Unreachable("later")
    with pytest.raises(Unreachable, match="later"):
        channel.heartbeat("")


def test_a_channel_that_is_closed_ends_waiting(pair):
    _, channel = pair
    threading.Timer(0.3, channel.close).start()
    began = time.monotonic()
    with pytest.raises(Unreachable):
        channel.next_task(20.0)
    assert time.monotonic() - began < 3.0
    channel.close()
    with pytest.raises(Unreachable):
        channel.heartbeat("")


def test_a_heartbeat_goes_while_a_task_is_waited_for(pair):
    desk, channel = pair
    waiting = threading.Thread(target=channel.next_task, args=(1.0,))
    waiting.start()
    channel.heartbeat("alive")
    assert waiting.is_alive()
    assert desk.calls
    waiting.join(5.0)


def test_the_fake_loses_calls_and_answers():
    desk, what = Desk(), ["ok"]
    network = FakeNetwork(desk, lambda name, method: what[0])
    channel = network.channel("ana")
    what[0] = "lost"
    with pytest.raises(Unreachable):
        channel.upload(Upload(1))
    assert not desk.uploads
    what[0] = "unanswered"
    with pytest.raises(Unreachable):
        channel.upload(Upload(1))
    assert len(desk.uploads) == 1
    what[0], network.service = "ok", None
    with pytest.raises(Unreachable):
        channel.upload(Upload(1))


def test_another_server_is_not_talked_to(net, tmp_path):
    other = Net(tmp_path / "other")
    right = net.listener.invite("127.0.0.1")
    wrong = Invitation(right.host, other.port, right.pin, right.token)
    with pytest.raises(Refused, match="not the server that the invitation is for"):
        other.join("ana", invitation=wrong)
    assert not other.rows
    other.close()


def test_a_server_that_shows_the_right_authority_needs_its_signature(net, tmp_path, monkeypatch):
    """Whoever is in between can show a copy of the authority's certificate, but not sign with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    from fedloom.deploy.trust import tls

    authority = x509.load_pem_x509_certificate((net.folder / "tls" / "authority.pem").read_bytes())
    forged_key, forged = tls._server(ec.generate_private_key(ec.SECP256R1()), authority)
    pin = net.certificates.pin
    forger = Net(tmp_path / "forger")
    forger.listener.stop(0.0)
    forger.certificates = Certificates(tls._key_pem(forged_key), tls._certificate_pem(forged), pin)
    forger.port = 0
    forger.start()
    invitation = Invitation("127.0.0.1", forger.port, pin, bytes(16))
    with pytest.raises(Refused, match="not the server"):
        fetch_authority("127.0.0.1", forger.port, pin)
    known = fetch_authority("127.0.0.1", net.port, pin)  # gRPC looks again, on each connection
    monkeypatch.setattr(grpc_client, "fetch_authority", lambda *_: known)
    with pytest.raises(Refused, match="not the server"):
        forger.join("ana", invitation=invitation)
    assert not forger.rows
    forger.close()


def test_nobody_home_and_no_tls(net, plain):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="cannot be reached"):
        connect(Invitation("127.0.0.1", port, net.certificates.pin, bytes(16)), Keys.make(), "ana")
    with pytest.raises(Refused, match="does not speak TLS"):
        connect(Invitation("127.0.0.1", plain.port, net.certificates.pin, bytes(16)), Keys.make(), "ana", timeout=3.0)
    with pytest.raises(Unreachable):
        connect(Invitation("127.0.0.1", net.port, INSECURE, bytes(16)), Keys.make(), "ana", timeout=3.0)


def test_where_a_server_may_listen(net, plain):
    with pytest.raises(UsageError, match="without TLS"):
        listen(Desk(), net.admission, "0.0.0.0:0")
    with pytest.raises(UsageError, match="cannot listen"):
        listen(Desk(), net.admission, f"127.0.0.1:{net.port}", net.certificates)
    with pytest.raises(UsageError, match="without TLS"):
        plain.listener.invite("10.0.0.7")


def test_an_invitation_lets_one_client_in(net):
    invitation = net.listener.invite("127.0.0.1")
    keys = Keys.make()
    net.join("ana", keys, invitation)
    assert net.join("", keys, invitation).name == "ana"
    with pytest.raises(Refused, match="used already"):
        net.join("bob", None, invitation)
    with pytest.raises(Refused, match="belongs to another"):
        net.join("ana")
    with pytest.raises(Refused, match="cannot become"):
        net.join("bob", keys, invitation)
    refused = [row for row in net.rows if row.get("refused")]
    assert len(refused) == 3
    net.admission.expel("ana")
    with pytest.raises(Refused, match="sent away"):
        net.open[0].heartbeat("")


def test_a_server_that_was_started_again_knows_its_clients(net):
    channel = net.join("ana")
    channel.heartbeat("before")
    net.listener.stop(0.0)
    with pytest.raises(Unreachable):
        channel.heartbeat("nobody")
    net.start()
    until = time.monotonic() + 10.0
    while True:
        try:
            channel.heartbeat("after")
            break
        except Unreachable:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert [said for *_, said in net.desk.calls] == ["before", "after"]
