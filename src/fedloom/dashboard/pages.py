"""Pages: the files of ``page/`` put together; all that a browser needs is in one answer, and it may load nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from fedloom.report.palette import PAGE, SERIES, THEME

_STYLES: Final = ("style.css",)
_SCRIPTS: Final = ("words.js", "format.js", "dom.js", "charts.js", "runs.js", "tables.js", "main.js")


@cache
def page() -> str:
    """Return the dashboard."""
    return _filled("page.html", _style(), _script())


@cache
def door(wrong: bool) -> str:
    """Return the page that asks for the token; ``wrong`` after one that did not fit."""
    text = _filled("door.html", _style(), "")
    return text.replace("{{wrong}}", '<p class="wrong" role="alert">That is not it. / No es ese.</p>' if wrong else "")


@cache
def policy(name: str) -> str:
    """Return what a page may do: its own style and script, and to talk to where it came from."""
    parts = ["default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "img-src data:"]
    parts += [f"style-src '{_digest(_style())}'", "form-action 'self'"]
    if name == "page":
        parts += [f"script-src '{_digest(_script())}'", "connect-src 'self'"]
    return "; ".join(parts)


def _filled(name: str, style: str, script: str) -> str:
    return _resource(name).replace("{{style}}", style).replace("{{script}}", script)


@cache
def _style() -> str:
    pairs = {**THEME, **PAGE}
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in pairs.items()) for i in (0, 1))
    series, pale = ("".join(f".s{i}{{--c:{colour(one)}}}" for i, one in enumerate(SERIES)) for colour in (str, _paler))
    schemes = f":root{{{light}}}{series}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}{pale}}}"
    return "\n".join(["", schemes, *map(_resource, _STYLES)])


@cache
def _script() -> str:
    return "\n".join(['"use strict";', *map(_resource, _SCRIPTS)])


def _paler(colour: str) -> str:
    """Return a colour with a third of white in it, for a dark page."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) / 3):02x}" for part in parts)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _resource(name: str) -> str:
    return files("fedloom.dashboard").joinpath("page", name).read_text(encoding="utf-8")
