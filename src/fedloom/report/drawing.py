"""A Matplotlib figure as SVG for a page, or as a PNG file. Equal figures give equal bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.files import atomic
from fedloom.report.palette import RC, THEME

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif"


@contextmanager
def style() -> Iterator[None]:
    """Set fedloom's look for the Matplotlib calls inside the block, and restore the user's own afterwards."""
    import matplotlib

    with matplotlib.rc_context(RC):
        yield


@contextmanager
def _any_script() -> Iterator[None]:
    """Stay silent about letters that the font lacks: a browser has them, and a box in a PNG says enough."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support")
        yield


def svg(figure: Figure, label: str = "Picture") -> str:
    """Turn a figure into an ``<svg>`` element to be placed in a page.

    The element has no date, no outside reference and no identifier that another picture of the page could share; text
    stays text; the colours follow the page's light or dark scheme (variables ``--ink``, ``--method``, ...).

    Args:
        figure: The figure.
        label: What the picture shows, for people who cannot see it; it also keeps identifiers of two pictures apart.

    Returns:
        The element, with ``role="img"`` and the label.
    """
    import matplotlib

    buffer = io.StringIO()
    with style(), _any_script(), matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    width, height = (float(inches) * 72 for inches in figure.get_size_inches())
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return head + _tidy(body).strip()


def _tidy(body: str) -> str:
    """Drop what a page does not need from the SVG's inside, and put the page's variables in. Text is left alone."""
    used = {a or b for a, b in re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', body)}

    def tag(match: re.Match[str]) -> str:
        text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", match[0])
        return re.sub(r'style="([^"]*)"', lambda m: f'style="{_themed(m[1])}"', text)

    return re.sub(r"\n\s*", "\n", re.sub(r"<[^>]*>", tag, body))


def _themed(style: str) -> str:
    style = re.sub(r"(font: [^;]*?px) [^;]*", rf"\g<1> {_FONT}", style)
    for name, (light, _) in THEME.items():
        style = style.replace(light, f"var(--{name}, {light})")
    return style


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file, atomically, on white, at 160 dots per inch.

    Raises:
        StorageError: The place cannot be written.
    """
    with atomic(path) as temporary, style(), _any_script():
        figure.savefig(temporary, format="png", facecolor="white", metadata={"Software": None})
