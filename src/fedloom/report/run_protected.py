"""What happened in a run to privacy and to bytes, in plain words: findings, and bytes beside those of float32 models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import accumulate

from fedloom.events import number, whole
from fedloom.report.comparison import Finding
from fedloom.report.run_privacy import REASONABLE, figure, grade, unit
from fedloom.report.run_reading import RunLog
from fedloom.report.run_words import size

FLOAT32 = 4
SHARES = ("distributed", "skellam")
MUCH = 0.5
_MORE = 1.001


def plain_uploads(run: RunLog) -> list[float]:
    """Return the bytes that merged updates would have been as float32, until the end of each round; or nothing."""
    parameters = whole(run.start.get("parameters"))
    if not parameters or run.algorithm == "central":
        return []
    return [float(n) for n in accumulate(FLOAT32 * parameters * r.clients for r in run.rounds)]


def protected(run: RunLog) -> Iterator[Finding]:
    """Say what is hidden and what that is worth, and how many bytes there were instead of how many."""
    if run.privacy:
        yield from _private(run)
    yield from _packed(run)
    yield from _sealed(run)


def _private(run: RunLog) -> Iterator[Finding]:
    if run.void:
        text = (
            "noise_seed is set, so the noise can be drawn again and taken off. The run can be repeated to the bit, which is "
            "fine for trials; leave noise_seed out before a model is given away."
        )
        yield Finding("warning", "The promise of privacy is void", text)
    warned = run.privacy.get("warnings")
    if isinstance(warned, list) and warned:
        yield Finding("warning", "Mind the promise of privacy", "\n\n".join(_sentence(str(text)) for text in warned))
    if not math.isfinite(run.epsilon):
        if run.rounds:
            text = "Updates were clipped, and there is no noise: that hides nobody. Set --noise or --target-epsilon."
            yield Finding("warning", "Clipping alone promises no privacy", text)
        return
    yield from _planned(run)
    if not run.void:
        yield _worth(run)


def _planned(run: RunLog) -> Iterator[Finding]:
    planned = number(run.privacy.get("epsilon"))
    if run.epsilon > planned * _MORE:
        why = (
            "a round with fewer clients than expected has less noise, since its shares of the noise add up to less"
            if run.privacy.get("mechanism") in SHARES
            else "some client took part more often than was to be expected"
        )
        text = f"{planned:.3g} was planned, and {run.epsilon:.3g} is what happened: {why}. What happened counts."
        yield Finding("warning", "More epsilon was spent than planned", text)


def _worth(run: RunLog) -> Finding:
    found = f"Epsilon is {run.epsilon:.3g} at a delta of {figure(run.privacy.get('delta'))}, per {unit(run)}"
    if run.epsilon > REASONABLE:
        text = (
            f"{found}. That bounds what a model tells so loosely that it proves little, though noise may well stop today's "
            "attacks. --target-epsilon 8 finds the noise for a better promise. It costs less accuracy with more clients: the "
            "same noise then hides among more updates."
        )
        return Finding("warning", "Epsilon is large: the promise is weak", text)
    text = (
        f"{found}: by common reckoning a {grade(run.epsilon)} promise. It covers whatever is done with the model later."
    )
    if run.best is not None and run.best.accuracy < MUCH and not run.alone:
        text += (
            " The accuracy is low, and the noise has its part in that: more clients per round (--per-round), a smaller "
            "model, or a --clip nearer to the length of updates leave more of what was learned."
        )
    return Finding("good", f"Every {unit(run)} is hidden: epsilon {run.epsilon:.3g}", text)


def _packed(run: RunLog) -> Iterator[Finding]:
    up, plain = sum(r.bytes_up for r in run.rounds), plain_uploads(run)
    if run.codec and up and plain and plain[-1]:
        feedback = " Clients kept what the codec lost and sent it later (error feedback)." if _feeds_back(run) else ""
        text = (
            f"{size(up)} came up; as float32 models it would have been {size(plain[-1])}. The codec is '{run.codec}'."
        )
        yield _fewer("Updates were sent", plain[-1] / up, text + feedback)
    parameters, codec = whole(run.start.get("parameters")), run.codec_down
    down, whole_models = sum(r.bytes_down for r in run.rounds), FLOAT32 * parameters * sum(r.asked for r in run.rounds)
    if codec and down and whole_models:
        text = f"{size(down)} went down; as float32 models it would have been {size(whole_models)}. The codec is '{codec}'."
        yield _fewer("The model was sent", whole_models / down, text)


def _fewer(what: str, ratio: float, text: str) -> Finding:
    if ratio < 1:
        return Finding("warning", f"{what} in more bytes than without a codec", text)
    return Finding("good", f"{what} in {ratio:.3g} times fewer bytes", text)


def _feeds_back(run: RunLog) -> bool:
    from fedloom.compress import CODECS

    wanted = str(run.setting("compression", "feedback", "auto"))
    if wanted != "auto":
        return wanted == "on"
    names = [re.sub(r"^int\d$", "int", part.partition(":")[0].strip()) for part in run.codec.split("|")]
    return any(name in CODECS and not CODECS[name].unbiased for name in names)


def _sealed(run: RunLog) -> Iterator[Finding]:
    kind = run.setting("privacy", "secure_aggregation", "off")
    if kind not in ("sum", "protocol"):
        return
    up, plain = sum(r.bytes_up for r in run.rounds), plain_uploads(run)
    text = "With secure aggregation no update is open to the server: each is masked, and the masks cancel in the sum. "
    if up and plain and plain[-1]:
        text += f"Clients sent {size(up)}, {up / plain[-1]:.3g} times the bytes of plain float32 updates. "
    if kind == "sum":
        text += "Only the sum was computed here, with the same numbers; --secure-aggregation protocol runs the messages, too."
    else:
        text += "Key agreement, shares and unmasking were really run, and are counted among the bytes."
    if not run.privacy:
        text += (
            " The sum itself has no noise: it can still tell of a client. --privacy distributed adds noise in shares."
        )
    yield Finding("info", "The server saw nothing but sums", text)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."
