"""MLflow: a run's figures on a tracking server, the one that ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fedloom import files
from fedloom.config import Config
from fedloom.errors import DataError, NetworkError, UsageError
from fedloom.simulation.writers import Figures

FILE: Final = "mlflow.json"
EXPERIMENT: Final = "fedloom"
_ENDS: Final = {"finished": "FINISHED", "stopped": "KILLED"}
_BATCH, _PARAMETERS, _LONG = 1000, 100, 500
_USUAL: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
"""Nobody is told that a run takes place but the server; and a server that is away is noticed within seconds."""


class MLflow:
    """Writes to a tracking server."""

    def __init__(self) -> None:
        for name, value in _USUAL.items():
            os.environ.setdefault(name, value)
        self._written: set[tuple[str, int]] = set()

    def begin(self, path: Path, config: Config, before: Sequence[Figures]) -> None:
        """Make a run on the server, or go on with the one that an earlier start made.

        Raises:
            UsageError: The server cannot be reached, or does not take it.
        """
        from mlflow.tracking import MlflowClient, get_tracking_uri

        where = get_tracking_uri()
        try:
            with _said():
                self._client: Any = MlflowClient(where)
                self._run = self._known(path / FILE, where) or self._made(path, config, where)
                self._send(before)
        except NetworkError as error:
            hint = "set MLFLOW_TRACKING_URI to a tracking server, such as http://localhost:5000"
            raise UsageError(f"log mlflow: {where} does not take this run: {hint} ({error})") from error

    def _known(self, file: Path, where: str) -> str:
        """Return the run of an earlier start, if it was here; what it has already is not sent again."""
        try:
            found = files.read_json(file)
        except DataError:
            return ""
        if found.get("tracking_uri") != where:
            return ""
        try:
            with _said():
                kept = self._client.get_run(str(found.get("run_id")))
                self._client.update_run(kept.info.run_id, status="RUNNING")
        except NetworkError:
            return ""  # somebody has deleted it
        for name in kept.data.metrics:
            history = self._client.get_metric_history(kept.info.run_id, name)
            self._written |= {(name, one.step) for one in history}
        return str(kept.info.run_id)

    def _made(self, path: Path, config: Config, where: str) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        there = self._client.get_experiment_by_name(name)
        home = there.experiment_id if there is not None else self._client.create_experiment(name)
        run = str(self._client.create_run(home, run_name=path.resolve().name).info.run_id)
        tables = config.to_tables()
        rows = [(f"{table}.{key}", value) for table, keys in tables.items() for key, value in keys.items()]
        told = [Param(key, str(value)[:_LONG]) for key, value in rows if value not in (None, "")]
        for i in range(0, len(told), _PARAMETERS):
            self._client.log_batch(run, params=told[i : i + _PARAMETERS])
        files.write_json(path / FILE, {"tracking_uri": where, "run_id": run})
        return run

    def write(self, figures: Figures) -> None:
        """See there."""
        with _said():
            self._send([figures])

    def end(self, how: str) -> None:
        """See there."""
        with _said():
            self._client.set_terminated(self._run, _ENDS[how])

    def _send(self, several: Iterable[Figures]) -> None:
        from mlflow.entities import Metric

        rows = [
            Metric(name, value, int(when * 1000), number)
            for number, when, found in several
            for name, value in found.items()
            if (name, number) not in self._written
        ]
        for i in range(0, len(rows), _BATCH):
            self._client.log_batch(self._run, metrics=rows[i : i + _BATCH])
        self._written |= {(one.key, one.step) for one in rows}


@contextmanager
def _said() -> Iterator[None]:
    """Let MLflow's errors be ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise NetworkError(" ".join(str(error).split())[:300]) from error


def make() -> MLflow:
    """Return a writer."""
    return MLflow()
