"""Programs that run beside a measurement, on ports of this machine; the standard library is all that it needs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN, PATIENCE = Path(sys.executable).parent, 400.0


@contextmanager
def process(folder: Path, name: str, *command: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a folder beside the block, and write down what it says; it has ended when the block has."""
    env = {
        **os.environ,
        **{"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        **{"FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"},
    }
    with (folder / f"{name}.log").open("a") as log:
        made = [str(word) for word in command]
        started = subprocess.Popen(made, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env, cwd=folder)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait(20)


def until(path: Path, pattern: str, running: subprocess.Popen[bytes] | None = None) -> str:
    """Wait for a line in a file, while a process runs; returns its first group."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        over = running is not None and running.poll() is not None
        if path.is_file() and (found := re.search(pattern, path.read_text(), re.DOTALL)):
            return found[1]
        if over:
            break
        time.sleep(0.05)
    logs = "\n".join(log.read_text()[-1500:] for log in path.parent.glob("*.log"))
    raise SystemExit(f"{pattern} did not come in {path}\n{logs}")


def port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
