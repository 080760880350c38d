"""Launch: write a run's app down, and have Flower start it on its SuperLink."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedloom import files
from fedloom.config import Config
from fedloom.deploy.flower.app import app_folder, fitting, settings
from fedloom.deploy.interrupts import stoppable
from fedloom.deploy.serving.host import NOTHING, USUAL, Terms, finished
from fedloom.deploy.serving.serve import free_folder
from fedloom.errors import MissingDependency, NetworkError
from fedloom.simulation.simulate import base_of

PACKAGE = "fedloom_run"
ENDED = 30.0
"""Seconds that Flower has for ending a run."""

_PROJECT = """\
# Written by fedloom: an app of Flower without dependencies. fedloom must be installed on the SuperLink and on every node.

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedloom-run"
version = "1.0.0"
description = "A run of fedloom over Flower"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedloom"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

[tool.flwr.app.config]
"""

_MODULE = '''\
"""Written by fedloom: {what} of the installed fedloom."""

from fedloom.deploy.flower.app import {what}

app = {what}()
'''


def write_app(folder: Path, told: Mapping[str, str]) -> Path:
    """Write a run's app: a description and two modules of one line; no dependency, no code of the run's own.

    Args:
        folder: Where to.
        told: What the app is told, see :func:`fedloom.deploy.flower.app.settings`.

    Returns:
        The folder.
    """
    lines = [f"{key} = {_quoted(value)}" for key, value in told.items()]
    files.write_text(folder / "pyproject.toml", _PROJECT.format(package=PACKAGE) + "\n".join(lines) + "\n")
    files.write_text(folder / PACKAGE / "__init__.py", '"""A run of fedloom over Flower."""\n')
    for name, what in (("server", "server_app"), ("client", "client_app")):
        files.write_text(folder / PACKAGE / f"{name}.py", _MODULE.format(what=what))
    return folder


def serve(
    what: str | Path | Config,
    superlink: str,
    terms: Terms = USUAL,
    *,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
    **flags: Any,
) -> Path:
    """Have a run served on the SuperLink, and show what it says until it is over.

    The run's folder is on the machine of the SuperLink. Started again with the same words, it goes on where it was.

    Args:
        what: A TOML file, the folder of a run that was served, a data set or a ``Config``.
        superlink: The name of a connection in Flower's own configuration; empty for its default.
        terms: How long rounds wait, what is evaluated on.
        out: The folder to write; ``runs/NAME-served-N`` when left out.
        say: Told what people should know, a line at a time.
        **flags: As for :func:`fedloom.simulate`.

    Returns:
        The folder.

    Raises:
        UsageError: A configuration that contradicts itself, or needs what a network does not have.
        MissingDependency: Flower is not installed.
        NetworkError: Flower did not start the run, or the run failed.
    """
    program = tool()
    base, _ = base_of(what, chosen=[name for name, value in flags.items() if value is not None])
    config = fitting(base.override(**flags))
    if config.data.source == NOTHING and terms.test is None:
        say("note: the server has no data, so that no round is evaluated (pass --test to give it some)")
    path = Path(out) if out is not None else free_folder(what, config)
    app = write_app(app_folder(path), settings(config, path, terms))
    with stoppable():
        _follow([program, "run", str(app), *([superlink] if superlink else []), "--stream"], program, superlink, say)
    if not finished(path):
        raise NetworkError(
            f"the run is not over, or {path} is on another machine: see 'flwr log'; the same command goes on"
        )
    return path


def _follow(command: list[str], program: str, superlink: str, say: Callable[[str], None]) -> None:
    """Show what a command says; where it is interrupted, its run is ended, too."""
    env = {**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    run = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                run = run or (found[1] if (found := re.search(r"started run (\d+)", line)) else "")
                say(line.rstrip())
        except KeyboardInterrupt:
            process.terminate()
            if run:
                stop = [program, "stop", run, *([superlink] if superlink else [])]
                subprocess.run(stop, timeout=ENDED, check=False, env=env, stdin=subprocess.DEVNULL)
            raise
    if process.returncode:
        raise NetworkError(f"Flower did not start the run ('flwr run' ended with {process.returncode})")


def tool() -> str:
    """Return the path of Flower's command.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        version("flwr")
    except PackageNotFoundError:
        raise MissingDependency.of("flwr", "flower", "a federation over Flower") from None
    beside = Path(sys.executable).with_name("flwr")
    found = str(beside) if beside.is_file() else shutil.which("flwr")
    if found is None:
        raise MissingDependency.of("flwr", "flower", "a federation over Flower")
    return found


def _quoted(text: str) -> str:
    """Return a text as TOML."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
