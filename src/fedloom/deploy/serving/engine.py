"""Engine: the clients of orders train on their own machines."""

from __future__ import annotations

from collections.abc import Iterator

from fedloom.clients import Order, Result
from fedloom.deploy.serving.desk import Desk, opened
from fedloom.engines import Closing


class Remote(Closing):
    """Trains where the data are; a client that is late or lost is a failure in its place.

    Args:
        desk: Where tasks go out, and answers come in.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __call__(self, order: Order) -> Iterator[Result]:
        """Ask the clients of an order; yields their results in its order, each as soon as those before it are there."""
        with opened(self._desk, order):
            for client in order.clients:
                yield self._desk.result(client)
