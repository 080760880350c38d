"""Watch: the dashboard of some folders, as ``fedloom dashboard`` and notebooks open it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedloom.addresses import bound, is_loopback, joined, own_address, split
from fedloom.dashboard import door, needs, sources
from fedloom.errors import UsageError

if TYPE_CHECKING:
    from fedloom.dashboard.server import Background

_LEAST = 12


class Dashboard:
    """A dashboard that is served; :func:`watch` makes it.

    Attributes:
        url: Where it is; with the token, where there is one.
        port: Its port.
        token: What visitors must show; empty on this machine alone.
    """

    def __init__(self, server: Background, host: str, token: str) -> None:
        self._server, self.token, self.port = server, token, server.port
        name = own_address() if host in ("0.0.0.0", "::") else host
        self.url = f"http://{joined(name, server.port)}/{f'?token={token}' if token else ''}"

    def stop(self) -> None:
        """End; a second call does nothing."""
        self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Dashboard({self.url})"

    def _repr_html_(self) -> str:
        return f'<a href="{escape(self.url)}" target="_blank" rel="noopener">{escape(self.url)}</a>'


def watch(
    runs: str | Path | Iterable[str | Path] = "runs", listen: str = "127.0.0.1:0", token: str | None = None
) -> Dashboard:
    """Show runs in a browser, live, from a thread in the background; ``stop()`` or the end of a ``with`` ends it.

    Args:
        runs: Folders of runs, or folders with such folders in them; runs that appear there later are shown, too.
        listen: ``host:port``; port 0 for any that is free.
        token: What visitors must show; made where the address is not of this machine alone and none is given.

    Raises:
        MissingDependency: ``fedloom[dashboard]`` is not installed.
        DataError: A folder is not there.
        UsageError: The address is none, or is in use; or the token is too short.
    """
    needs.check()
    from fedloom.dashboard.app import make
    from fedloom.dashboard.server import Background

    board = sources.Board(sources.places([runs] if isinstance(runs, str | Path) else runs))
    host, port = split(listen)
    if token is not None and (len(token) < _LEAST or not token.replace("-", "").replace("_", "").isalnum()):
        raise UsageError(f"the token must have {_LEAST} letters or digits at least, with - and _, and nothing else")
    token = token or ("" if is_loopback(host) else door.new_token())
    sock = bound(host, port)
    return Dashboard(Background(make(board, token), sock), host, token)
