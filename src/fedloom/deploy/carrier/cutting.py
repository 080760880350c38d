"""A bad network, for tests and benchmarks: a relay on this machine that cuts the connections through it.

Cuts are resets (RST), as a firewall or a router that was switched off makes them; they come after a random time, and after
a random number of bytes, so that they hit messages on their way, too.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Self

HERE = "127.0.0.1"
_PIECE = 1 << 15
_RESET = struct.pack("ii", 1, 0)


@dataclass
class _Line:
    """One connection; ``left`` is the number of bytes after which it is cut."""

    left: float


class Cutting:
    """A relay to a port of this machine; a context manager.

    Args:
        target: The port of the server; it may come and go.
        seconds: The mean life of a connection, in seconds; 0 for no end.
        size: The mean number of bytes, in both directions together, after which one is cut; 0 for no end.
        seed: Of the chance.

    Attributes:
        port: Where it listens.
        carried: How many connections went through it.
        cuts: How many it has cut.
    """

    def __init__(self, target: int, *, seconds: float = 0.0, size: float = 0.0, seed: int = 0) -> None:
        self.target, self.port, self.carried, self.cuts = target, 0, 0, 0
        self._seconds, self._size, self._chance = seconds, size, random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut what is left, and end."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        lines: set[asyncio.Task[None]] = set()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._carry(reader, writer))
            lines.add(task)
            task.add_done_callback(lines.discard)

        server = await asyncio.start_server(begin, HERE, 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in lines:
            task.cancel()
        await asyncio.gather(*lines, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(HERE, self.target)
        except OSError:
            _reset(writer)
            return
        self.carried += 1
        line = _Line(self._drawn(self._size))
        ways = [asyncio.ensure_future(_pump(*way, line)) for way in ((reader, back), (there, writer))]
        try:
            life = self._drawn(self._seconds)
            over, _ = await asyncio.wait(
                ways, timeout=None if life == float("inf") else life, return_when=asyncio.FIRST_COMPLETED
            )
            self.cuts += not over or any(way.result() for way in over)
        finally:
            for way in ways:
                way.cancel()
            _reset(back)
            _reset(writer)

    def _drawn(self, mean: float) -> float:
        return self._chance.expovariate(1 / mean) if mean else float("inf")


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, line: _Line) -> bool:
    """Carry bytes in one direction; True when the line is to be cut."""
    try:
        while data := await source.read(_PIECE):
            line.left -= len(data)
            if line.left < 0:
                sink.write(data[: int(line.left)])
                return True
            sink.write(data)
            await sink.drain()
    except OSError:
        return False
    return False


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once, with RST."""
    known = writer.get_extra_info("socket")
    if known is not None and not writer.transport.is_closing():
        known.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
