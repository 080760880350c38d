"""Planning: which execution plan a run is computed by, tried on its first cohort."""

from __future__ import annotations

import sys
from typing import Any

from fedloom.clients import Order
from fedloom.config import Config
from fedloom.rounds import Snapshot
from fedloom.simulation.setup import Setup
from fedloom.training import planner
from fedloom.training.cohort import planned_steps
from fedloom.training.plans.batched import MOST_CLIENTS

PLANNED = 100
"""The planner looks at no more clients than this, but at enough for a group per worker."""


def plan_of(setup: Setup, snapshot: Snapshot, progress: bool) -> dict[str, Any]:
    """Choose the plan and the precision of a run; returns them and their times as the row of the ``plan`` event.

    Raises:
        UsageError: The plan that was asked for cannot be used here; the message says why.
    """
    if setup.protection.examples() is not None:
        return {
            "chosen": "loop",
            "precision": "float32",
            "left_out": {"others": "per-example gradients have a step of their own"},
        }
    run, sampler, shared = setup.config.run, setup.sampler(), workers(setup.config)
    if progress and "auto" in (run.plan, setup.local.precision):
        print("trying the execution plans on the first batches", file=sys.stderr, flush=True)
    clients = tuple(int(c) for c in sampler.cohort(1)[: max(PLANNED, MOST_CLIENTS * shared)]) or (0,)
    first = Order(1, clients, (setup.algorithm.broadcast(snapshot.state),), lr=setup.lr(1))
    tasks = setup.side("loop").tasks(first)
    steps = sum(planned_steps(task, setup.local) for task in tasks) / len(tasks)
    found = planner.choose(
        setup.model,
        tasks,
        setup.local,
        run.seed,
        run.plan,
        steps_ahead=int(run.rounds * sampler.expected * steps / shared),
        threads=threads(setup.config),
        workers=shared,
    )
    return {
        "chosen": found.plan,
        "precision": found.precision,
        "times": dict(found.seconds),
        "compiling": dict(found.compile_seconds),
        "cohort_times": dict(found.cohort_seconds),
        "left_out": dict(found.left_out),
    }


def plan_untried(config: Config) -> dict[str, Any]:
    """Return the plan of a run whose clients train elsewhere, each by itself: what is left open is the plain loop's."""
    plan, precision = config.run.plan, config.training.precision
    return {
        "chosen": "loop" if plan == "auto" else plan,
        "precision": "float32" if precision == "auto" else precision,
    }


def threads(config: Config) -> int | None:
    """Return how many threads train a client: one in each of several workers; None for as many as there are."""
    return config.run.threads or (None if config.run.engine == "here" else 1)


def workers(config: Config) -> int:
    """Return how many processes train; those of a Ray cluster elsewhere are not known before it is asked."""
    from fedloom.engines.workers import cores

    return 1 if config.run.engine == "here" else config.run.workers or cores()
