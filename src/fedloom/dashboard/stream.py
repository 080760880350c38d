"""Stream: what a page is told as time goes on, as server-sent events: first all there is, then what changes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any, Final

from fedloom import files
from fedloom.dashboard.facts import Facts
from fedloom.dashboard.sources import Board, Look

TICK: Final = 0.5
"""Seconds between two looks."""
QUIET: Final = 15.0
"""Seconds after which a word is sent though nothing has changed, so that a line that is dead is noticed."""
_LONG: Final = ("failed", "spreads")


class Told:
    """What one page has been told.

    Args:
        chosen: The names of the runs whose rounds it shows; of the others it hears the most important figures.
    """

    def __init__(self, chosen: Collection[str]) -> None:
        self._chosen = frozenset(chosen)
        self._names: list[str] = []
        self._looks: dict[str, Look] = {}
        self._facts: dict[str, str] = {}
        self._presence: dict[str, str] = {}
        self._rounds: dict[str, tuple[int, int]] = {}

    def news(self, looks: Mapping[str, Look]) -> Iterator[tuple[str, str]]:
        """Yield the kind and the JSON of every message that is due.

        Kinds: ``runs`` (all names, and the clock), ``run`` (the facts of one), ``rounds`` (its rounds from a position on,
        which replace all that stood there), ``presence`` (who takes part).
        """
        if list(looks) != self._names:
            self._names = list(looks)
            yield "runs", _json({"names": self._names, "now": time.time()})
        for name, look in looks.items():
            if self._looks.get(name) is look:
                continue
            self._looks[name] = look
            facts = _json({"name": name, "facts": look.facts if name in self._chosen else _short(look.facts)})
            if self._facts.get(name) != facts:
                self._facts[name] = facts
                yield "run", facts
            if name in self._chosen:
                yield from self._details(name, look)

    def _details(self, name: str, look: Look) -> Iterator[tuple[str, str]]:
        generation, count = self._rounds.get(name, (-1, 0))
        begin = count if generation == look.generation else 0
        if generation != look.generation or len(look.rounds) > count:
            self._rounds[name] = look.generation, len(look.rounds)
            yield "rounds", _json({"name": name, "from": begin, "rounds": look.rounds[begin:]})
        presence = _json({"name": name, "presence": look.presence})
        if look.presence and self._presence.get(name) != presence:
            self._presence[name] = presence
            yield "presence", presence


async def messages(board: Board, chosen: Collection[str], tick: float = TICK) -> AsyncIterator[str]:
    """Yield a page's messages as they go over the line, without an end."""
    told, quiet = Told(chosen), 0.0
    yield "retry: 2000\n\n"
    while True:
        said = [f"event: {kind}\ndata: {data}\n\n" for kind, data in told.news(await asyncio.to_thread(board.look))]
        quiet = 0.0 if said else quiet + tick
        if quiet >= QUIET:
            said, quiet = [": still here\n\n"], 0.0
        for text in said:
            yield text
        await asyncio.sleep(tick)


def _short(facts: Facts) -> Facts:
    return {key: value for key, value in facts.items() if key not in _LONG}


def _json(value: Any) -> str:
    return json.dumps(files.finite(value), ensure_ascii=False, separators=(",", ":"))
