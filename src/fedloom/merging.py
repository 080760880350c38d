"""Every method that turns members into one model, by name: one table, one function on flat vectors.

The rules themselves live in ``fedloom.aggregate`` and ``fedloom.server_opt``; this file knows what each needs to be
told about the members, and whether it makes sense for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fedloom import aggregate, server_opt
from fedloom.errors import MergeError, UsageError, unknown
from fedloom.layout import Layout


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        title: What it does, in a line.
        family: ``mean``, ``server``, ``fednova``, ``robust`` or ``ensemble``.
        paper: Author, title, venue, year.
        options: Its options and their defaults.
    """

    title: str
    family: str
    paper: str = ""
    options: Mapping[str, float | None] = field(default_factory=dict)


def _table() -> dict[str, Method]:
    rules = {name: _of_rule(rule) for name, rule in aggregate.RULES.items()}
    servers = {name: Method(o.title, "server", o.paper, o.options) for name, o in server_opt.METHODS.items()}
    means = {name: rules.pop(name) for name in ("fedavg", "weighted")}
    ensemble = Method("average of the members' probabilities, an upper reference", "ensemble")
    return {**means, **servers, **rules, "ensemble": ensemble}


def _of_rule(rule: aggregate.Rule) -> Method:
    family = "mean" if rule.streams else "fednova" if "norms" in rule.uses else "robust"
    return Method(rule.title, family, rule.paper, {name: option.default for name, option in rule.options.items()})


METHODS: dict[str, Method] = _table()


class StartMissing(MergeError):  # noqa: N818 - what is missing is not an error of the user's
    """A method needs the model that the members started from, and was not given it."""

    def __init__(self, method: str, when: str = "") -> None:
        self.reason = f"needs the model that the members started from{when}"
        super().__init__(f"{method} {self.reason}", method=method)


@dataclass(frozen=True)
class Entry:
    """What a method is told about one member.

    Attributes:
        name: Its name or file, for messages.
        samples: Training samples, 0 when unknown.
        steps: Local optimiser steps, 0 when unknown.
        local: Its local configuration: ``optimizer``, ``momentum``, ``lr``, ``prox_mu``.
    """

    name: str
    samples: float = 0
    steps: int = 0
    local: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """What a method made.

    Attributes:
        vector: The merged model, float32 (P,).
        weights: What each member counted, summing to 1; empty where the rule has no weights.
        state: The server optimiser's state, empty for the others.
        notes: What the reader should know, in words.
    """

    vector: torch.Tensor
    weights: tuple[float, ...] = ()
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_method(method: str) -> Method:
    """Return the table's row; raise UsageError, with a suggestion, for an unknown name."""
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method]


def merge_vectors(
    method: str,
    entries: Sequence[Entry],
    vectors: Iterable[torch.Tensor],
    *,
    layout: Layout,
    weights: Sequence[float] | None = None,
    previous: torch.Tensor | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
    options: Mapping[str, float] | None = None,
) -> Merged:
    """Merge the members' vectors into one.

    ``fedavg``, ``weighted`` and the server optimisers read ``vectors`` once, one at a time, and never hold them all.

    Args:
        method: A name of ``METHODS``, other than ``ensemble``.
        entries: What is known of each member.
        vectors: Their vectors, float32 (P,), in the same order.
        layout: Of all of them.
        weights: For ``weighted``: one per member, >= 0, not all zero. For the other means: instead of the samples.
        previous: The global model that the members started from, (P,): needed by the server optimisers, and by
            ``fednova`` when the local steps differ; the centre of ``centered-clipping``.
        state: The server optimiser's state after the previous merge.
        options: The rule's own, such as ``trim`` or ``lr``.

    Raises:
        UsageError: An unknown method or option.
        StartMissing: ``previous`` is needed.
        MergeError: The method cannot be applied to these members; the message says why.
    """
    family = check_method(method).family
    if not entries:
        raise MergeError("there is nothing to merge: at least one model is needed")
    if family == "ensemble":
        raise UsageError("an ensemble is a model of its own, not a vector: see fedloom.models.ensemble")
    if weights is not None and family == "robust" and not aggregate.RULES[method].weights:
        raise UsageError(f"'{method}' treats the members alike: leave the weights out, or use 'weighted'")
    if weights is not None and len(weights) != len(entries):
        raise UsageError(f"{len(weights)} weights are given for {len(entries)} models")
    given = _Context(method, entries, layout, weights, previous, state or {}, dict(options or {}))
    return _FAMILIES[family](given, vectors)


