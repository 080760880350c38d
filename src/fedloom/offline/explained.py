"""What ``explain`` found, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from fedloom.align.origin.combination import EVEN, NOTHING, away, judge
from fedloom.align.origin.explain import Part, Verdict
from fedloom.report import words
from fedloom.report.comparison import Finding

_NEAR = 0.5
_NAMED = 3
_EXACT = 1e-5
_EQUAL = 1e-3
_STATISTICS = ("running_", "moving_")


def findings(
    model: str,
    verdict: Verdict,
    names: Sequence[str],
    layers: Mapping[str, str],
    samples: Sequence[int] = (),
    again: str = "",
) -> list[Finding]:
    """Say what a merged model is, then what its odd layers and its BatchNorm statistics are, then which members are equal.

    Args:
        model: Its name.
        verdict: What it is.
        names: The members' names.
        layers: The names that people know the layers by, by the names in the layout; others stay as they are.
        samples: The members' numbers of samples; 0 where unknown.
        again: The command that makes a plain mean; added where one was meant and missed.
    """
    whole, odd = _whole(model, verdict, names, samples, again), _layers(verdict, names, layers)
    if odd:
        where = list(dict.fromkeys(_layer(part.arrays[0], layers) for part in verdict.odd))
        whole.title += f", except in {words.many(len(where), 'layer') if len(where) > _NAMED else _and(where)}"
    found = [whole, *odd]
    if verdict.statistics is not None:
        found.append(_statistics(verdict.statistics, verdict, names))
    for group in verdict.twins:
        text = f"{_and([names[i] for i in group])} hold the same numbers up to rounding; their weight is shared evenly."
        found.append(Finding("warning", "Some members are the same model", text))
    return found


def _whole(model: str, verdict: Verdict, names: Sequence[str], samples: Sequence[int], again: str) -> Finding:
    n, kind = len(names), verdict.kind
    if kind == "mean":
        level = "warning" if verdict.odd else "good"
        about = "" if max(verdict.weights) - min(verdict.weights) <= _EQUAL / n else "about "
        text = f"Each of them counts {about}1/{n}. {_left(verdict)}"
        return Finding(level, f"{model} is the plain mean of the {n} members", text)
    if kind == "weighted mean":
        why = "These are the shares of their samples." if _by_samples(verdict.weights, samples) else ""
        text = f"{_shares(verdict.weights, names)}; none is negative and they sum to 1. {why} {_left(verdict)}"
        return Finding("info", f"{model} is a weighted mean of the members", " ".join(text.split()))
    if kind == "mean of some":
        out = [name for name, w in zip(names, verdict.weights, strict=True) if abs(w) <= NOTHING]
        text = f"{_and(out)} counted nothing: left out by a rule such as multi-krum, or forgotten. {_left(verdict)}"
        return Finding("warning", f"{model} is the plain mean of {n - len(out)} of the {n} members", text)
    if kind == "one member":
        one = _one(verdict.weights, names)
        text = (
            f"It is {one}'s model; the others count nothing. Krum picks one member on purpose; otherwise a file was copied "
            "by mistake."
        )
        return Finding("warning", f"{model} is {one}, not a merge", text)
    if kind in ("scaled mean", "error"):
        title, text = _slip(verdict, names)
        return Finding("problem", f"{model} is {title}", f"{text} {_left(verdict)}", again)
    if kind in _RULES:
        title, text = _RULES[kind]
        k = f" ({verdict.trimmed} on each side)" if verdict.trimmed else ""
        return Finding("info", f"{model} is the {title} of the members", f"{text}{k}; no weights give it.")
    return Finding("info", *_other(model, verdict, names))


_RULES = {
    "median": ("coordinate median", "Each of its numbers is the middle one of the members'"),
    "trimmed mean": ("trimmed mean", "Each of its numbers is the mean of the members' without the extreme ones"),
    "bulyan": (
        "Bulyan merge",
        "Each of its numbers is the mean of those nearest to the median, of members that Krum picks",
    ),
}


def _slip(verdict: Verdict, names: Sequence[str]) -> tuple[str, str]:
    """Explain weights that make no average: title and text."""
    total, n = verdict.total, len(names)
    if verdict.kind == "scaled mean":
        if abs(total / n - 1) <= EVEN:
            text = f"Each of them counts 1 where it should count 1/{n}: nobody divided by the number of members."
            return "the sum of the members, not their mean", text
        text = f"Each of them counts {total / n:.3g} where it should count 1/{n}: the weights sum to {total:.3g}, not to 1."
        return f"the plain mean of the members times {total:.3g}", text
    if min(verdict.weights) >= -NOTHING:
        title = f"no average of the members: the weights sum to {total:.3g}, not to 1"
        return title, f"{_sentence(verdict.weights, names)} Divide the weights by their sum."
    title = "no average of the members: some weights are negative"
    step = away(verdict.weights)
    if step is None:
        why = "A negative weight moves the model away from that member."
        if abs(total - 1) > NOTHING:
            why += f" And the weights sum to {total:.3g}, not to 1."
        return title, f"{_sentence(verdict.weights, names)} {why}"
    first, t = names[step[0]], step[1]
    times = "" if abs(t - 1) <= EVEN else f"{t:.2g} times "
    why = (
        f"That is {first} + {times}({first} - average), a step away from the average, where a step towards it was meant. "
        "A sign has slipped, and what this model scores says nothing about averaging."
    )
    return title, f"{_sentence(verdict.weights, names)} {why}"


def _other(model: str, verdict: Verdict, names: Sequence[str]) -> tuple[str, str]:
    """Describe a model that is no combination: title and text."""
    share = words.percent(verdict.residual)
    near = f"The nearest combination leaves {share} of it over"
    if verdict.kind == "between the members":
        text = (
            f"Each of its numbers lies between the smallest and the largest of the members', as robust rules leave them, or "
            f"a mean that changed a little afterwards. {near}."
        )
        return f"{model} lies between the members, but is no mean of them", text
    title = f"{model} is no combination of these members"
    if not math.isfinite(verdict.apart):
        return title, f"The members are all the same model. {near}."
    if verdict.apart < _NEAR and judge(verdict.weights) in ("mean", "weighted mean", "mean of some", "one member"):
        what = judge(verdict.weights)
        where = f"{_one(verdict.weights, names)}'s model" if what == "one member" else f"a {what} of them"
        text = (
            f"It stands near {where}, but {words.percent(verdict.apart)} of the members' own distances away: trained "
            f"further after the merge, a server optimiser's step (fedavgm, fedadam, ...), or merged from later files."
        )
        return title, text
    text = (
        f"{near}. It was trained further, merged by other rules (a server optimiser, units aligned first), or made of other "
        "members."
    )
    return title, text


def _layers(verdict: Verdict, names: Sequence[str], layers: Mapping[str, str]) -> list[Finding]:
    """Say what the arrays are that the verdict does not hold for, those of a layer together."""
    parts = [(_layer(part.arrays[0], layers), _origin(part, names), part.arrays[0]) for part in verdict.odd]
    found = []
    for (layer, origin), group in groupby(parts, key=lambda row: row[:2]):
        arrays = _and([array.rpartition(".")[2] for _, _, array in group])
        found.append(Finding("warning", f"Layer '{layer}' is made otherwise", f"Its {arrays}: {origin}."))
    return found


def _layer(array: str, layers: Mapping[str, str]) -> str:
    inner = array.rpartition(".")[0] or array
    return layers.get(inner, inner)


def _origin(part: Part, names: Sequence[str]) -> str:
    if part.kind == "something else":
        return "no combination of the members', so replaced or trained further"
    if part.kind == "one member":
        return f"those of {_one(part.weights, names)}"
    if part.kind == "mean":
        return "the plain mean of the members'"
    return f"{_expression(part.weights, names)}"


def _statistics(part: Part, verdict: Verdict, names: Sequence[str]) -> Finding:
    what = "BatchNorm statistics" if any(mark in a for a in part.arrays for mark in _STATISTICS) else "frozen numbers"
    batch_norm = what.startswith("Batch")
    if part.kind == "fresh":
        text = (
            "They are 0 and 1 as in a model that saw no data, so its outputs are off: take the members' mean at least."
        )
        return Finding("problem", f"The {what} are missing", text)
    if part.same and part.kind == "one member":
        return Finding("info", f"The {what} are those of {_one(verdict.weights, names)}, too", "")
    if part.same:
        averaged = batch_norm and verdict.kind not in ("scaled mean", "error")
        hint = "Such statistics rarely fit merged weights: compute them again from a few unlabelled samples."
        return Finding("info", f"The {what} are made in the same way", hint if averaged else "")
    if part.kind == "something else":
        text = "They were computed again from data, or by a rule that is not known here."
        return Finding("info", f"The {what} are no combination of the members'", text)
    return Finding("info", f"The {what} are made otherwise", f"They are {_origin(part, names)}.")


def _left(verdict: Verdict) -> str:
    if verdict.residual <= _EXACT:
        return "Nothing is left over."
    return f"What is left over, {words.percent(verdict.residual, 2)} of its size, is as little as rounding leaves."


def _one(weights: Sequence[float], names: Sequence[str]) -> str:
    """Name the member that counts, and others that are the same model."""
    return " = ".join(name for name, w in zip(names, weights, strict=True) if w > max(weights) / 2)


def _shares(weights: Sequence[float], names: Sequence[str]) -> str:
    return ", ".join(f"{name} counts {w + 0:.3f}" for name, w in zip(names, weights, strict=True))


def _sentence(weights: Sequence[float], names: Sequence[str]) -> str:
    return f"It is {_expression(weights, names)}."


def _expression(weights: Sequence[float], names: Sequence[str]) -> str:
    """Write a combination.

    Example:
        >>> _expression([1.8, -0.2, -0.2, -0.2], ["ana", "luis", "carmen", "diego"])
        '1.80 x ana - 0.20 x each of the others'
    """
    first = max(range(len(weights)), key=lambda i: weights[i])
    others = [w for i, w in enumerate(weights) if i != first]
    if len(others) > 1 and max(others) - min(others) <= EVEN * abs(sum(others)) / len(others):
        terms = [(weights[first], names[first]), (sum(others) / len(others), "each of the others")]
    else:
        terms = [(w, name) for w, name in zip(weights, names, strict=True) if abs(w) >= NOTHING / 2]
    text = " ".join(f"{'-' if w < 0 else '+'} {abs(w):.2f} x {name}" for w, name in terms)
    return text.removeprefix("+ ")


def _by_samples(weights: Sequence[float], samples: Sequence[int]) -> bool:
    """Tell whether the weights are the members' shares of the samples."""
    total = sum(samples)
    if not samples or min(samples) <= 0:
        return False
    return all(abs(w - s / total) <= EVEN * s / total for w, s in zip(weights, samples, strict=True))


def _and(names: Sequence[str]) -> str:
    """Join names.

    Example:
        >>> _and(["ana"]), _and(["ana", "luis", "carmen"])
        ('ana', 'ana, luis and carmen')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
