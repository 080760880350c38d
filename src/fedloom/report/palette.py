"""The colours and fonts of every picture and page, in one place; readable with the usual kinds of colour blindness."""

from __future__ import annotations

from typing import Any, Final

INK: Final = "#1d2733"
MUTED: Final = "#566270"
GRID: Final = "#d9dfe6"

KINDS: Final = ("member", "method", "aligned", "baseline", "ensemble", "central", "global", "apart")

KIND_COLOURS: Final = {
    "member": "#76838f",
    "method": "#0072b2",
    "aligned": "#a97f00",
    "baseline": "#3f4c59",
    "ensemble": "#a3528c",
    "central": "#c85200",
    "global": "#00805e",
    "apart": "#b3321b",
}

KIND_WORDS: Final = {
    "member": "member",
    "method": "merged",
    "aligned": "aligned",
    "baseline": "baseline",
    "ensemble": "ensemble",
    "central": "central",
    "global": "after rounds",
    "apart": "own starts",
}

# Name of the style-sheet variable, its value on a light page and on a dark one. A picture is drawn in the light values;
# inside a page each of them is replaced by its variable, so that one picture serves both schemes.
THEME: Final = {
    "ink": (INK, "#e6ebf1"),
    "muted": (MUTED, "#a3afbb"),
    "grid": (GRID, "#37424e"),
    "member": (KIND_COLOURS["member"], "#9aa8b5"),
    "method": (KIND_COLOURS["method"], "#58b2ea"),
    "aligned": (KIND_COLOURS["aligned"], "#e2bd4a"),
    "baseline": (KIND_COLOURS["baseline"], "#c6d0da"),
    "ensemble": (KIND_COLOURS["ensemble"], "#dd96c3"),
    "central": (KIND_COLOURS["central"], "#f4905a"),
    "global": (KIND_COLOURS["global"], "#35c497"),
    "apart": (KIND_COLOURS["apart"], "#ff8f75"),
}

# For things without a kind (classes, single members): these stay as they are on a dark page.
SERIES: Final = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#949494")
CLASSES: Final = (*SERIES, "#d45e00", "#fbafe4", "#ece133")

# A heat map is this colour, more or less transparent, so that the page shines through in either scheme.
HEAT: Final = "#2a86c4"
HEAT_ALPHA: Final = 0.72

# The rest of a page: surfaces, lines and the levels of findings, light and dark.
PAGE: Final = {
    "page": ("#ffffff", "#12171d"),
    "card": ("#fcfdfe", "#181f27"),
    "line": ("#dde3e9", "#2e3843"),
    "track": ("#edf1f5", "#252e38"),
    "code": ("#eef2f6", "#232c36"),
    "bestrow": ("#e8f2fa", "#1b2f40"),
    "link": ("#00629b", "#6cbcf0"),
    "good": ("#007a58", "#35c497"),
    "info": ("#00659e", "#58b2ea"),
    "warning": ("#8f5b00", "#e9b44c"),
    "problem": ("#b3321b", "#ff8f75"),
    "hit": (HEAT, "#3f97d3"),
    "miss": ("#d9480f", "#e8662f"),
}

ICONS: Final = {"good": "✓", "info": "i", "warning": "!", "problem": "✕"}

RC: Final[dict[Any, Any]] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.dpi": 100.0,
    "savefig.dpi": 160.0,
}
