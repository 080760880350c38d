"""Flower's public interface, if it is installed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from fedloom.errors import MissingDependency


class Flower(NamedTuple):
    """What is used of it.

    Attributes:
        app: ``flwr.app``.
        serverapp: ``flwr.serverapp``.
        clientapp: ``flwr.clientapp``.
    """

    app: Any
    serverapp: Any
    clientapp: Any


def load() -> Flower:
    """Import Flower.

    Raises:
        MissingDependency: It is not installed.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read once, by the import
    try:
        import flwr.app
        import flwr.clientapp
        import flwr.serverapp
    except ImportError:
        raise MissingDependency.of("flwr", "flower", "a federation over Flower") from None
    return Flower(flwr.app, flwr.serverapp, flwr.clientapp)
