"""``fedloom serve`` and ``fedloom join`` as people use them: stopped, started again, and in each other's way."""

from __future__ import annotations

import json
import signal
import ssl
import urllib.error
import urllib.request

import pytest
import torch
from forked import Forked
from processes import SERVE, prepared

from fedloom.cli.app import main

pytest.importorskip("grpc")


@pytest.fixture
def process():
    """Forked: each test starts many. One in test_deploy_processes.py starts them as a shell does."""
    return Forked


@pytest.fixture
def joined(started):
    """Starts a client; ``more`` are further words of its command line."""

    def join(text: str, number: int, *more):
        name = f"ana{number}"
        words = ("--data", f"part{number}.npz", "--name", name, "--number", number, "--yes")
        return started(name, "join", text, *words, *more)

    return join


def invitation(server) -> str:
    return server.until(r"fedloom join (\S+)")[1]


def test_whoever_is_stopped_politely_comes_back_with_the_same_words(tmp_path, tools, started, joined):
    there = prepared(tmp_path, tools, algorithm="scaffold", rounds=12)
    server = started("server", *SERVE, "--away", "30", "--quorum", "2", "--dry-run")
    text = invitation(server)
    clients = [joined(text, 0), joined(text, 1)]
    clients[0].until("round 2: trained")
    server.kill(signal.SIGTERM)
    assert server.code() == 130, server.text()
    assert server.text().splitlines()[-1] == "stopped; the same command goes on"
    assert server.text().count("is ready: trained one batch of 50 samples in") == 2
    assert ", loss 2." in server.text()
    server = started("again", *SERVE, "--away", "30", "--quorum", "2")
    assert server.code() == 0, server.text()
    assert [one.code() for one in clients] == [0, 0], clients[0].text() + clients[1].text()
    assert torch.equal(tools.vector(tmp_path / "run" / "model.keras"), tools.vector(there.model))


def test_a_client_that_is_stopped_says_goodbye_and_its_place_is_kept_or_free(tmp_path, tools, started, joined):
    prepared(tmp_path, tools, rounds=2)
    server = started("server", *SERVE, "--deadline", "3600")
    text = invitation(server)
    gone = joined(text, 0)
    gone.until("waiting until all clients are there")
    gone.kill(signal.SIGTERM)
    assert gone.code() == 130, gone.text()
    assert gone.text().splitlines()[-1] == "stopped; the same command joins again"
    server.until(r"has left: it was stopped, and may come back")
    clients = [joined(text, 0), joined(text, 1)]  # the invitation is good for two, and has been used once before
    assert [one.code() for one in clients] == [0, 0], clients[0].text() + clients[1].text()
    assert server.code() == 0, server.text()


def test_a_client_that_is_sent_away_is_gone_and_its_place_is_free_for_another(tmp_path, tools, started, joined):
    prepared(tmp_path, tools, rounds=1)
    server = started("server", *SERVE)
    first = invitation(server)
    gone = joined(first, 0)
    gone.until("waiting until all clients are there")
    for name, code in (("bea", 2), ("ana0", 0)):
        with pytest.raises(SystemExit) as over:
            main(["expel", str(tmp_path / "run"), name])
        assert over.value.code == code
    assert gone.code() == 9, gone.text()
    assert "sent away by the server" in gone.text()
    second = server.until(rf"(?s)has left: it was sent away.*fedloom join (?!{first})(\S+)")[1]
    clients = [joined(second, 0, "--name", "bea"), joined(second, 1)]
    assert [one.code() for one in clients] == [0, 0], clients[0].text() + clients[1].text()
    assert server.code() == 0, server.text()


def test_wrong_samples_cost_no_invitation_and_two_clients_need_two_names(tmp_path, tools, started, joined):
    import numpy as np

    prepared(tmp_path, tools, rounds=1)
    whole = np.load(tmp_path / "part0.npz")
    np.savez(tmp_path / "shape.npz", x=whole["x"][:, :6, :6], y=whole["y"])
    server = started("server", *SERVE)
    text = invitation(server)
    wrong = started("lea", "join", text, "--data", "shape.npz", "--name", "lea", "--yes")
    assert wrong.code() == 9
    assert "lea: samples of shape (6, 6)" in wrong.text()
    first = joined(text, 0)
    first.until("waiting until")
    same = joined(text, 0)
    assert same.code() == 7
    assert "another 'fedloom join' runs with this folder" in same.text()
    other = joined(text, 1, "--state", tmp_path / "elsewhere", "--name", "ana0")
    assert other.code() == 9
    assert "the name 'ana0' belongs to another client" in other.text()
    second = started("server", *SERVE)
    assert second.code() == 7
    assert "another 'fedloom serve' runs with this folder" in second.text()
    clients = [first, joined(text, 1)]
    assert [one.code() for one in clients] == [0, 0], first.text() + clients[1].text()
    assert server.code() == 0, server.text()


def test_an_error_in_a_clients_code_is_shown_with_its_client_file_and_line(tmp_path, tools, started):
    code = (
        "import os\nimport torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.last = torch.nn.Linear(64, 10)\n\n    def forward(self, x):\n"
        "        if self.training and torch.is_grad_enabled() and os.path.exists('{}'):\n"
        "            raise ValueError('no such layer')\n        return self.last(x.flatten(1))\n\n\n"
        "def make():\n    return Net()\n"
    )
    (tmp_path / "net.py").write_text(code.format("never"))
    (tmp_path / "bad.py").write_text(code.format("exp.toml"))
    prepared(tmp_path, tools, rounds=1, model=str(tmp_path / "net.py:make"))
    server = started("server", *SERVE, "--dry-run")
    text = invitation(server)
    words = ("--data", "part0.npz", "--yes", "--model")
    good = started("good", "join", text, "--name", "good", *words, "net.py:make")
    good.until("waiting until")
    bad = started("bad", "join", text, "--name", "bad", *words, "bad.py:make")
    assert server.code() == 6, server.text()
    assert "client_1 (bad): bad.py, line 12: ValueError: no such layer" in server.text()
    assert "Traceback" not in server.text() + good.text()
    assert bad.code() != 0
    assert good.code() == 0, good.text()
    assert "the run has ended" in good.text()


def test_page_figures_and_clients_share_one_port(tmp_path, tools, started, joined):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    there = prepared(tmp_path, tools, rounds=3)
    server = started("server", *SERVE, "--dashboard")
    base, _, token = server.until(r"dashboard: (\S+)")[1].partition("/?token=")
    secret = tmp_path / "run" / "server" / "dashboard.token"
    assert secret.read_text() == token
    assert secret.stat().st_mode & 0o777 == 0o600
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def get(path: str, shown: str) -> str:
        asked = urllib.request.Request(base + path, headers={"Authorization": f"Bearer {shown}"})
        with urllib.request.urlopen(asked, context=context, timeout=30) as answer:
            return answer.read().decode()

    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        get("/metrics", "wrong")
    refused.value.close()
    text = invitation(server)
    assert text.split("/")[0] == base.removeprefix("https://")
    first = joined(text, 0)
    first.until("waiting until")
    assert "fedloom" in get("/metrics", token)
    assert "<html" in get(f"/?token={token}", token)
    second = joined(text, 1)
    assert (first.code(), second.code(), server.code()) == (0, 0, 0), server.text()
    assert torch.equal(tools.vector(tmp_path / "run" / "model.keras"), tools.vector(there.model))
    rows = [json.loads(line) for line in (tmp_path / "run" / "audit.jsonl").read_text().splitlines()]
    assert {row["address"] for row in rows} == {"ipv4:127.0.0.1"}
