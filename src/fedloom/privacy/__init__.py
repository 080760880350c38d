"""Privacy: what hides one client in the model that all of them made, and what that is worth.

    clip -> sum -> noise -> event -> ledger -> epsilon

Mechanisms (what is done) are frozen data; events (what happened) are frozen data; the ledger interprets them by Google's
dp_accounting. Nothing here knows of models, data sets or files.
"""

from __future__ import annotations

from fedloom.privacy.accounting import ACCOUNTANTS, Ledger
from fedloom.privacy.adaptive import AdaptiveClip
from fedloom.privacy.clipping import Clipped, clip
from fedloom.privacy.conflicts import Setting, conflicts
from fedloom.privacy.discrete import Distributed, DistributedGaussian, Skellam
from fedloom.privacy.events import Discrete, Event, Local, Release, Sampling, TreeRun, TreeStep
from fedloom.privacy.mechanisms import Gaussian, LocalGaussian
from fedloom.privacy.planning import delta_warnings, noise_for, plan
from fedloom.privacy.randomness import Randomness, coarse
from fedloom.privacy.tree import TreeNoise

__all__ = [
    "ACCOUNTANTS",
    "AdaptiveClip",
    "Clipped",
    "Discrete",
    "Distributed",
    "DistributedGaussian",
    "Event",
    "Gaussian",
    "Ledger",
    "Local",
    "LocalGaussian",
    "Randomness",
    "Release",
    "Sampling",
    "Setting",
    "Skellam",
    "TreeNoise",
    "TreeRun",
    "TreeStep",
    "clip",
    "coarse",
    "conflicts",
    "delta_warnings",
    "noise_for",
    "plan",
]