@dataclass(frozen=True)
class _Context:
    method: str
    entries: Sequence[Entry]
    layout: Layout
    weights: Sequence[float] | None
    previous: torch.Tensor | None
    state: Mapping[str, torch.Tensor]
    options: dict[str, float]

    @property
    def names(self) -> list[str]:
        return [e.name for e in self.entries]

    def cohort(self, vectors: Iterable[torch.Tensor]) -> aggregate.Cohort:
        return aggregate.cohort(list(vectors), names=self.names, layout=self.layout)


def _weights(given: _Context) -> tuple[list[float], tuple[str, ...]]:
    """Choose what each member counts, and say so."""
    if given.weights is not None:
        return [float(w) for w in given.weights], ()
    if given.method == "weighted":
        raise UsageError("'weighted' needs weights: pass --weights 0.6,0.4 or --weights accuracy with --data")
    unknown_samples = [e.name for e in given.entries if not e.samples]
    if unknown_samples:
        note = f"uniform weights: no sidecar tells the number of samples of {_some(unknown_samples)}"
        return [1.0] * len(given.entries), (note,)
    return [float(e.samples) for e in given.entries], ()


def _mean(given: _Context, vectors: Iterable[torch.Tensor]) -> Merged:
    if given.options:
        raise UsageError(f"'{given.method}' has no options, and '{next(iter(given.options))}' is given")
    weights, notes = _weights(given)
    mean = aggregate.StreamingMean(given.layout.size)
    for name, vector, weight in zip(given.names, vectors, weights, strict=True):
        mean.add(vector, weight, name=name, layout=given.layout)
    return Merged(mean.result(), _shares(weights), notes=notes)


def _server(given: _Context, vectors: Iterable[torch.Tensor]) -> Merged:
    previous = given.previous
    if previous is None:
        raise StartMissing(given.method)
    optimizer = server_opt.make(given.method, trainable=given.layout.trainable, options=given.options)
    mean = _mean(replace(given, options={}), vectors)
    state = given.state or optimizer.init(previous)
    vector, after = optimizer.step(state, previous, mean.vector - previous)
    notes = mean.notes
    if not given.state:
        notes += ("first step: no memory of earlier rounds yet",)
    return Merged(vector, mean.weights, after, notes)


def _robust(given: _Context, vectors: Iterable[torch.Tensor]) -> Merged:
    rule = aggregate.RULES[given.method]
    weights, notes = _weights(given) if rule.weights else (None, ())
    centre = given.previous if "centre" in rule.uses else None
    vector = aggregate.combine(
        given.method, given.cohort(vectors), weights=weights, centre=centre, options=given.options
    )
    return Merged(vector, _shares(weights), notes=notes)


def _fednova(given: _Context, vectors: Iterable[torch.Tensor]) -> Merged:
    missing = [e.name for e in given.entries if not e.steps]
    if missing:
        raise MergeError(
            f"'fednova' needs every member's number of local steps, and no sidecar tells that of {_some(missing)}"
        )
    weights, notes = _weights(given)
    norms = [_norm(e) for e in given.entries]
    if given.previous is None and len(set(norms)) > 1:
        steps = [e.steps for e in given.entries]
        raise StartMissing("fednova", f" when their local steps differ (here {min(steps)} to {max(steps)})")
    if any(e.local.get("optimizer", "sgd") != "sgd" for e in given.entries):
        notes += ("derived for SGD; for Adam the plain number of steps counts",)
    vector = aggregate.combine(
        "fednova", given.cohort(vectors), weights=weights, norms=norms, centre=given.previous, options=given.options
    )
    return Merged(vector, _shares(weights), notes=notes)


def _norm(entry: Entry) -> float:
    """The size of a member's accumulated gradient weights (Wang et al. 2020, section 4)."""
    local = entry.local
    if local.get("optimizer", "sgd") != "sgd":
        return float(entry.steps)
    return aggregate.fednova_norm(
        entry.steps,
        momentum=float(local.get("momentum", 0)),
        prox_mu=float(local.get("prox_mu", 0)),
        lr=float(local.get("lr", 0)),
    )


def _shares(weights: Sequence[float] | None) -> tuple[float, ...]:
    total = sum(weights or ())
    return tuple(w / total for w in weights or ())


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


_FAMILIES: dict[str, Callable[[_Context, Iterable[torch.Tensor]], Merged]] = {
    "mean": _mean,
    "server": _server,
    "robust": _robust,
    "fednova": _fednova,
}
