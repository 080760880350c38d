"""The page of one run, made from its folder alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fedloom.files import write_text
from fedloom.report import page, run_pictures, words
from fedloom.report.drawing import svg
from fedloom.report.run_findings import explain
from fedloom.report.run_plan import plan_view
from fedloom.report.run_privacy import privacy_tile, privacy_view
from fedloom.report.run_reading import RunLog, read_run
from fedloom.report.run_words import headline, size, title, value
from fedloom.report.views import HTML

_SECTIONS: Final = (
    ("findings", "What happened"),
    ("progress", "Accuracy and loss"),
    ("privacy", "Privacy"),
    ("cost", "What it cost"),
    ("spread", "From client to client"),
    ("participation", "Who took part"),
    ("time", "Where the time went"),
    ("plan", "How it was computed"),
    ("numbers", "Numbers"),
    ("settings", "Settings"),
)
_TABLE_ROWS: Final = 200


def run_page(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run, from what lies there; a run that was cut off has a page too.

    Args:
        folder: The run's folder, with ``events.jsonl`` and, if possible, ``config.toml``.

    Returns:
        The path of ``report.html``.

    Raises:
        DataError: There is no log in the folder.
        StorageError: The folder cannot be written.
    """
    path = Path(folder) / HTML
    write_text(path, render_run(read_run(folder)))
    return path


def render_run(run: RunLog) -> str:
    """Return the page of a run as text, the same for the same run."""
    drawn, findings, plan, time = _pictures(run), explain(run), plan_view(run), _time(run)
    private = privacy_view(run)
    tables = [(name, _settings(table)) for name, table in run.config.items()]
    present = {
        "findings": findings,
        **drawn,
        "privacy": private,
        "time": time,
        "plan": plan,
        "numbers": run.rounds,
        "settings": tables or run.start,
    }
    every = math.ceil(len(run.rounds) / _TABLE_ROWS)
    return page.fill(
        "run",
        {
            "title": title(run),
            "facts": words.unbroken(_facts(run)),
            "lead": words.unbroken(headline(run)),
            "tiles": _tiles(run),
            "sections": [section for section in _SECTIONS if present[section[0]]],
            "findings": findings,
            "pictures": drawn,
            "personal": bool(run.own),
            "clock": run.clock > 0,
            "codec": run.codec,
            "privacy": private,
            "time": time,
            "plan": plan,
            "rows": list(_rows(run, every)),
            "every": every,
            "extra": _logged(run),
            "settings": tables,
            "start": [(str(k), value(v)) for k, v in run.start.items() if k != "event" and v not in ("", None)],
        },
    )


def _facts(run: RunLog) -> str:
    n = run.setting("data", "clients")
    parts = ["simulation", f"{n:,} clients" if isinstance(n, int) else "", _scheme(run)]
    seed = run.setting("run", "seed")
    parts += [f"model {run.setting('model', 'name', '')}".strip() if run.setting("model", "name") else ""]
    parts += ["" if seed is None else f"seed {seed}"]
    return " · ".join(part for part in parts if part)


def _scheme(run: RunLog) -> str:
    scheme = run.setting("data", "scheme")
    return f"divided by {scheme}" if scheme else ""


def _tiles(run: RunLog) -> list[dict[str, str]]:
    """Return the figures at the top; those that are not known are left out."""
    tiles = []
    final, best, rounds = run.final, run.best, words.many(len(run.rounds), "round")
    if final is not None and best is not None and not run.alone:
        tiles.append(_tile("global", "Final accuracy", words.percent(final.accuracy), f"after round {final.round}"))
        tiles.append(_tile("global", "Best accuracy", words.percent(best.accuracy), f"in round {best.round}"))
    if run.spreads:
        who = "with their own models" if run.own else "global model, their data"
        tiles.append(_tile("ensemble", "Mean of the clients", words.percent((run.own or run.at_home)[-1].mean), who))
    if math.isfinite(run.target) and run.evaluated and not run.alone:
        value = f"{run.reached.round}" if run.reached else words.DASH
        who = f"{words.percent(run.target)}" + ("" if run.reached else ", not reached")
        tiles.append(_tile("method", "Rounds to the target", value, who))
    if run.seconds:
        tiles.append(_tile("member", "Time on this machine", words.duration(run.seconds), f"for {rounds}"))
    if run.traffic and run.traffic[-1]:
        down, up = sum(r.bytes_down for r in run.rounds), sum(r.bytes_up for r in run.rounds)
        tiles.append(_tile("aligned", "Sent", size(down + up), f"{size(down)} down, {size(up)} up"))
    if (private := privacy_tile(run)) is not None:
        tiles.append(_tile(**private))
    if run.clock:
        tiles.append(_tile("central", "Simulated time", words.duration(run.clock), "on the simulated network"))
    return tiles


