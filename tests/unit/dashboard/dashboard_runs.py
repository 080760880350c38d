"""Run folders written by hand, and a dashboard of them, for its tests."""

import json
import urllib.error
import urllib.request

from fedloom import events

CONFIG = '[data]\nsource = "digits"\n[algorithm]\nname = "{name}"\n[run]\nrounds = {rounds}\nlog = ""\n'


def row(n, accuracy=0.5, failed=(), **more):
    """Return the event of one round."""
    return {
        **{"event": "round", "round": n, "accuracy": accuracy, "loss": 1.5, "client_loss": 1.25, "clients": 3},
        **{"seconds": 0.5, "asked": 3 + len(failed), "bytes_down": 4000, "bytes_up": 3000, "clock": 0.0},
        "failures": [{"client": c, "reason": f"{c} broke at line 7", "kind": "dropped"} for c in failed],
        "metrics": more,
    }


def started(clients=4):
    return {"event": "start", "data": "digits", "clients": clients, "samples": 400, "parameters": 10}


def log_of(rows):
    return "".join(events.line(one) for one in rows)


def run(folder, rows, name="fedavg", rounds=10, presence=None):
    """Write the folder of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(CONFIG.format(name=name, rounds=rounds))
    (folder / "events.jsonl").write_text(log_of(rows))
    if presence is not None:
        (folder / "served.json").write_text('{"run": "x"}')
        (folder / "presence.json").write_text(json.dumps(presence))
    return folder


def append(folder, *rows):
    with (folder / "events.jsonl").open("a") as log:
        log.write(log_of(rows))


def get(url, headers=None, data=None):
    """Return status, headers and text of an answer, whatever the status."""
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()
