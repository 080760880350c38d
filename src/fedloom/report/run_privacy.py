"""What a run promises about privacy, in plain words and as a picture: the section of its page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fedloom.events import mapping, number
from fedloom.report import words
from fedloom.report.drawing import style, svg
from fedloom.report.palette import KIND_COLOURS, MUTED
from fedloom.report.panels import figure_of, whole_numbers
from fedloom.report.run_curves import finish, line_of, panel, plot
from fedloom.report.run_reading import RunLog
from fedloom.report.run_words import epsilon

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRONG: Final = 1.0
REASONABLE: Final = 10.0
"""Up to which epsilon a promise is called strong or reasonable (N. Ponomareva et al., "How to DP-fy ML", JAIR 2023)."""

_ACCOUNTANTS: Final = {
    "rdp": "Rényi differential privacy (rdp), by Google's dp-accounting; a safe upper bound",
    "pld": "privacy loss distributions (pld), by Google's dp-accounting; the tighter upper bound",
}
_SECURE: Final = {
    "sum": "the server gets nothing but the sum of a round's updates; computed here without the protocol's messages",
    "protocol": "the server gets nothing but the sum of a round's updates, by the whole protocol with all its messages",
}
_VOIDED: Final = (
    "noise that can be repeated (noise_seed), updates or losses that leave a client beside the noisy sum, and clients that "
    "are chosen otherwise than epsilon was computed for. Settings that would do so are refused before the first round"
)


def privacy_view(run: RunLog) -> dict[str, Any] | None:
    """Return what the section shows; None where nothing is hidden.

    Returns:
        ``meaning`` (a sentence or two), ``facts`` (pairs of texts), ``warnings``, ``void``, ``noise`` (whether there is
        any) and ``picture``.
    """
    if not run.privacy:
        return None
    from markupsafe import Markup

    drawn = Markup(svg(privacy_picture(run), "Epsilon over the rounds, and what it bought")) if run.spent else None
    warned = run.privacy.get("warnings")
    return {
        "meaning": meaning(run),
        "facts": [(label, words.unbroken(text)) for label, text in _facts(run) if text],
        "warnings": [str(text) for text in warned] if isinstance(warned, list) else [],
        "void": run.void,
        "noise": bool(run.spent),
        "picture": drawn,
    }


def privacy_tile(run: RunLog) -> dict[str, str] | None:
    """Return the epsilon as a tile at the top of the page; None where nothing is hidden."""
    if not run.privacy:
        return None
    delta = f"at delta {figure(run.privacy.get('delta'))}"
    if not math.isfinite(run.epsilon):
        return {"kind": "apart", "what": "Epsilon", "value": "none", "who": "clipped, but without noise"}
    if run.void:
        who = f"{run.epsilon:.3g} {delta}, were the noise secret"
        return {"kind": "apart", "what": "Epsilon", "value": "void", "who": who}
    return {"kind": "baseline", "what": f"Epsilon per {unit(run)}", "value": epsilon(run), "who": delta}


def unit(run: RunLog) -> str:
    """Return what is hidden: "client" or "example"."""
    return "example" if run.privacy.get("unit") == "example" else "client"


def grade(value: float) -> str:
    """Call an epsilon by its name.

    Example:
        >>> grade(0.5), grade(8.0), grade(30.0)
        ('strong', 'reasonable', 'weak')
    """
    return "strong" if value <= STRONG else "reasonable" if value <= REASONABLE else "weak"


def meaning(run: RunLog) -> str:
    """Say what the epsilon of a run means."""
    whose = {"client": "any one client had taken part", "example": "any one sample had been among a client's data"}
    if not math.isfinite(run.epsilon):
        return "Updates were cut to a length, and no noise was added: that hides nobody. Set noise or target_epsilon."
    odds = math.exp(min(run.epsilon, 700.0))
    times = f"{odds:.3g} times" if odds < 1000 else "more than a thousand times"
    said = (
        f"Suppose somebody has the model and bets on whether {whose[unit(run)]}. With an epsilon of {run.epsilon:.3g} the "
        f"model shifts the odds of that bet by at most e^{run.epsilon:.3g}, {times}: by common reckoning a "
        f"{grade(run.epsilon)} promise."
    )
    if run.epsilon > STRONG:
        said += " That is the worst case; attacks that are known get far less out of such a model."
    if not run.void:
        return said
    return (
        "Void: the noise of this run comes from a seed (noise_seed), so whoever knows that can take it off again. Such a run "
        f"is good for trying things out, and protects nobody. What follows would hold if the noise were secret. {said}"
    )


def _facts(run: RunLog) -> Iterator[tuple[str, str]]:
    from fedloom.simulation.guarantee import MECHANISMS

    said = run.privacy
    name = str(said.get("mechanism") or "unknown")
    kind = MECHANISMS.get(name)
    hidden = {
        "client": "a client with all its samples: the model would be almost the same without it",
        "example": "one sample of a client: the model would be almost the same without it",
    }
    planned = number(said.get("epsilon"))
    yield "Mechanism", f"{name}: {kind.title}" if kind else name
    yield "Who is hidden", hidden[unit(run)]
    yield "From whom", str(said.get("trust") or "")
    if math.isfinite(run.epsilon):
        spent = f"{run.epsilon:.3g}{' (void)' if run.void else ''} spent in {words.many(len(run.rounds), 'round')}"
        yield "Epsilon", f"{spent}; {planned:.3g} was planned for {run.planned}" if math.isfinite(planned) else spent
        yield (
            "Delta",
            f"{figure(said.get('delta'))}: a chance that the promise fails; it should be far below {_one_in(run)}",
        )
    yield "Clip", _clip(run)
    yield "Noise", _noise(run)
    yield "Secure aggregation", _SECURE.get(str(said.get("secure_aggregation")), "")
    if math.isfinite(run.epsilon):
        accountant = str(said.get("accountant") or "")
        yield "Computed with", _ACCOUNTANTS.get(accountant, accountant)
        yield "What would void it", _VOIDED


def _one_in(run: RunLog) -> str:
    clients = run.start.get("clients")
    if unit(run) == "example" or not isinstance(clients, int) or clients < 1:
        return (
            "one divided by the number of samples" if unit(run) == "example" else "one divided by the number of clients"
        )
    return f"one divided by the number of clients, 1 / {clients:,} = {1 / clients:.2g}"


def _clip(run: RunLog) -> str:
    what = "a gradient" if unit(run) == "example" else "an update"
    text = f"{what} is at most {figure(run.privacy.get('clip'))} long (L2 norm)"
    quantile = number(run.privacy.get("clip_quantile"))
    if not math.isfinite(quantile):
        return text
    last = _logged(run, "clip")
    end = f", {last[-1][1]:.3g} at the end" if last else ""
    return (
        f"{text} at first{end}: the bound follows the lengths, so that {words.percent(quantile, 0)} of them stay below"
    )


def _noise(run: RunLog) -> str:
    multiplier = number(run.privacy.get("multiplier"))
    if not math.isfinite(multiplier):
        return ""
    last = _logged(run, "noise")
    end = f"; on every number of the mean a standard deviation of {last[-1][1]:.3g}" if last else ""
    return f"{multiplier:.4g} times the clip (the noise multiplier){end}" if multiplier else "none"


def figure(value: Any) -> str:
    """Write a number; a dash for anything else."""
    found = number(value)
    return f"{found:g}" if math.isfinite(found) else words.DASH


def _logged(run: RunLog, key: str) -> list[tuple[float, float]]:
    found = [(float(r.round), mapping(r.metrics).get(key, math.nan)) for r in run.rounds]
    return [(n, value) for n, value in found if math.isfinite(value)]


def privacy_picture(run: RunLog) -> Figure:
    """Draw epsilon round by round beside the planned one, the accuracy against it, and a clip that moves."""
    bought = not run.alone and bool(run.along("epsilon"))
    clips = _logged(run, "clip") if math.isfinite(number(run.privacy.get("clip_quantile"))) else []
    with style():
        figure, panels = figure_of(3.3, columns=1 + bought + bool(clips))
        axes = iter([panels] if not (bought or clips) else panels)
        _spent(next(axes), run)
        if bought:
            last = next(axes)
            panel(last, [line_of(run, "epsilon")], "epsilon", run.target, [{"color": KIND_COLOURS["global"]}])
            last.set_title("Accuracy against epsilon")
        if clips:
            last = next(axes)
            plot(last, clips, color=KIND_COLOURS["ensemble"])
            last.set(title="Clip: longest update", xlabel="round")
            finish(last)
            whole_numbers(last)
            last.set_ylim(bottom=0)
    return figure


def _spent(axes: Axes, run: RunLog) -> None:
    plot(axes, [(float(n), value) for n, value in run.spent.items()], color=KIND_COLOURS["baseline"])
    planned = number(run.privacy.get("epsilon"))
    if math.isfinite(planned):
        axes.axhline(planned, color=MUTED, ls=(0, (1.5, 1.5)), lw=1.2)
        text, place = f"planned {planned:.3g}", axes.get_yaxis_transform()
        axes.text(0.03, planned, text, transform=place, size=8, color=MUTED, va="bottom")
    axes.set(title=f"Epsilon spent{' (void)' if run.void else ''}", xlabel="round")
    finish(axes)
    whole_numbers(axes)
    axes.set_ylim(0, 1.12 * max([*run.spent.values(), planned if math.isfinite(planned) else 0.0]))
