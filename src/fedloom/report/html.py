"""The report: one page that needs nothing but itself, and the same as CSV and JSON beside it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import math
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedloom.files import write_text
from fedloom.report import pictures, tables, words
from fedloom.report.comparison import Comparison
from fedloom.report.palette import ICONS, PAGE, THEME
from fedloom.report.views import CSV, HTML, JSON, SHADES, overview

if TYPE_CHECKING:
    from jinja2 import Environment

_LEVELS: Final = {"good": "Good", "info": "Note", "warning": "Warning", "problem": "Problem"}
_SECTIONS: Final = (
    ("findings", "What happened"),
    ("models", "All models"),
    ("accuracy", "Accuracy"),
    ("between", "Between two members"),
    ("curves", "Learning curves"),
    ("rounds", "Rounds"),
    ("classes", "Who holds what"),
    ("each", "Each model"),
    ("refused", "Not run"),
    ("made", "How it was made"),
)
# Adds a copy button to each command; without scripts the command can still be selected with one click.
_SCRIPT: Final = """
if (navigator.clipboard) for (const box of document.querySelectorAll(".try")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.onclick = () => navigator.clipboard.writeText(box.querySelector("code").textContent)
    .then(() => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); });
  box.append(button);
}
"""


def write(comparison: Comparison, folder: str | Path) -> Path:
    """Write ``report.html``, ``report.csv`` and ``report.json`` into a folder, each atomically.

    Equal comparisons give equal bytes.

    Returns:
        The path of ``report.html``.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder = Path(folder)
    page, table = render(comparison), to_csv(comparison)
    comparison.save(folder / JSON)
    write_text(folder / CSV, table)
    write_text(folder / HTML, page)
    return folder / HTML


def to_csv(comparison: Comparison) -> str:
    """Return one line per model, best first: shares 0-1, loss in nats, seconds; what is unknown is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "kind", "accuracy", "macro_f1", "loss", "seconds", "note"])
    for row in comparison.ranked():
        figures = (row.counts.accuracy, row.counts.macro_f1, row.counts.loss, row.seconds)
        numbers = [f"{value:.6g}" if math.isfinite(value) else "" for value in figures]
        writer.writerow([row.name, row.kind, *numbers, row.note])
    return text.getvalue()


def render(comparison: Comparison) -> str:
    """Return the page as text: no address outside it, every name escaped, the same text for equal comparisons."""
    from markupsafe import Markup

    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    drawn = _pictures(comparison)
    present = {
        "findings": comparison.findings,
        **dict.fromkeys(("models", "accuracy", "each"), comparison.rows),
        **{name: drawn[name] for name in ("between", "curves", "rounds", "classes")},
        "refused": comparison.refused,
        "made": True,
    }
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **overview(comparison),
            sections=[section for section in _SECTIONS if present[section[0]]],
            pictures=drawn,
            css=Markup(_css()),
            script=Markup(_SCRIPT),
            script_hash=f"sha256-{digest}",
            icons=ICONS,
            levels=_LEVELS,
        )
    )
    return page.lstrip()


def notebook_view(comparison: Comparison) -> str:
    """Return what a notebook shows: headline, findings, table and bar plot, in the notebook's own colours."""
    from markupsafe import Markup

    label = "Bar plot: accuracy of every model"
    bars = pictures.svg(pictures.accuracy_bars(comparison), label) if comparison.rows else ""
    findings = tables.findings_html(comparison.findings)
    template = _environment().get_template("notebook.html.j2")
    return template.render(**overview(comparison), findings=Markup(findings), bars=Markup(bars))


def _pictures(comparison: Comparison) -> dict[str, Any]:
    """Draw the page's pictures; None for those that there is nothing to draw for."""
    from markupsafe import Markup

    def best(kind: str) -> float | None:
        return max((row.counts.accuracy for row in comparison.of_kind(kind)), default=None)

    drawn: dict[str, Any] = dict.fromkeys(("bars", "between", "curves", "rounds", "classes"))
    if comparison.rows:
        drawn["bars"] = pictures.svg(pictures.accuracy_bars(comparison), "Bar plot: accuracy of every model")
    if comparison.lines:
        figure = pictures.interpolation_curve(comparison.lines)
        drawn["between"] = pictures.svg(figure, "Loss and accuracy on the straight line between two members")
    if any(comparison.curves.values()):
        central = {row.name for row in comparison.of_kind("central")}
        figure = pictures.learning_curves(comparison.curves, emphasis=central)
        drawn["curves"] = pictures.svg(figure, "Learning curves: loss and accuracy over the epochs")
    if comparison.rounds:
        figure = pictures.rounds_curve(comparison.rounds, central=best("central"), best_member=best("member"))
        drawn["rounds"] = pictures.svg(figure, "Accuracy of the global model over the rounds")
    if comparison.class_counts:
        figure = pictures.class_distribution(comparison.class_counts, comparison.class_names)
        drawn["classes"] = pictures.svg(figure, "Number of samples of each class at each client")
    return {name: None if svg is None else Markup(svg) for name, svg in drawn.items()}


@cache
def _environment() -> Environment:
    from jinja2 import DictLoader, Environment, StrictUndefined

    names = ("report.html.j2", "notebook.html.j2")
    sources = {name: _resource(name) for name in names}
    made = Environment(
        loader=DictLoader(sources), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    made.filters["unbroken"] = words.unbroken
    return made


def _resource(name: str) -> str:
    return files("fedloom.report").joinpath(name).read_text(encoding="utf-8")


def _css() -> str:
    """Return the style sheet: the colours of both schemes, then the rules; paper always gets the light ones."""
    pairs = {**THEME, **PAGE}
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in pairs.items()) for i in (0, 1))
    levels = range(1, SHADES + 1)
    shades = [f".cm .h{n}{{--hue:var(--hit);--a:{n * 8}%}}.cm .m{n}{{--hue:var(--miss);--a:{n * 8}%}}" for n in levels]
    schemes = f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    return "\n".join([schemes, "".join(shades), _resource("report.css")])
