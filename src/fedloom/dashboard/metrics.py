"""Metrics: the figures of all runs for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from fedloom.dashboard.sources import FRESH, Look

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_LAST: Final = {
    "round": ("round", "The last round that is over."),
    "client_loss": ("client_loss", "The clients' mean training loss in the last round."),
    "seconds": ("round_seconds", "How long the last round took."),
    "epsilon": ("epsilon", "The epsilon of differential privacy that is spent."),
}
_TESTED: Final = {
    "accuracy": ("accuracy", "Accuracy of the global model on the test set, 0 to 1, when it was evaluated last."),
    "loss": ("loss", "Its mean cross-entropy there, in nats."),
}


def text(looks: Mapping[str, Look]) -> bytes:
    """Return the figures of all runs in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(looks))
    return generate_latest(registry)


class _Collector:
    def __init__(self, looks: Mapping[str, Look]) -> None:
        self._looks = looks

    def describe(self) -> list[Metric]:
        """Say nothing beforehand: nothing else is in the registry."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield one family of figures after the other; a figure that is not known is left out."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = {name: look.facts for name, look in self._looks.items()}
        for part, keys in (("last", _LAST), ("tested", _TESTED)):
            for key, (name, words) in keys.items():
                gauge = GaugeMetricFamily(f"fedloom_{name}", words, labels=["run"])
                for run, facts in found.items():
                    if facts[part] and facts[part][key] is not None:
                        gauge.add_metric([run], facts[part][key])
                yield gauge
        planned = GaugeMetricFamily("fedloom_rounds_planned", "How many rounds were wanted.", labels=["run"])
        running = GaugeMetricFamily("fedloom_running", "1 while a run goes on, or waits for clients.", labels=["run"])
        sent = CounterMetricFamily("fedloom_sent_bytes", "Bytes of models and updates.", labels=["run", "direction"])
        seconds = CounterMetricFamily("fedloom_run_seconds", "How long all rounds took.", labels=["run"])
        failures = CounterMetricFamily("fedloom_client_failures", "Updates that did not come.", labels=["run"])
        for run, facts in found.items():
            planned.add_metric([run], facts["planned"])
            running.add_metric([run], float(facts["state"] in ("running", "waiting")))
            for key in ("up", "down"):
                sent.add_metric([run, key], facts["sums"][f"bytes_{key}"])
            seconds.add_metric([run], facts["sums"]["seconds"])
            failures.add_metric([run], facts["sums"]["failed"])
        yield from (planned, running, sent, seconds, failures, self._clients())

    def _clients(self) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        words = "Clients: that the run is for, connected now, and in the last round asked, merged and failed."
        made = GaugeMetricFamily("fedloom_clients", words, labels=["run", "state"])
        for run, look in self._looks.items():
            last, known = look.facts["last"] or {}, look.presence
            figures: dict[str, Any] = {
                "all": look.facts["start"].get("clients", known.get("count")),
                "connected": connected(known) if known else None,
                "asked": last.get("asked"),
                "merged": last.get("clients"),
                "failed": last.get("failed"),
            }
            for state, count in figures.items():
                if count is not None:
                    made.add_metric([run, state], count)
        return made


def connected(presence: Mapping[str, Any]) -> int:
    """Return how many clients were heard of just now."""
    now = time.time()
    if now - presence.get("time", 0.0) > FRESH:
        return 0
    away = min(60.0, presence.get("away") or 60.0)
    return sum(not row.get("left") and now - (row.get("seen") or 0.0) < away for row in presence.get("clients", ()))
