"""Beside: a long sum over bytes is made in a thread of its own, while something else goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Beside(Generic[T]):
    """Begins to call a function when its block does; it has ended when the block has.

    Args:
        call: The function.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._pool = ThreadPoolExecutor(1, "fedloom-beside")
        self._future = self._pool.submit(call)

    def result(self) -> T:
        """Return what the function returned, or raise what it raised."""
        return self._future.result()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the thread."""
        self._pool.shutdown()
