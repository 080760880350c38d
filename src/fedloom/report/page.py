"""What every page has in common: its templates, its style sheet, and the one script that copies a command."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from fedloom.report import words
from fedloom.report.palette import ICONS, PAGE, THEME
from fedloom.report.views import SHADES

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES: Final = ("base", "parts", "report", "notebook", "run", "runs", "sweep", "leak")
_LEVELS: Final = {"good": "Good", "info": "Note", "warning": "Warning", "problem": "Problem"}
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


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Fill a page's template: no address outside it, every text escaped, the same page for equal values.

    Args:
        template: Its name, such as ``"report"``.
        values: What it shows.
    """
    from markupsafe import Markup

    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    common = {
        "css": Markup(_css()),
        "script": Markup(_SCRIPT),
        "script_hash": f"sha256-{digest}",
        "icons": ICONS,
        "levels": _LEVELS,
    }
    return environment().get_template(f"{template}.html.j2").render(**values, **common).lstrip()


@cache
def environment() -> Environment:
    """Return the templates; every text in them is escaped, and a value that is missing is an error."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    sources = {f"{name}.html.j2": _resource(f"{name}.html.j2") for name in _TEMPLATES}
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
