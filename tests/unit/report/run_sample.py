"""Run folders written by hand, for the tests of the pages about runs."""

import json

CONFIG = """[data]
source = "{source}"
scheme = "{scheme}"
clients = 20
[algorithm]
name = "{algorithm}"
[evaluation]
target = {target}
[run]
rounds = {rounds}
seed = {seed}
"""
PLAN = {
    "event": "plan",
    "chosen": "vmap",
    "times": {"loop": 0.0004, "vmap": 0.00011},
    "compiling": {},
    "left_out": {"channels-last": "the model has no convolution"},
}


def round_event(n, accuracy, *, clients=4, failures=(), **more):
    """Return the event of one round."""
    return {
        "event": "round",
        "round": n,
        "accuracy": accuracy,
        "loss": None if accuracy is None else 1 - accuracy,
        "client_loss": 0.5,
        "clients": clients,
        "seconds": 0.2,
        "training_seconds": 0.1,
        "evaluation_seconds": 0.05,
        "asked": clients + len(failures),
        "bytes_down": 1000 * (clients + len(failures)),
        "bytes_up": 1000 * clients,
        "clock": 10.0 * n,
        "failures": [{"client": c, "reason": f"{c}: {kind}", "kind": kind} for c, kind in failures],
        "metrics": {},
    } | more


def clients_event(n, mean, *, personal=False, worst=None):
    """Return the event of clients that were evaluated."""
    low = mean - 0.1 if worst is None else worst
    return {
        "event": "clients",
        "round": n,
        "mean": mean,
        "std": 0.1,
        "worst_decile": low,
        "best_decile": min(1.0, mean + 0.1),
        "personal": personal,
    }


def end_event(seconds=3.0):
    """Return the event of a run that went to its end."""
    return {"event": "end", "seconds": seconds, "stopped": "rounds"}


def promise_event(**more):
    """Return the event that says what is promised."""
    return {
        "event": "privacy",
        "mechanism": "central",
        "unit": "client",
        "clip": 0.5,
        "clip_quantile": None,
        "multiplier": 1.0,
        "delta": 1e-5,
        "accountant": "rdp",
        "epsilon": 4.0,
        "trust": "the server sees single updates",
        "secure_aggregation": "off",
        "void": False,
        "warnings": [],
    } | more


def private(n=10, epsilon=4.0, **more):
    """Return the events of a run that spends ``epsilon`` evenly over its rounds, as promised."""
    start, plan, *rounds, end = rising(n)
    spent = [r | {"metrics": {"epsilon": epsilon * i / n, "noise": 0.05}} for i, r in enumerate(rounds, 1)]
    return [promise_event(**{"epsilon": epsilon} | more), start | {"clients": 20}, plan, *spent, end]


def write_run(
    folder, events, *, algorithm="fedavg", target=0.9, scheme="iid", source="digits", rounds=10, seed=0, more=""
):
    """Write a run's folder, and return it; ``more`` stands at the end of its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(algorithm=algorithm, target=target, scheme=scheme, source=source, rounds=rounds, seed=seed)
    text += more
    (folder / "config.toml").write_text(text, encoding="utf-8")
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines, encoding="utf-8")
    return folder


def rising(n=10, top=0.95, **more):
    """Return the events of a run that gets better round by round, to the end."""
    shares = [top - 0.8 * 0.6**i for i in range(1, n + 1)]
    rounds = [round_event(i, share, **more) for i, share in enumerate(shares, 1)]
    return [{"event": "start", "fedloom": "0"}, PLAN, *rounds, end_event()]
