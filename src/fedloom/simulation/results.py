"""Results of a sweep: a row per combination, with means and 95 % intervals over seeds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom import events, files
from fedloom.config import Config
from fedloom.simulation.folder import CONFIG
from fedloom.simulation.run import ALONE, size

if TYPE_CHECKING:
    from rich.table import Table

FIGURES = ("final_accuracy", "best_accuracy", "rounds_to_target", "clients_mean", "clients_worst", "epsilon", "seconds")
OF_GLOBAL = ("final_accuracy", "best_accuracy", "best_round", "rounds_to_target")
SUMS = ("bytes_up", "bytes_down")
SEED = "seed"
FEWER = 1.5


@dataclass(frozen=True)
class Interval:
    """A mean over runs, and how sure it is.

    Attributes:
        mean: The mean; NaN without values.
        half: Half the width of the 95 % interval of Student's t; None for fewer than two values.
        std: The standard deviation (n - 1); None likewise.
        n: The number of values.
    """

    mean: float
    half: float | None
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Interval:
        """Return the interval of some values.

        Example:
            >>> interval = Interval.of([1.0, 2.0, 3.0])
            >>> interval.mean, round(interval.half, 3), interval.n
            (2.0, 2.484, 3)
        """
        known = [float(value) for value in values if not math.isnan(value)]
        n = len(known)
        mean = math.fsum(known) / n if n else math.nan
        if n < 2:
            return cls(mean, None, None, n)
        from scipy.special import stdtrit

        std = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
        return cls(mean, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n), std, n)

    def to_json(self) -> dict[str, Any]:
        """Return the interval as plain data."""
        bounds = (None, None) if self.half is None else (self.mean - self.half, self.mean + self.half)
        return {"mean": self.mean, "low": bounds[0], "high": bounds[1], "std": self.std, "n": self.n}


def run_row(name: str, values: Mapping[str, Any], folder: Path, failed: str = "") -> dict[str, Any]:
    """Return one run's figures from its events.

    Args:
        name: Of the run.
        values: The grid's values there.
        folder: Of the run; it may be missing where the run failed.
        failed: Why there is no result; nothing when all is well.
    """
    row: dict[str, Any] = {"name": name, "folder": folder.name, "values": dict(values), "failed": failed}
    if failed:
        return row | dict.fromkeys((*FIGURES, *SUMS))
    log, alone = events.read(folder).rows, Config.read(folder / CONFIG).algorithm.name == ALONE
    end: dict[str, Any] = next((e for e in reversed(log) if e["event"] == "end"), {})
    rounds = [e for e in log if e["event"] == "round"]
    on_clients = [e for e in log if e["event"] == "clients"]
    last = on_clients[-1] if on_clients else {}
    keys = ("final_accuracy", "best_accuracy", "best_round", "rounds_to_target", "seconds", "rounds")
    row |= {key: end.get(key) for key in keys}
    row |= {"clients_mean": last.get("mean"), "clients_worst": last.get("worst_decile")}
    row |= {total: sum(e[total] for e in rounds) for total in SUMS}
    row |= {"epsilon": rounds[-1]["metrics"].get("epsilon") if rounds else None}
    row |= {"void": any(e["event"] == "privacy" and e.get("void") is True for e in log)}
    if alone:
        row |= dict.fromkeys(OF_GLOBAL)
    curve = [[e["round"], e["accuracy"]] for e in rounds if e["accuracy"] is not None]
    return row | {"clock": rounds[-1]["clock"] if rounds else 0.0, "curve": curve}


def table(runs: Sequence[Mapping[str, Any]], grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the results of a sweep: its runs, and a row of intervals per combination, whatever the seed."""
    keys = [key for key in grid if key.removeprefix("run.") != SEED]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run["values"][key]) for key in keys), []).append(run)
    rows = []
    for members in groups.values():
        values = {key: members[0]["values"][key] for key in keys}
        figures = {figure: Interval.of(_known(members, figure)).to_json() for figure in (*FIGURES, *SUMS)}
        failed, void = (sum(bool(run.get(key)) for run in members) for key in ("failed", "void"))
        rows.append({"values": values, "runs": len(members), "failed": failed, "void": bool(void), **figures})
    return {"grid": {key: list(values) for key, values in grid.items()}, "keys": keys, "rows": rows, "runs": list(runs)}


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``results.json`` and ``results.csv`` (a line per run)."""
    files.write_json(folder / "results.json", results)
    keys = list(results["grid"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("best_round", "rounds", *FIGURES, *SUMS, "clock", "failed")
    writer.writerow([*keys, *columns])
    for run in results["runs"]:
        figures = [run.get(column) for column in columns]
        writer.writerow([*(run["values"][key] for key in keys), *("" if v is None else v for v in figures)])
    files.write_text(folder / "results.csv", text.getvalue())


_TITLES = {
    "final_accuracy": "final accuracy",
    "best_accuracy": "best",
    "rounds_to_target": "rounds to target",
    "clients_mean": "clients' mean",
    "clients_worst": "worst 10 %",
    "epsilon": "epsilon",
    "seconds": "seconds",
    "bytes_up": "sent up",
    "bytes_down": "sent down",
}


def cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the heading and the rows of the results as texts; figures that no run has are left out."""
    rows, keys = results["rows"], results["keys"]
    shown = [figure for figure in FIGURES if any(row[figure]["n"] for row in rows)]
    shown += [total for total in SUMS if _differs([row[total]["mean"] for row in rows])]
    heading = [*keys, "runs", *(_TITLES[figure] for figure in shown)]
    body = []
    for row in rows:
        figures = [
            _shown(figure, row[figure], row["runs"]) + (", void" if figure == "epsilon" and row["void"] else "")
            for figure in shown
        ]
        body.append([*(str(row["values"][key]) for key in keys), str(row["runs"] - row["failed"]), *figures])
    return heading, body


def rich_table(results: Mapping[str, Any]) -> Table:
    """Return the results as a table for the terminal."""
    from rich import box
    from rich.table import Table

    heading, body = cells(results)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(heading):
        made.add_column(name, justify="left" if i < len(results["keys"]) else "right", overflow="fold")
    for row in body:
        made.add_row(*row)
    return made


def html_table(results: Mapping[str, Any]) -> str:
    """Return the results as an HTML table for a notebook."""
    heading, body = cells(results)
    head = "".join(f"<th>{escape(text)}</th>" for text in heading)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in body)
    return f"<table><tr>{head}</tr>{rows}</table>"


def _differs(sums: Iterable[float]) -> bool:
    """Return whether some sent far fewer bytes than others, as codecs make them do."""
    known = [total for total in sums if total > 0]
    return bool(known) and max(known) > FEWER * min(known)


def _shown(figure: str, interval: Mapping[str, Any], runs: int) -> str:
    """Return a mean with half of its interval: ``91.3 % ± 0.4``."""
    if not interval["n"]:
        return "-"
    if figure in SUMS:
        return size(interval["mean"])
    if figure == "epsilon":
        return f"{interval['mean']:.3g}"
    share = figure not in ("rounds_to_target", "seconds")
    scale, unit = (100, " %") if share else (1, "")
    half = "" if interval["high"] is None else f" ± {scale * (interval['high'] - interval['mean']):.2f}"
    missed = f" ({interval['n']} of {runs})" if figure == "rounds_to_target" and interval["n"] < runs else ""
    return f"{scale * interval['mean']:.{2 if share else 1}f}{unit}{half}{missed}"


def _known(runs: Iterable[Mapping[str, Any]], figure: str) -> list[float]:
    return [run[figure] for run in runs if run.get(figure) is not None]
