"""What the page shows, prepared as words and numbers: the template only places them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedloom.report import words
from fedloom.report.comparison import Comparison, Row
from fedloom.report.interpolation import Interpolation
from fedloom.report.palette import KIND_WORDS

HTML, CSV, JSON = "report.html", "report.csv", "report.json"

_MATRIX_CLASSES: Final = 20
_VALLEY: Final = 0.05  # a fall of accuracy that is worth speaking of
_RECALIBRATED: Final = (
    " Recalibrated means that the running means and variances inside the mixed model were measured again on the same "
    "samples, without their labels: mixed ones are those of no model."
)
SHADES: Final = 9
_GLOSSARY: Final = {
    "member": "trained by one member, on that member's part of the data alone",
    "method": "made out of the members' models, without their data",
    "aligned": "merged after every member's units were brought into one common order, without labels and without training",
    "baseline": "one member whose last layer was fitted to what all members say together: a merge has to beat it",
    "ensemble": "all members' models asked together: as slow as all of them, an upper reference",
    "central": "trained on all parts put together: what is given up by keeping data apart",
    "global": "made by several rounds of training apart and merging",
    "apart": "merged from models that each began from random weights of its own",
}


def overview(comparison: Comparison) -> dict[str, Any]:
    """Return everything of a page but its pictures."""
    digits = words.digits(comparison)
    ranked, best = comparison.ranked(), comparison.best()
    start = words.axis_start(row.counts.accuracy for row in ranked)
    kinds = {row.kind for row in ranked}
    return {
        "c": comparison,
        "facts": _facts(comparison),
        "result": words.unbroken(words.result(comparison)),
        "tiles": _tiles(comparison),
        "rows": [_row_view(row, comparison.class_names, start, digits) | {"best": row is best} for row in ranked],
        "notes": any(row.note for row in ranked),
        "scale": {"low": words.unbroken(words.percent(start, 0)), "high": "100\u00a0%", "zoomed": start > 0},
        "band": _band(comparison.of_kind("member"), start),
        "certainty": words.certainty(comparison),
        "glossary": [(_kind(kind), text) for kind, text in _GLOSSARY.items() if kind in kinds],
        "between": _between(comparison.lines),
        "rounds": _round_views(comparison, digits),
        "made": _made(comparison),
    }


def _facts(comparison: Comparison) -> str:
    members, samples = len(comparison.of_kind("member")), max((row.counts.n for row in comparison.rows), default=0)
    parts = [comparison.dataset, f"{len(comparison.class_names)} classes"]
    parts += [words.many(members, "member")] if members else []
    parts += [words.many(samples, "test sample")] if samples else []
    return " · ".join(part for part in parts if part)


def _tiles(comparison: Comparison) -> list[dict[str, str]]:
    aligned = bool(comparison.of_kind("aligned"))
    what = {
        "aligned": "Best aligned merge",
        "method": "Best plain merge" if aligned else "Best single merge",
        "global": "After rounds",
        "member": "Members alone",
        "central": "Central training",
    }
    tiles = []
    for kind, title in what.items():
        rows = sorted(comparison.of_kind(kind), key=lambda r: -r.counts.accuracy)
        if not rows:
            continue
        first = (comparison.best(kind) if kind in ("aligned", "method") else None) or rows[0]
        value, who = words.percent(first.counts.accuracy), first.name
        if kind == "member" and len(rows) == 1:
            title = "Member alone"
        elif kind == "member":
            value, who = words.percents(row.counts.accuracy for row in rows), f"best: {rows[0].name}"
        if kind == "global" and comparison.rounds:
            title = f"After {words.many(len(comparison.rounds), 'round')}"
        tiles.append({"kind": kind, "what": title, "value": value, "who": words.shorten(who, 40)})
    return tiles if len(tiles) > 1 else []


def _kind(kind: str) -> dict[str, str]:
    return {"kind": kind, "kind_word": KIND_WORDS[kind]}


def _row_view(row: Row, class_names: tuple[str, ...], start: float, digits: int) -> dict[str, Any]:
    counts = row.counts
    return {
        **_kind(row.kind),
        "name": row.name,
        "note": row.note,
        "accuracy": words.percent(counts.accuracy, digits),
        "f1": words.percent(counts.macro_f1, digits),
        "loss": words.loss(counts.loss),
        "time": words.duration(row.seconds),
        "place": _place(counts.accuracy, start) if math.isfinite(counts.accuracy) else None,
        "remark": _remark(row, class_names),
        "classes": [
            {
                "name": entry["class"],
                **{key: words.percent(entry[key]) for key in ("precision", "recall", "f1")},
                "width": f"{100 * entry['f1']:.0f}" if math.isfinite(entry["f1"]) else "0",
                "support": f"{entry['support']:,}",
            }
            for entry in row.per_class(class_names)
        ],
        "matrix": _matrix(np.asarray(counts.confusion), class_names),
    }


def _place(accuracy: float, start: float) -> str:
    return f"{100 * max(0.0, accuracy - start) / (1 - start):.2f}"


def _band(members: list[Row], start: float) -> dict[str, str] | None:
    values = [row.counts.accuracy for row in members if math.isfinite(row.counts.accuracy)]
    if len(values) < 2:
        return None
    width = 100 * (max(values) - min(values)) / (1 - start)
    return {"left": _place(min(values), start), "width": f"{width:.2f}"}


def _remark(row: Row, class_names: tuple[str, ...]) -> str:
    """Say which class is hardest and which mistake is the most frequent one."""
    found = [entry for entry in row.per_class(class_names) if math.isfinite(entry["f1"])]
    wrong = np.array(row.counts.confusion)
    np.fill_diagonal(wrong, 0)
    if not found or not wrong.any():
        return "No mistake on the test data." if found else ""
    hardest = min(found, key=lambda entry: entry["f1"])
    truth, said = np.unravel_index(int(wrong.argmax()), wrong.shape)
    times = int(wrong[truth, said])
    return (
        f"Hardest class: {hardest['class']} (F1 {words.percent(hardest['f1'])}). Most frequent mistake: "
        f"{class_names[truth]} taken for {class_names[said]}, {words.many(times, 'time')}."
    )


def _matrix(matrix: NDArray[np.int64], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Prepare a confusion matrix; of more than 20 classes those with the most errors stay, the others become one."""
    names, reduced = [words.shorten(name, 20) for name in class_names], 0
    if len(names) > _MATRIX_CLASSES:
        errors = matrix.sum(0) + matrix.sum(1) - 2 * np.diagonal(matrix)
        keep = np.sort(np.argsort(-errors, kind="stable")[: _MATRIX_CLASSES - 1])
        group = np.full(len(names), len(keep))
        group[keep] = np.arange(len(keep))
        small = np.zeros((len(keep) + 1, len(keep) + 1), dtype=np.int64)
        np.add.at(small, (group[:, None], group[None, :]), matrix)
        names, reduced, matrix = [*(names[k] for k in keep), "others"], len(keep), small
    share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    level = np.ceil(np.sqrt(share) * SHADES).astype(int)
    lines = [
        {
            "name": name,
            "cells": [
                {"count": int(matrix[i, j]), "shade": f"{'h' if i == j else 'm'}{level[i, j]}"}
                for j in range(len(names))
            ],
        }
        for i, name in enumerate(names)
    ]
    return {"names": names, "lines": lines, "reduced": reduced, "long": max(map(len, names), default=0) > 3}


