"""Uploads over gRPC that are cut, and large ones."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from loopback import BIG, Desk

from fedloom.deploy.carrier.transport_grpc import connect, listen
from fedloom.deploy.protocol.messages import Upload
from fedloom.deploy.seam import Refused, Unreachable
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.identity import Keys
from fedloom.deploy.trust.invitation import Invitation


class Cutter:
    """Stands between client and server, and cuts the connection when so many bytes have gone up."""

    def __init__(self, port: int):
        self.port, self.up, self.cut_at = port, 0, float("inf")
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.here = self.listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listening.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                threading.Thread(target=self._carry, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, False), daemon=True).start()

    def _carry(self, source, target, up):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if up:
                    self.up += len(data)
                    if self.up > self.cut_at:
                        self.cut_at = float("inf")
                        break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        self.listening.close()


def test_an_upload_that_is_cut_goes_on_where_it_was(net):
    cutter = Cutter(net.port)
    net.open.append(cutter)
    right = net.listener.invite("127.0.0.1")
    channel = net.join("ana", None, Invitation(right.host, cutter.here, right.pin, right.token))
    size = BIG.numel() * 4
    for number, share in enumerate((0.4, 0.8), 1):
        cutter.up, cutter.cut_at = 0, share * size
        assert channel.upload(Upload(number, delta=BIG * number)).accepted
        assert torch.equal(net.desk.uploads[-1].delta, BIG * number)
        assert cutter.cut_at == float("inf")
        assert size < cutter.up < size * 1.5 + (1 << 20)  # and not 1.4 or 1.8 times it and more
    assert len(net.desk.uploads) == 2


def test_a_large_upload_waits_for_a_server_that_has_just_begun(tmp_path):
    """It does not know yet how large updates are; clients that come back to it need not go."""
    desk, sizes, update = Desk(), [0], Upload(1, delta=BIG)
    listener = listen(desk, Admission(tmp_path / "clients.json"), largest=lambda: sizes[0])
    channel = connect(listener.invite("127.0.0.1"), Keys.make(), "ana")
    try:
        with pytest.raises(Unreachable, match="no round is open yet"):
            channel.upload(update)
        threading.Timer(0.5, lambda: sizes.append(sizes.pop() + 4 * BIG.numel() + 1000)).start()
        assert channel.upload(update).accepted
        sizes[0] = 1 << 21
        with pytest.raises(Refused, match="bytes; this server takes 2097152 at most"):
            channel.upload(Upload(2, delta=BIG))
    finally:
        channel.close()
        listener.stop(0.0)


BOUNDED = """
import pathlib, re, sys, tempfile, torch
sys.path.insert(0, sys.argv[1])
from loopback import Net, Desk
from fedloom.deploy.protocol.messages import Receipt, Task, Upload

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024

def reset():
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak()

net = Net(pathlib.Path(tempfile.mkdtemp()))
net.desk.upload = lambda who, update: Receipt(bool(update.delta[-1] == 7.0))
channel = net.join("ana")
channel.upload(Upload(1, delta=torch.ones(2_000_000)))
delta = torch.full((12_500_000,), 7.0)
before = reset()
assert channel.upload(Upload(1, delta=delta)).accepted
up = peak() - before
net.desk.tasks.append(Task("train", vector=delta))
before = reset()
task = channel.next_task(5.0)
down = peak() - before
print(up, down, flush=True)
net.close()
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")
def test_fifty_megabytes_take_little_more_than_themselves():
    """Both ends are in this process: the vector as it arrives is counted, and no second copy fits into the bound."""
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(Path(__file__).parent)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    up, down = (int(n) for n in done.stdout.split())
    assert up < 90e6
    assert down < 90e6
