"""A service that takes note of everything, a server over gRPC on loopback, and calls made by hand."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import grpc
import pytest
import torch

from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.protocol.messages import Receipt, Task, Upload, Welcome
from fedloom.deploy.trust import frames
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.frames import Head
from fedloom.deploy.trust.identity import Keys, context_of
from fedloom.deploy.trust.invitation import INSECURE
from fedloom.deploy.trust.tls import Certificates

VECTOR = torch.linspace(-1, 1, 1000)
BIG = torch.arange(1_500_000, dtype=torch.float32)  # many chunks


class Desk:
    """A service that takes note of everything."""

    def __init__(self):
        self.calls: list[tuple] = []
        self.tasks: list[Task] = []
        self.uploads: list[Upload] = []
        self.no: Exception | None = None

    def register(self, who, hello):
        self.note("register", who, hello)
        return Welcome(0, 2, "run", vectors={"start": VECTOR})

    def next_task(self, who, wait):
        if not self.tasks:
            time.sleep(wait)
        return self.tasks.pop() if self.tasks else None

    def upload(self, who, update):
        self.note("upload", who, update.round)
        again = any(u.round == update.round for u in self.uploads)
        self.uploads += [] if again else [update]
        return Receipt(True, "", again)

    def heartbeat(self, who, doing):
        self.note("heartbeat", who, doing)

    def leave(self, who, reason):
        self.note("leave", who, reason)

    def note(self, what, who, said):
        if self.no is not None:
            raise self.no
        self.calls.append((what, who.name, who.key, said))


class Net:
    """A server over gRPC on loopback, and its clients."""

    def __init__(self, folder: Path, *, tls: bool = True, limits: Limits | None = None):
        self.desk, self.folder, self.limits = Desk(), folder, limits
        self.admission = Admission(folder / "clients.json")
        self.certificates = Certificates.own(folder / "tls") if tls else None
        self.rows: list[dict] = []
        self.open: list = []
        self.port = 0
        self.start()

    def start(self):
        address = f"127.0.0.1:{self.port}"
        self.listener = listen(
            self.desk, self.admission, address, self.certificates, self.limits, self.folder, self.rows.append
        )
        self.port = self.listener.port

    def join(self, name, keys=None, invitation=None, **what):
        channel = connect(invitation or self.listener.invite("127.0.0.1"), keys or Keys.make(), name, **what)
        self.open.append(channel)
        return channel

    def close(self):
        for channel in self.open:
            channel.close()
        self.listener.stop(0.0)


class Raw:
    """A client that says what it wants."""

    def __init__(self, net):
        self.keys, self.context = Keys.make(), context_of(INSECURE)
        self.honest = net.join("ana", self.keys)
        self.session = self.honest.open()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{net.port}")
        net.open.append(self)
        self.number = itertools.count(1000)

    def close(self):
        self.channel.close()

    def call(self, name, request):
        path = f"/{frames.SERVICE}/{name}"
        if name == "Ask":
            return list(self.channel.unary_stream(path)(request, timeout=10.0))
        if name == "Push":
            return self.channel.stream_unary(path)(iter(request), timeout=10.0)
        return self.channel.unary_unary(path)(request, timeout=10.0)

    def head(self, method, data, *, length=None, digest=None, session=None, keys=None, number=None):
        head = Head(
            method,
            session or self.session,
            next(self.number) if number is None else number,
            len(data) if length is None else length,
            digest or data[-32:],
        )
        return head.signed_by(keys or self.keys, self.context)

    def refused(self, name, request, said):
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, request)
        assert said in caught.value.details(), caught.value.details()
        return caught.value.code()