def _round_views(comparison: Comparison, digits: int) -> list[dict[str, Any]]:
    return [
        {
            "round": record.round,
            "accuracy": words.percent(record.accuracy, digits),
            "loss": words.loss(record.loss),
            "client_loss": words.loss(record.client_loss),
            "clients": record.clients,
            "time": words.duration(record.seconds),
        }
        for record in comparison.rounds
    ]


def _between(lines: Sequence[Interpolation]) -> list[str]:
    """Say what the picture of the line between two members shows."""
    if not lines:
        return []
    before, after = lines[0], lines[1:]
    said = [
        f"Every point is a model whose weights are mixed from those of {before.first} (left) and {before.second} (right); in "
        f"the middle stands their average. Mixed {before.name}, the loss rises by up to {_rise(before)} over the straight "
        f"line between its ends (the barrier), and the accuracy falls by up to {_fall(before)}. {_valley(before)}"
    ]
    if after:
        changes = "; ".join(f"{line.name}, {_rise(line)} and {_fall(line)}" for line in after)
        said.append(
            "Aligning brings the hidden units of both into one order, which changes no answer of either. The rise and the "
            f"fall that are left: {changes}. {_healed(before, after)}"
        )
    said.append(f"Measured on {words.many(before.samples, 'test sample')}.{_RECALIBRATED if len(lines) > 2 else ''}")
    return [words.unbroken(paragraph) for paragraph in said]


def _valley(line: Interpolation) -> str:
    if line.accuracy_barrier < _VALLEY:
        return "That is no valley: the two can be averaged as they are."
    return (
        "Both ends are good models, and what lies between them is not: the same feature sits in a different unit of each, "
        "so the average blends unrelated units and falls into the valley. That is why averaging fails here."
    )


def _healed(before: Interpolation, after: Sequence[Interpolation]) -> str:
    left = min(line.accuracy_barrier for line in after)
    if before.accuracy_barrier < _VALLEY:
        return ""
    if left < _VALLEY:
        return "The valley is gone, and the average is a good model."
    if left < before.accuracy_barrier / 2:
        return "Most of the valley is filled; REPAIR and least squares, in the table above, care for the rest."
    return "Much of the valley is left: an average alone does not do for these models."


def _rise(line: Interpolation) -> str:
    return f"{words.loss(line.barrier)} nats"


def _fall(line: Interpolation) -> str:
    return f"{100 * line.accuracy_barrier:.1f} points"


def _made(comparison: Comparison) -> Iterator[tuple[str, str]]:
    yield "Data set", comparison.dataset
    yield from comparison.made.items()
    yield "Beside this page", f"{CSV} (the table), {JSON} (everything, with all confusion matrices and curves)"
