"""Conflicts: what a configuration asks for that a network does not have."""

from __future__ import annotations

from collections.abc import Iterator

from fedloom.algorithms import ALGORITHMS
from fedloom.config import Config


def conflicts(config: Config) -> Iterator[str]:
    """Yield every conflict, in words."""
    name, run, privacy = config.algorithm.name, config.run, config.privacy.mechanism
    if name in ALGORITHMS and name in ("central", "local-only"):
        yield f"{name} cannot be served over a network (yet): fedloom simulate runs it"
    if config.network != type(config.network)():
        yield "[network] simulates slow clients, and these are real: leave it out"
    if config.sampling.deadline is not None or config.sampling.over_selection:
        yield "deadline and over_selection are of the simulated clock: pass --deadline to fedloom serve"
    if config.attack.kind != "none":
        yield "attacks are simulated: leave [attack] out"
    if config.data.holdout and privacy != "none":
        yield (
            f"privacy {privacy} does not hide what clients tell of the samples that they keep apart: leave out holdout, or "
            "privacy"
        )
    if run.batchnorm == "recalibrate":
        yield "batchnorm = recalibrate needs clients' samples on the server: take average or local"
    if run.engine != "here":
        yield f"engine = {run.engine} is for simulations: leave it out"
