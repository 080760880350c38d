"""Guarantee: what a run promises, and what its parts break of that; all of it at once, before round 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedloom.algorithms.protection import EXAMPLES, LOCAL, SHARES, TREE, Protection, bare
from fedloom.config.conflicts import network_of
from fedloom.errors import MissingDependency, UsageError
from fedloom.models.roles import statistics_mask
from fedloom.privacy import delta_warnings

if TYPE_CHECKING:
    from fedloom.privacy.conflicts import Mechanism
    from fedloom.simulation.setup import Setup


@dataclass(frozen=True)
class Kind:
    """One row of :data:`MECHANISMS`.

    Attributes:
        title: What it does, in one line.
        hides: Whose presence: ``"client"`` or ``"example"``.
        trust: Who is trusted with what.
        sampling: Which sampling of clients it goes with.
        paper: Author, title, venue, year.
    """

    title: str
    hides: str
    trust: str
    sampling: str
    paper: str


_SUM = "clients add the noise in shares, and the server sees nothing but the noisy sum"
_ANY = "any but size"

MECHANISMS: dict[str, Kind] = {
    "central": Kind(
        "the server clips every update and puts Gaussian noise on their sum",
        "client",
        "the server sees single updates and adds the noise; those who get the model learn little about any client",
        "poisson or uniform: their chance makes epsilon smaller; fixed, cyclic and all do not",
        'McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018; with '
        'clip_quantile: Andrew et al., "Differentially Private Learning with Adaptive Clipping", '
        "NeurIPS 2021",
    ),
    "local": Kind(
        "every client clips its own update and puts Gaussian noise on it",
        "client",
        "nobody is trusted: what a client sends has its noise already",
        "any",
        'Kasiviswanathan et al., "What Can We Learn Privately?", FOCS 2008',
    ),
    "tree": Kind(
        "noise for the sum of all rounds so far, shared between rounds by a tree (DP-FTRL)",
        "client",
        "the server sees single updates, and adds noise that needs no sampling; no client's part shows in the model",
        "any but size; cyclic costs least",
        'Kairouz, McMahan et al., "Practical and Private (Deep) Learning without Sampling or Shuffling", ICML 2021',
    ),
    "distributed": Kind(
        "whole numbers under secure aggregation, each client with its share of discrete Gaussian noise",
        "client",
        _SUM,
        _ANY,
        'Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure '
        'Aggregation", ICML 2021',
    ),
    "skellam": Kind(
        "whole numbers under secure aggregation, each client with its share of Skellam noise",
        "client",
        _SUM,
        _ANY,
        'Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021',
    ),
    "examples": Kind(
        "DP-SGD in every client: each sample's gradient is clipped, and every step gets noise",
        "example",
        "every client hides its own samples by noise in its training; the server need not be trusted",
        "any: what counts is the chance of a batch",
        'Abadi et al., "Deep Learning with Differential Privacy", CCS 2016',
    ),
}


def promise(setup: Setup) -> dict[str, Any] | None:
    """Return what the run promises, JSON-able; None where nothing is hidden.

    ``unit`` is whose presence is hidden, ``epsilon`` what is planned for the whole run (None: no guarantee), ``void``
    says that the noise can be repeated.
    """
    made, said = setup.protection, setup.config.privacy
    if made.mechanism == "none":
        return None
    planned = setup.terms().planned(made)
    return {
        "mechanism": made.mechanism,
        "unit": MECHANISMS[made.mechanism].hides,
        "clip": made.clip,
        "clip_quantile": made.quantile,
        "multiplier": made.multiplier,
        "delta": said.delta,
        "accountant": said.accountant,
        "epsilon": planned if math.isfinite(planned) else None,
        "trust": MECHANISMS[made.mechanism].trust,
        "secure_aggregation": made.secure,
        "void": made.noise_seed is not None,
        "warnings": [*delta_warnings(said.delta, _units(setup)), *_more(setup)],
    }


def words(promised: Mapping[str, Any]) -> str:
    """Say in one line what :func:`promise` returned."""
    text = f"privacy {promised['mechanism']}: noise multiplier {promised['multiplier']:.4g}, clip {promised['clip']:g}"
    if promised["epsilon"] is None:
        return f"{text}: no guarantee without noise"
    text += f"; planned: epsilon {promised['epsilon']:.3g} per {promised['unit']} at delta {promised['delta']:g}"
    return f"{text}; void, since the noise can be repeated (noise_seed)" if promised["void"] else text


def _units(setup: Setup) -> int:
    return int(setup.sizes.max()) if setup.protection.mechanism == EXAMPLES else len(setup.population)


def _more(setup: Setup) -> Iterator[str]:
    network = network_of(setup.config)
    fewer = setup.config.sampling.scheme == "poisson" or network.dropout or network.availability.changes
    if setup.protection.mechanism in SHARES and fewer:
        yield "epsilon may end above what is planned: the noise of clients that do not come is missing"


def conflicts(setup: Setup, protection: Protection) -> Iterator[str]:
    """Yield, in words, why ``protection`` cannot hold in this run; nothing where all is well."""
    if (protection.up or protection.down) and (setup.algorithm.pooled or setup.algorithm.everyone):
        yield f"compression: {setup.algorithm.name} sends nothing: leave it out"
    if protection.mechanism != "none":
        yield from _accounted(setup, protection)
    if protection.mechanism == EXAMPLES:
        yield from _examples(setup)
    elif protection.private:
        yield from _clients(setup, protection)
    if protection.secure != "off":
        yield from _secure(setup, protection)


def _accounted(setup: Setup, protection: Protection) -> Iterator[str]:
    said, unheard = setup.config.sampling, protection.mechanism in (LOCAL, EXAMPLES)
    if unheard and (said.over_selection or said.deadline is not None):
        yield (
            f"privacy {protection.mechanism}: what comes too late to be used was sent all the same, and epsilon counts "
            "what is used: leave out over_selection and deadline"
        )
    if setup.algorithm.buffered and protection.mechanism == EXAMPLES:
        yield (
            f"privacy for examples: {setup.algorithm.name} has no rounds, so that nobody can say before how often a fast "
            "client takes part: take an algorithm with rounds"
        )
    try:
        setup.terms().check(protection)
    except (UsageError, MissingDependency) as error:
        yield str(error)


def _clients(setup: Setup, protection: Protection) -> Iterator[str]:
    from fedloom.privacy import AdaptiveClip, Setting
    from fedloom.privacy import conflicts as broken

    config, algorithm, layout = setup.config, setup.algorithm, setup.model.layout
    statistics = int(statistics_mask(setup.model).sum())
    setting = Setting(
        algorithm=algorithm.name,
        sampling=config.sampling.scheme,
        mean=algorithm.linear,
        extras=tuple(algorithm.beside),
        buffers=0 if protection.local_statistics else statistics,
        refresh=config.run.batchnorm == "recalibrate" and statistics > 0,
        policy=config.run.policy,
        over_selection=config.sampling.over_selection > 0,
        availability=network_of(config).availability.changes,
        asynchronous=algorithm.buffered > 0,
        secure=protection.secure != "off",
        codec=protection.up,
    )
    adaptive = None if protection.quantile is None else AdaptiveClip(protection.clip, protection.quantile)
    try:
        yield from broken(_mechanism(protection, layout.trainable), setting, adaptive, protection.cohort)
    except UsageError as error:
        yield str(error)
    if algorithm.pooled or algorithm.everyone:
        yield f"differential privacy: {algorithm.name} has no updates of clients to hide: leave privacy out"
    if protection.mechanism == LOCAL and not bare(algorithm):
        yield (
            f"differential privacy: {algorithm.name} needs more of a client than its update, and only that gets local "
            "noise: take fedavg, or a robust rule"
        )


def _mechanism(protection: Protection, head: int) -> Mechanism:
    from fedloom.privacy import Gaussian, LocalGaussian, TreeNoise

    if protection.mechanism in SHARES:
        return protection.shares(head)
    if protection.mechanism == LOCAL:
        return LocalGaussian(protection.clip, protection.multiplier)
    if protection.mechanism == TREE:
        return TreeNoise(protection.clip, protection.multiplier, protection.restart or None)
    return Gaussian(protection.clip, protection.multiplier)


def _examples(setup: Setup) -> Iterator[str]:
    from fedloom.training.per_example import MEMORY
    from fedloom.training.per_example_choice import gradients

    if setup.algorithm.needs_loss:
        yield f"privacy for examples: {setup.algorithm.name} tells the server each client's loss, which has no noise"
    if setup.config.run.plan not in ("auto", "loop"):
        yield f"privacy for examples has a step of its own, which plan '{setup.config.run.plan}' has not: leave plan out"
    if setup.config.training.precision != "float32":
        yield "privacy for examples needs precision float32: bfloat16 rounds gradients after they were measured"
    if setup.config.data.samples_per_client:
        yield (
            "privacy for examples: samples_per_client draws with replacement, so that a sample is there more than once, "
            "and epsilon counts it once: leave it out"
        )
    if len(setup.terms().batches) > 1:
        yield f"privacy for examples: {setup.algorithm.name} takes batches of different sizes: take another option"
    if setup.config.run.batchnorm == "recalibrate" and setup.model.layout.size > setup.model.layout.trainable:
        yield "privacy for examples: statistics that are made anew from clients' data have no noise: leave that out"
    try:
        gradients(setup.model, MEMORY)
    except UsageError as error:
        yield f"privacy for examples: {error}"


def _secure(setup: Setup, protection: Protection) -> Iterator[str]:
    from fedloom.privacy.secagg import CODEC, why_not

    algorithm = setup.algorithm
    reason = why_not(algorithm.name)
    if reason is not None:
        yield f"secure aggregation: {reason}"
    elif not algorithm.linear:
        yield f"secure aggregation: {algorithm.name} needs more than the sum of the updates: take fedavg or fedprox"
    elif algorithm.pooled or algorithm.everyone:
        yield f"secure aggregation: {algorithm.name} has no updates to add up: leave it out"
    if protection.up:
        yield f"secure aggregation: {CODEC.format(name=protection.up)}"
    if setup.attackers is not None and setup.attackers.attack.forge is not None:
        yield f"secure aggregation hides what attackers send, and {setup.config.attack.kind} is simulated on open updates"
    if setup.config.run.policy == "retry":
        yield (
            "secure aggregation fixes who is in a sum before anything is sent, so that nobody can take another's place: "
            "set policy to skip"
        )
    if protection.most < 2:
        yield "secure aggregation: the sum of one client hides nothing: set per_round to 2 or more"
    else:
        yield from _opens(setup, protection)


def _opens(setup: Setup, protection: Protection) -> Iterator[str]:
    from fedloom.privacy.secagg import plan

    try:
        plan(protection.most, protection.dropouts)
        if setup.algorithm.linear and protection.mechanism not in SHARES:
            protection.seal(setup.algorithm, setup.model)
    except UsageError as error:
        yield f"secure aggregation: {error}"
