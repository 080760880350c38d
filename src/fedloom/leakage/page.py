"""The page of the gallery: what was seen, why, what helps, and what that costs."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedloom.leakage import words_of_page as said
from fedloom.leakage.lessons import DELTA, REFERENCES, Learned
from fedloom.report import page, words
from fedloom.report.drawing import style, svg
from fedloom.report.palette import KIND_COLOURS, MUTED
from fedloom.report.panels import figure_of, percent_axis
from fedloom.report.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedloom.leakage.gallery import Attempt
    from fedloom.leakage.leak import Leak
    from fedloom.leakage.membership import Estimate

KINDS: Final = {"few": "apart", "few-private": "aligned", "many": "method", "many-private": "global"}
"""The colour of each model."""

_LEAST: Final = 1e-3


def render(found: Leak) -> str:
    """Return the page as text; it needs nothing but itself."""
    from markupsafe import Markup

    picture = Markup(svg(roc(found), "ROC curves: members found against false alarms")) if found.lessons else ""
    sections = [("findings", "What happened"), ("search", "From an update to the picture")]
    sections += [("division", "One division")] if found.divisions else []
    sections += [("membership", "Who was in the data?")] if found.lessons else []
    sections += [("costs", "What helps"), ("made", "How it was made")]
    made = provenance(f"fedloom leak {found.data} --model {found.model}", seed=found.seed)
    return page.fill(
        "leak",
        {
            "title": "What an update gives away",
            "facts": f"{found.data} · model {found.model} · seed {found.seed}",
            "lead": words.unbroken(said.lead(found)),
            "tiles": _tiles(found),
            "sections": sections,
            "findings": said.findings(found),
            "searches": [_card(attempt, found) for attempt in found.searches],
            "divisions": [_card(attempt, found) for attempt in found.divisions],
            "divided": found.divided,
            "roc": picture,
            "references": REFERENCES,
            "rows": [_row(one) for one in found.lessons],
            "delta": f"{DELTA:g}",
            "costs": said.costs(found),
            "made": [*made.items(), ("Noise", said.NOISE), ("Sources", said.SOURCES)],
        },
    )


def roc(found: Leak) -> Figure:
    """Draw the ROC curves of every model: of the attack by loss, and of the calibrated one on logarithmic axes."""
    with style():
        figure, (left, right) = figure_of(4.0, columns=2)
        for one in found.lessons:
            look: dict[str, Any] = {"color": KIND_COLOURS[KINDS[one.lesson.name]], "label": one.lesson.title}
            left.plot(one.loss.false_alarms, one.loss.hits, **look)
            alarms, hits = one.calibrated.false_alarms, one.calibrated.hits
            right.plot(np.maximum(alarms, _LEAST / 10), np.maximum(hits, _LEAST / 10), **look)
        line = [_LEAST / 10, 1]
        left.set(title="By the loss", xlim=(0, 1), ylim=(0, 1))
        right.set(title="Calibrated, logarithmic", xscale="log", yscale="log", xlim=(_LEAST, 1), ylim=(_LEAST, 1))
        for axes in (left, right):
            axes.plot(line, line, color=MUTED, ls=(0, (4, 3)), lw=1)
            axes.set(xlabel="false alarms among others", ylabel="members found")
            axes.grid()
            percent_axis(axes.xaxis)
            percent_axis(axes.yaxis)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def png(picture: NDArray[Any]) -> str:
    """Return a picture (H, W), (H, W, 1) or (H, W, 3) of 0-1 as a ``data:`` address of a PNG."""
    from PIL import Image

    shown = np.round(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(shown[..., 0] if shown.ndim == 3 and shown.shape[2] == 1 else shown).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _tiles(found: Leak) -> list[dict[str, str]]:
    tiles = []
    by_name = {attempt.protection.name: attempt for attempt in found.searches}
    for name, what, kind in (
        ("plain", "One update, nothing protects it", "apart"),
        ("noise-1", "With noise", "global"),
    ):
        if name in by_name:
            one = by_name[name]
            value = f"{one.psnr.mean():.0f} dB"
            tiles.append({"kind": kind, "what": what, "value": value, "who": f"a guess has {one.guess.mean():.0f} dB"})
    titles = {"few": "Membership, learned by heart", "many-private": "Membership, with DP-SGD"}
    for learned in found.lessons:
        name = learned.lesson.name
        if name in titles:
            value = words.percent(learned.calibrated.auc.value, 0)
            tiles.append({"kind": KINDS[name], "what": titles[name], "value": value, "who": "AUC; 50 % is guessing"})
    return tiles


def _card(attempt: Attempt, found: Leak) -> dict[str, Any]:
    """Return what a card of the gallery shows."""
    return {
        "title": attempt.protection.title,
        "verdict": attempt.verdict,
        "word": said.VERDICTS[attempt.verdict],
        "truth": [png(picture) for picture in attempt.originals],
        "found": [png(picture) for picture in attempt.found],
        "figures": said.figures(attempt),
        "why": said.why(attempt, found),
    }


def _row(one: Learned) -> dict[str, Any]:
    epsilon = words.DASH if one.lesson.privacy is None else "?" if one.epsilon is None else f"{one.epsilon:.1f}"
    cells = [
        {"text": f"{one.samples:,}", "range": ""},
        {"text": words.percent(one.loss.accuracy), "range": ""},
        {"text": words.percent(one.loss.member_accuracy), "range": ""},
        {"text": epsilon, "range": ""},
        *(_cell(e) for e in (one.loss.auc, one.calibrated.auc, one.loss.advantage, one.calibrated.found)),
    ]
    for cell in cells:
        cell["text"] = words.unbroken(cell["text"])
    return {"title": one.lesson.title, "kind": KINDS[one.lesson.name], "cells": cells}


def _cell(figure: Estimate) -> dict[str, str]:
    low, high = (words.percent(end, 0).removesuffix(" %") for end in (figure.low, figure.high))
    return {"text": words.percent(figure.value, 0), "range": f"{low} to {high}"}
