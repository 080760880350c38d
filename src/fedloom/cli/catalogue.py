"""What can be named: methods, schemes, models and all the rest, as tables for the terminal."""

from __future__ import annotations

import re

from rich import box
from rich.table import Table


def table(what: str) -> Table:
    """Build a table: of ``methods``, ``schemes`` or ``models``; of ``algorithms``, ``codecs`` or any other of ``_TABLES``."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heading, rows = _TABLES[what]()
    for name in heading:
        made.add_column(name, overflow="fold", no_wrap=name == heading[0])
    for row in rows:
        made.add_row(*row)
    return made


Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _methods() -> Rows:
    from fedloom.merging import METHODS

    rows: list[tuple[str, ...]] = []
    for name, method in METHODS.items():
        options = ", ".join(n if default is None else f"{n}={default:g}" for n, default in method.options.items())
        rows.append((name, method.title, options, re.sub(r'"[^"]*", ', "", method.paper)))
    return ("method", "what it does", "options (--set)", "source"), rows


def _schemes() -> Rows:
    from fedloom.partition import SCHEMES

    rows: list[tuple[str, ...]] = []
    for name, scheme in SCHEMES.items():
        options = ", ".join(f"{n}={o.default}" for n, o in scheme.options.items())
        rows.append((name, scheme.title, options))
    return ("scheme", "what it does", "options"), rows


def _models() -> Rows:
    from fedloom.models.zoo import TITLES

    rows: list[tuple[str, ...]] = list(TITLES.items())
    return ("model", "what it is"), rows


def _algorithms() -> Rows:
    from fedloom.algorithms import ALGORITHMS

    rows: list[tuple[str, ...]] = []
    for name, method in ALGORITHMS.items():
        given = [(n, o.default) for n, o in method.options.items()]
        options = ", ".join(n if v is None else f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}" for n, v in given)
        rows.append((name, method.title, options, re.sub(r'"[^"]*", ', "", method.paper)))
    return ("algorithm", "what it does", "options (--set)", "source"), rows


def _attacks() -> Rows:
    from fedloom.attacks import ATTACKS

    rows: list[tuple[str, ...]] = []
    for name, attack in ATTACKS.items():
        default = "" if attack.strength is None else f" [{attack.strength:g}]"
        source = re.sub(r'"[^"]*", ', "", attack.paper)
        rows.append((name, attack.title, f"{attack.help}{default}", source))
    return ("attack", "what attackers send", "--attack-strength", "source"), rows


def _networks() -> Rows:
    from fedloom.network import PROFILES, describe, make

    rows: list[tuple[str, ...]] = []
    for name, profile in PROFILES.items():
        rows.append((name, profile.title, "" if name == "none" else " ".join(describe(make(name)))))
    return ("network", "what it stands for", "its clients"), rows


def _plans() -> Rows:
    from fedloom.training.plans import PLANS

    rows: list[tuple[str, ...]] = [("auto", "time those that apply on the first batches, and keep the fastest")]
    return ("plan", "how clients are computed"), rows + [(plan.name, plan.title) for plan in PLANS.values()]


def _codecs() -> Rows:
    from fedloom.compress import CODECS

    rows: list[tuple[str, ...]] = []
    for name, kind in CODECS.items():
        written = {"int": "int1 ... int8"}.get(name, name)
        free = [(n, o) for n, o in kind.options.items() if not (name == "int" and n == "bits")]
        options = [f"{n}{'' if o.default is None else f'={o.default}'}: {o.help}" for n, o in free]
        right = {"lossless": ""}.get(kind.place, "yes" if kind.unbiased else "no")
        source = re.sub(r'"[^"]*", ', "", kind.paper)
        rows.append((written, kind.place, "\n- ".join([kind.title, *options]), right, source))
    return ("codec", "place", "what it does; options, behind a colon", "right on average", "source"), rows


def _privacy() -> Rows:
    from fedloom.simulation.guarantee import MECHANISMS

    rows: list[tuple[str, ...]] = []
    for name, kind in MECHANISMS.items():
        rows.append((name, kind.title, kind.trust, kind.sampling, re.sub(r'"[^"]*", ', "", kind.paper)))
    return ("mechanism", "what it does", "whom you trust", "sampling of clients", "source"), rows


_TABLES = {
    "methods": _methods,
    "schemes": _schemes,
    "models": _models,
    "algorithms": _algorithms,
    "attacks": _attacks,
    "networks": _networks,
    "plans": _plans,
    "codecs": _codecs,
    "privacy": _privacy,
}
