"""Rounds of Flower on this machine: a SuperLink, three SuperNodes, `flwr run`; clients send back what they got.

Run by a Python that has Flower and its commands beside it. Prints a line of JSON: the seconds of every round but the first,
from the end of one to the end of the next, as the ServerApp sees them.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _processes import BIN, port, process, until

CLIENTS, SIZE = 3, 200_000
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
        until(folder / "superlink.log", "(running on http)", stack.enter_context(superlink))
        for number in range(CLIENTS):
            node = [BIN / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}", "--port", port()]
            stack.enter_context(process(folder, f"node{number}", *node))
        stack.enter_context(process(folder, "run", BIN / "flwr", "run", "app", "here"))
        times = json.loads(until(folder / "times.json", r"(.*\])"))
    rounds = [after - before for before, after in pairwise(times[1:])]
    print(json.dumps({"version": version("flwr"), "rounds": rounds}))


if __name__ == "__main__":
    main()
