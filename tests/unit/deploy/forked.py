"""Commands of fedloom in processes that are forked from one in which PyTorch has been imported: they start at once."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time

from processes import Process

LOADED = ("torch", "sklearn.datasets", "matplotlib.figure", "fedloom.simulation.simulate", "fedloom.report.run_page")


def command(arguments, log, folder) -> None:
    """What ``python -m fedloom`` does, with its output in a file. It runs in the new process."""
    import torch

    from fedloom.cli import main

    for stream, path, mode in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY), (2, log, os.O_WRONLY)):
        opened = os.open(path, mode | os.O_APPEND)
        os.dup2(opened, stream)
        os.close(opened)
    os.chdir(folder)
    os.environ["FEDLOOM_HOME"] = str(folder / "home")
    torch.set_num_threads(1)
    main(list(arguments))


class Branch:
    """A forked process with the methods of ``subprocess.Popen``."""

    def __init__(self, *given) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(LOADED))
        self._process = context.Process(target=command, args=given)
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number) -> None:
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fedloom", seconds)
        return self._process.exitcode


class Forked(Process):
    """A command in a forked process. What it does not show is how Python itself starts and ends: see ``Process``."""

    def __init__(self, folder, name, *arguments) -> None:
        self.path = folder / f"{name}-{time.monotonic_ns()}.log"
        self.path.touch()
        self.process = Branch([str(word) for word in arguments], self.path, folder)
