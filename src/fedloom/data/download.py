"""Downloads over HTTP that are verified before anybody sees them, and leave nothing behind when they fail."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedloom.errors import DataError
from fedloom.files import atomic

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes received so far and those expected (None when the server does not say)."""

_BLOCK = 1 << 16
_LARGEST = 1 << 28  # bytes; nothing that is fetched here comes near it


class DownloadError(DataError):
    """A download that failed on every mirror."""


def fetch(
    urls: Sequence[str], target: str | Path, sha256: str, progress: Progress | None = None, timeout: float = 20.0
) -> Path:
    """Download a gzip file from the first mirror that has the right bytes.

    Args:
        urls: The mirrors, tried in order.
        target: Where the file goes; it appears there whole and verified, or not at all.
        sha256: The checksum of the raw (uncompressed) bytes, in hex: gzip headers differ from mirror to mirror.
        progress: Called after each block.
        timeout: The longest silence of a server, in seconds.

    Returns:
        The path of the file.

    Raises:
        DownloadError: No mirror gave the right bytes; the message says what was wrong with each.
        StorageError: The file cannot be written.
    """
    target = Path(target)
    problems = []
    for url in urls:
        try:
            with atomic(target) as temporary:
                with temporary.open("wb") as file:
                    for block in _blocks(url, target.name, progress, timeout):
                        file.write(block)
                _verify(temporary, sha256)
        except DownloadError as error:
            problems.append(f"{url}: {error}")
        else:
            return target
    raise DownloadError("; ".join(problems) or "no mirror is known", file=str(target))


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give a callback that draws a progress bar on standard error; nothing is drawn until it is called."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int | None) -> None:
        if name not in tasks:
            bars.start()
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()


def _blocks(url: str, name: str, progress: Progress | None, timeout: float) -> Iterator[bytes]:
    """Yield the body of ``url``; whatever the network does wrong becomes a DownloadError."""
    done = 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "fedloom"})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            while block := response.read(_BLOCK):
                done += len(block)
                if done > _LARGEST:
                    raise DownloadError(f"more than {_LARGEST} bytes")
                yield block
                if progress is not None:
                    progress(name, done, total)
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code} {error.reason}"
        error.close()
        raise DownloadError(reason) from error
    except urllib.error.URLError as error:
        raise DownloadError(str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(str(error) or type(error).__name__) from error
    if total is not None and done != total:
        raise DownloadError(f"cut after {done} of {total} bytes")


def _verify(path: Path, sha256: str) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with gzip.open(path) as file:
            while (block := file.read(1 << 20)) and size <= _LARGEST:
                digest.update(block)
                size += len(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DownloadError(f"not a whole gzip file ({error})") from error
    if digest.hexdigest() != sha256:
        raise DownloadError(f"wrong bytes: SHA-256 {digest.hexdigest()[:12]}..., expected {sha256[:12]}...")