def _tile(kind: str, what: str, value: str, who: str) -> dict[str, str]:
    return {"kind": kind, "what": what, "value": words.unbroken(value), "who": words.unbroken(who)}


def _pictures(run: RunLog) -> dict[str, Any]:
    """Draw what there is something to draw for; None for the rest."""
    from markupsafe import Markup

    drawn: dict[str, str | None] = dict.fromkeys(("progress", "cost", "spread", "participation"))
    trained = any(math.isfinite(r.client_loss) for r in run.rounds)
    if run.evaluated or trained:
        drawn["progress"] = svg(run_pictures.progress(run), "Accuracy and loss over the rounds")
    if run.evaluated and run.traffic[-1]:
        drawn["cost"] = svg(run_pictures.cost(run), "Accuracy against bytes sent and simulated time")
    if run.spreads:
        drawn["spread"] = svg(run_pictures.spread(run), "Accuracy of the clients over the rounds")
    if any(r.failures for r in run.rounds):
        drawn["participation"] = svg(run_pictures.participation(run), "What became of the clients that were asked")
    return {name: None if picture is None else Markup(picture) for name, picture in drawn.items()}


def _time(run: RunLog) -> list[dict[str, str]]:
    """Divide the wall-clock time: training, evaluation, the rest of the rounds, and what lay between them."""
    rounds, training, evaluation = (
        math.fsum(getattr(r, key) for r in run.rounds) for key in ("seconds", "training_seconds", "evaluation_seconds")
    )
    rest = max(0.0, rounds - training - evaluation)
    parts = (
        ("method", "training the clients", training),
        ("global", "evaluating", evaluation),
        ("aligned", "choosing clients and merging", rest),
        ("member", "preparing, checkpoints and files", max(0.0, run.seconds - max(rounds, training + evaluation))),
    )
    whole = math.fsum(seconds for _, _, seconds in parts)
    if whole <= 0:
        return []
    return [
        {
            "kind": kind,
            "what": what,
            "time": words.duration(seconds),
            "share": words.unbroken(words.percent(seconds / whole)),
            "width": f"{100 * seconds / whole:.2f}",
        }
        for kind, what, seconds in parts
        if seconds > 0
    ]


def _logged(run: RunLog) -> list[str]:
    """Return the names of what the algorithm logged."""
    return sorted({key for r in run.rounds for key, v in r.metrics.items() if math.isfinite(v)})[:4]


def _rows(run: RunLog, every: int) -> Iterator[dict[str, Any]]:
    extra = _logged(run)
    best = run.best
    for i, r in enumerate(run.rounds):
        if (i + 1) % max(1, every) and r is not best and r is not run.rounds[-1]:
            continue
        yield {
            "best": r is best,
            "round": r.round,
            "accuracy": words.percent(r.accuracy, 2),
            "loss": words.loss(r.loss),
            "client_loss": words.loss(r.client_loss),
            "clients": f"{r.clients} of {r.asked}" if r.asked else f"{r.clients}",
            "sent": size(run.traffic[i]),
            "clock": words.duration(r.clock),
            "time": words.duration(r.seconds),
            "extra": [words.loss(r.metrics.get(key, math.nan)) for key in extra],
        }


def _settings(table: Any) -> list[tuple[str, str]]:
    return [(str(key), value(found) or words.DASH) for key, found in table.items()]
