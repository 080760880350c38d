"""Begun: what a secure sum starts from, as the first entry of its journal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedloom.clients import Result
from fedloom.clients import name as number_name
from fedloom.errors import DataError
from fedloom.privacy.secagg import Config, Step
from fedloom.records import ClientFailure, ClientUpdate


@dataclass(frozen=True)
class Begun:
    """What a secure sum starts from.

    Attributes:
        config: Of the protocol.
        nonce: What its session was made of.
        cohort: The numbers of the clients that are in it, by place.
        results: What each client that was asked has answered: that it is ready, or why it is not.
    """

    config: Config
    nonce: bytes
    cohort: tuple[int, ...]
    results: Mapping[int, Result] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return it as bytes."""
        rows = [_row(client, result) for client, result in self.results.items()]
        facts = {"config": self.config.to_bytes().hex(), "nonce": self.nonce.hex(), "cohort": self.cohort}
        return json.dumps({**facts, "results": rows}).encode()

    @classmethod
    def from_bytes(cls, data: bytes, size: int) -> Begun:
        """Undo :meth:`to_bytes`.

        Args:
            data: The bytes.
            size: The length of the model, P.

        Raises:
            DataError: The bytes are none.
        """
        try:
            found = json.loads(data)
            config, nonce = Config.from_bytes(bytes.fromhex(found["config"])), bytes.fromhex(found["nonce"])
            cohort = tuple(int(n) for n in found["cohort"])
            results = {int(row["client"]): _result(row, size) for row in found["results"]}
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"the journal of a secure sum is damaged ({type(error).__name__}: {error})") from error
        if len(cohort) != config.clients or not set(cohort) <= set(results):
            raise DataError("the journal of a secure sum is damaged: it begins with other clients than it has")
        return cls(config, nonce, cohort, results)


@dataclass(frozen=True)
class Gone:
    """Why a client is in no sum.

    Attributes:
        kind: See :class:`fedloom.records.ClientFailure`.
        reason: In words.
    """

    kind: str
    reason: str


def closed_to_bytes(step: Step, gone: Mapping[int, Gone]) -> bytes:
    """Return the end of a step as bytes: who was gone by then, by place."""
    return json.dumps({"step": int(step), "gone": [[i, g.kind, g.reason] for i, g in gone.items()]}).encode()


def closed_from_bytes(data: bytes) -> tuple[Step, dict[int, Gone]]:
    """Undo :func:`closed_to_bytes`.

    Raises:
        DataError: The bytes are none.
    """
    try:
        found = json.loads(data)
        return Step(found["step"]), {int(i): Gone(str(kind), str(why)) for i, kind, why in found["gone"]}
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"the journal of a secure sum is damaged ({type(error).__name__}: {error})") from error


def placeholder(client: str, size: int, steps: int, metrics: Mapping[str, float]) -> ClientUpdate:
    """Return what the round loop counts for a client that is ready: an update without numbers, (P,)."""
    return ClientUpdate(client, torch.zeros(1).expand(size), 1.0, steps, dict(metrics))


def _row(client: int, result: Result) -> dict[str, Any]:
    if isinstance(result, ClientFailure):
        return {"client": client, "kind": result.kind, "reason": result.reason}
    kept = {} if result.kept is None else {key: value.tolist() for key, value in result.kept.items()}
    return {"client": client, "steps": result.steps, "metrics": dict(result.metrics), "kept": kept}


def _result(row: Mapping[str, Any], size: int) -> Result:
    name = number_name(int(row["client"]))
    if "kind" in row:
        return ClientFailure(name, str(row["reason"]), str(row["kind"]))
    made = placeholder(name, size, int(row["steps"]), dict(_numbers(row["metrics"])))
    kept = {str(key): torch.tensor([int(n) for n in value]) for key, value in row["kept"].items()}
    return ClientUpdate(name, made.delta, made.weight, made.steps, made.metrics, kept=kept or None)


def _numbers(value: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, number in value.items():
        yield str(key), float(number)
