"""Course: one run from its first round (or the one after its last checkpoint) to its last."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedloom import checkpoint, events, rounds
from fedloom.algorithms import State
from fedloom.engines import Engine, in_process
from fedloom.errors import StorageError
from fedloom.models import sidecar
from fedloom.records import RoundRecord
from fedloom.rounds import Federation, Gather, Snapshot
from fedloom.simulation import evaluation, guarantee
from fedloom.simulation.folder import Folder
from fedloom.simulation.keeping import Keeper
from fedloom.simulation.live import live
from fedloom.simulation.planning import plan_of, plan_untried, threads
from fedloom.simulation.run import Run
from fedloom.simulation.setup import Setup
from fedloom.simulation.stopping import stopping
from fedloom.simulation.writers import Beside
from fedloom.store import ClientStore

BEST = "run.best"
"""The best model so far travels with the state in a checkpoint, so that both are of the same round."""

SPARE = 2.0
"""Automatic checkpoints are at least so many seconds apart ..."""

SHARE = 0.02
"""... and take at most about this share of the time."""


@dataclass
class _Best:
    round: int = 0
    accuracy: float = -math.inf
    vector: torch.Tensor | None = None


class Course:
    """A run on its way.

    Args:
        setup: Its parts.
        opened: Its folder.
        remote: Where clients train, if that is elsewhere; it is closed when the run is over.
        gather: What is seen of their updates there; None for what a simulation sees.
        on_clients: Evaluates on what clients keep apart.
    """

    def __init__(
        self,
        setup: Setup,
        opened: Folder,
        remote: Engine | None = None,
        gather: Gather | None = None,
        on_clients: evaluation.OnClients = evaluation.on_clients,
    ) -> None:
        self._remote, self._gather, self._on_clients = remote, gather, on_clients
        self._setup, self._config, self._folder = setup, setup.config, opened
        self._records: list[RoundRecord] = []
        self._clients: list[Mapping[str, Any]] = []
        self._best = _Best()
        self._reached: int | None = None
        self._saved, self._saved_round, self._cost = time.monotonic(), 0, 0.0
        self._store: ClientStore | None = None
        self._writers: Beside | None = None
        self._start = sidecar.digest(setup.start)  # training overwrites the model
        self._promised: Mapping[str, Any] | None = None

    def run(self, progress: bool) -> Run:
        """Run what is left, and write the models.

        Raises:
            TrainingError: A client failed and the policy is ``"stop"``, or no client is left.
            StorageError: The disk is full; the last checkpoint stays.
        """
        with closing(self):
            snapshot, rows = self._resumed()
            plan = self._plan(snapshot, rows, progress)
            self._setup = self._setup.computed_in(plan.get("precision", self._config.training.precision))
            with closing(self._engine(plan["chosen"])) as engine:
                federation = self._federation(engine)
                self._open(rows, plan, progress)  # all that can be refused has been
                snapshot, stopped = self._rounds(federation, snapshot, progress)
            return self._end(snapshot, stopped)

    def close(self) -> None:
        """Close the files of the run."""
        self._folder.close()
        if self._writers is not None:
            self._writers.close()
        if self._store is not None:
            self._store.close()

    def _rounds(self, federation: Federation, snapshot: Snapshot, progress: bool) -> tuple[Snapshot, str]:
        name, last, stopped = self._config.algorithm.name, self._config.run.rounds, ""
        if self._is_enough():
            return snapshot, "target"
        with live(name, snapshot.round, last, progress) as tell, stopping() as asked:
            for record, after in rounds.run(federation, snapshot, last):
                snapshot = after
                stopped = "interrupted" if asked() else ""
                self._note(record, snapshot.state)
                stopped = "target" if self._is_enough() else stopped
                self._checkpoint(snapshot, last=bool(stopped) or record.round == last)
                tell(record)
                if stopped:
                    break
        return snapshot, stopped

    def _resumed(self) -> tuple[Snapshot, list[dict[str, Any]]]:
        """Go back to the last checkpoint, or to the start."""
        place, where = self._folder.checkpoints, self._setup.test.x.device
        found: Snapshot | None = None
        if checkpoint.numbers(place):
            found, self._store = checkpoint.load(place, where)
        else:
            self._store = checkpoint.begin(place, self._setup.algorithm.keeps, where)
        rows = self._folder.cut_back(found.round if found else 0)
        vector = found.state.get(BEST) if found else None
        for record in events.rounds(rows):
            self._rate(record, vector)
        self._clients = [row for row in rows if row["event"] == "clients"]
        if found is None:
            return rounds.begin(self._setup.algorithm, self._setup.start), rows
        self._saved_round = found.round
        return replace(found, state={key: value for key, value in found.state.items() if key != BEST}), rows

    def _facts(self) -> dict[str, Any]:
        from fedloom import __version__

        setup, sizes = self._setup, self._setup.sizes
        return {
            "fedloom": __version__,
            "torch": torch.__version__,
            "device": str(setup.test.x.device),
            "data": setup.data.name,
            "samples": len(setup.data),
            "test_samples": len(setup.test),
            "clients": len(setup.population),
            "per_round": setup.sampler().expected,
            "samples_least": int(sizes.min()),
            "samples_median": float(np.median(sizes)),
            "samples_most": int(sizes.max()),
            "parameters": setup.model.layout.trainable,
            "format": setup.suffix(),
            "attackers": len(setup.attackers.clients) if setup.attackers else 0,
        }

    def _open(self, rows: list[dict[str, Any]], plan: Mapping[str, Any], progress: bool) -> None:
        self._writers = Beside(self._config.run.log, self._folder.path, self._config, rows)
        self._folder.begin(self._config)
        self._folder.hear = self._writers.hear
        known = {row["event"] for row in rows}
        self._promised = promised = guarantee.promise(self._setup)
        if promised is not None and progress:
            for line in (guarantee.words(promised), *(f"warning: {text}" for text in promised["warnings"])):
                print(line, file=sys.stderr, flush=True)
        if promised is not None and "privacy" not in known:
            self._folder.event("privacy", **promised)
        if "start" not in known:
            self._folder.event("start", **self._facts())
        if "plan" not in known:  # a kill may come between the two
            self._folder.event("plan", **plan)

    def _plan(self, snapshot: Snapshot, rows: list[dict[str, Any]], progress: bool) -> Mapping[str, Any]:
        """Choose the execution plan; a run that goes on keeps the one that it has, for the sake of its bits."""
        for row in rows:
            if row["event"] == "plan":
                return row
        return plan_of(self._setup, snapshot, progress) if self._remote is None else plan_untried(self._config)

    def _engine(self, plan: str) -> Engine:
        if self._remote is not None:
            return self._remote
        run, people, count = self._config.run, self._setup.population, threads(self._config)
        if run.engine == "workers":
            from fedloom.engines.workers import Workers

            return Workers(self._setup.recipe(plan), people, run.workers, count or 1)
        if run.engine == "ray":
            from fedloom.engines.ray import Ray

            return Ray(self._setup.recipe(plan), people, run.workers, count or 1, run.address or None)
        return in_process(self._setup.side(plan), count)

    def _federation(self, engine: Engine) -> Federation:
        setup, bad = self._setup, self._setup.attackers
        return Federation(
            setup.algorithm,
            engine,
            setup.schedule(),
            evaluation.on_test_set(setup),
            store=self._store,
            lr=setup.lr,
            policy=self._config.run.policy,
            tamper=bad.tamper if bad is not None and bad.attack.forge is not None else None,
            refresh=setup.refresh(),
            gather=self._gather or setup.protection.gather(setup.algorithm, setup.model),
            accounts=setup.accounts(),
        )

    def _note(self, record: RoundRecord, state: State) -> None:
        self._folder.event("round", **events.round_row(record))
        self._rate(record, state["model"])
        last = record.round == self._config.run.rounds or self._is_enough()
        every = self._config.evaluation.clients_every
        if self._config.data.holdout and (last or (every and record.round % every == 0)):
            for row in self._on_clients(self._setup, record.round, state, self._store):
                self._clients.append(row)
                self._folder.event("clients", **row)

    def _rate(self, record: RoundRecord, vector: torch.Tensor | None) -> None:
        self._records.append(record)
        if record.accuracy > self._best.accuracy:
            self._best = _Best(record.round, record.accuracy, vector)
        target = self._config.evaluation.target
        if self._reached is None and target is not None and record.accuracy >= target:
            self._reached = record.round

    def _is_enough(self) -> bool:
        return self._config.evaluation.stop_at_target and self._reached is not None

    def _checkpoint(self, snapshot: Snapshot, *, last: bool) -> None:
        every = self._config.run.checkpoint_every
        waited = time.monotonic() - self._saved
        due = snapshot.round % every == 0 if every else waited > max(SPARE, self._cost / SHARE)
        if not (due or last):
            return
        began = time.monotonic()
        best = {} if self._best.vector is None else {BEST: self._best.vector}
        try:
            self._folder.sync()
            state = {**snapshot.state, **best}
            path = checkpoint.save(self._folder.checkpoints, replace(snapshot, state=state), self._store)
            if self._remote is not None:
                checkpoint.rest(path, state)
        except StorageError as error:
            where = (
                f"the checkpoint of round {self._saved_round} is whole"
                if self._saved_round
                else "nothing to go on from"
            )
            again = (
                f"go on with fedloom simulate {self._folder.path} --resume"
                if self._remote is None
                else "start it again"
            )
            raise StorageError(f"{error} (after round {snapshot.round}; {where}: {again})", **error.context) from error
        self._saved, self._saved_round = time.monotonic(), snapshot.round
        self._cost = self._saved - began

    def _end(self, snapshot: Snapshot, stopped: str) -> Run:
        from fedloom.report import run_page

        path, best_path = (self._folder.path / f"{name}{self._setup.suffix()}" for name in ("model", "best"))
        keeper, last = Keeper(self._setup, self._records, self._start, self._promised), snapshot.state["model"]
        if self._best.vector is None:
            keeper.write(last, snapshot.round, best_path)
        else:
            keeper.write(self._best.vector, self._best.round, best_path)
        keeper.write(last, snapshot.round, path)
        tested = [record.accuracy for record in self._records if not math.isnan(record.accuracy)]
        made = Run(
            self._folder.path,
            self._config,
            tuple(self._records),
            path,
            best_path,
            self._best.round,
            self._best.accuracy if tested else math.nan,
            tested[-1] if tested else math.nan,
            self._reached,
            sum(record.seconds for record in self._records),
            stopped,
            tuple(self._clients),
            tuple(evaluation.notes(self._setup)),
        )
        if stopped != "interrupted":
            self._folder.event("end", **made.facts())
        self._folder.close()
        run_page(self._folder.path)
        return made
