"""Rounds of Flower on this machine: a SuperLink, three SuperNodes, `flwr run`; clients send back what they got.

Run by a Python that has Flower and its commands beside it. Prints a line of JSON: the seconds of every round but the first,
from the end of one to the end of the next, as the ServerApp sees them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

CLIENTS, SIZE, PATIENCE = 3, 200_000, 300.0
BIN = Path(sys.executable).parent
PROJECT = """[project]
name = "idle"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "here"

[tool.flwr.app.components]
serverapp = "idle:server"
clientapp = "idle:client"

[tool.flwr.app.config]
rounds = {rounds}
out = "{out}"
"""
APP = f"""import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    content = {{"arrays": message.content["arrays"], "metrics": MetricRecord({{"num-examples": 4}})}}
    return Message(content=RecordDict(content), reply_to=message)


@server.main()
def main(grid, context):
    times = []
    start = ArrayRecord({{"w": Array(np.zeros({SIZE}, np.float32))}})
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes={CLIENTS}, min_available_nodes={CLIENTS})
    rounds = int(context.run_config["rounds"])
    strategy.start(grid, start, num_rounds=rounds, evaluate_fn=lambda number, arrays: times.append(time.time()))
    Path(context.run_config["out"]).write_text(json.dumps(times))
"""


@contextmanager
def process(folder: Path, name: str, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside the block; it has ended when the block has."""
    env = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    with (folder / f"{name}.log").open("w") as log:
        made = [str(word) for word in command]
        started = subprocess.Popen(made, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=folder)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait(20)


def port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(path: Path, words: str, running: subprocess.Popen[bytes] | None = None) -> str:
    """Wait for words in a file; returns its text."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and (running is None or running.poll() is None):
        if path.is_file() and words in (text := path.read_text()):
            return text
        time.sleep(0.1)
    logs = "\n".join(log.read_text()[-1500:] for log in path.parent.glob("*.log"))
    raise SystemExit(f"'{words}' did not come in {path}\n{logs}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    folder, link = given.folder.resolve(), port()
    (folder / "flwr").mkdir()
    where = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    (folder / "flwr" / "config.toml").write_text(where)
    (folder / "app").mkdir()
    (folder / "app" / "pyproject.toml").write_text(PROJECT.format(rounds=given.rounds, out=folder / "times.json"))
    (folder / "app" / "idle.py").write_text(APP)
    with ExitStack() as stack:
        superlink = process(folder, "superlink", BIN / "flower-superlink", "--insecure", "--port", link)
        until(folder / "superlink.log", "running on http", stack.enter_context(superlink))
        for number in range(CLIENTS):
            node = [BIN / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", port()]
            stack.enter_context(process(folder, f"node{number}", *node))
        stack.enter_context(process(folder, "run", BIN / "flwr", "run", "app", "here"))
        times = json.loads(until(folder / "times.json", "]"))
    rounds = [after - before for before, after in pairwise(times[1:])]
    print(json.dumps({"version": version("flwr"), "rounds": rounds}))


if __name__ == "__main__":
    main()
