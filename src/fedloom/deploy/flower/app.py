"""What the generated app consists of: Flower starts these on the SuperLink and on the nodes."""

from __future__ import annotations

import contextlib
import json
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedloom.algorithms.protection import SHARES
from fedloom.config import Config
from fedloom.deploy.flower.consent import NODE, Node
from fedloom.deploy.flower.courier import DEAF, PACE, Courier
from fedloom.deploy.flower.letters import Letter
from fedloom.deploy.flower.loader import load
from fedloom.deploy.flower.node import answer
from fedloom.deploy.serving.door import ADMISSION, AUDIT, SECRETS, AuditLog
from fedloom.deploy.serving.host import Listen, Terms, host, served
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.serving.server import Server
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.locking import alone
from fedloom.errors import StorageError, UsageError
from fedloom.simulation.run import Run

CONFIG, OUT, TERMS, BASE = "fedloom-config", "fedloom-out", "fedloom-terms", "fedloom-base"
STATE = "fedloom-state"

Say = Callable[[str], None]


def server_app() -> Any:
    """Return Flower's ``ServerApp`` of a run."""
    app = load().serverapp.ServerApp()
    app.main()(_main)
    return app


def client_app() -> Any:
    """Return Flower's ``ClientApp`` of every run."""
    app = load().clientapp.ClientApp()
    for kind in (app.train(), app.query()):
        kind(_answered)
    return app


def settings(config: Config, out: Path, terms: Terms) -> dict[str, str]:
    """Return what a run's app is told, as Flower's ``run_config``."""
    words = json.dumps(asdict(terms), default=str)
    return {CONFIG: config.to_toml(), OUT: str(out.resolve()), TERMS: words, BASE: str(Path.cwd())}


def fitting(config: Config) -> Config:
    """Return a configuration as it is served over Flower.

    Raises:
        UsageError: It contradicts itself, or needs what Flower does not have.
    """
    if config.privacy.secure_aggregation != "off" or config.privacy.mechanism in SHARES:
        raise UsageError(
            "secure aggregation does not go over Flower, which starts a process for every message: its keys would have to "
            "lie on a disk; leave out --engine flower"
        )
    return served(config)


def understood(told: Mapping[str, Any]) -> tuple[Config, Path, Terms]:
    """Return what :func:`settings` was given.

    Raises:
        UsageError: Something is missing, or cannot be served over Flower.
    """
    try:
        config, path = Config.of_tables(tomllib.loads(str(told[CONFIG])), CONFIG), Path(str(told[OUT]))
        words = json.loads(str(told[TERMS]))
    except KeyError as error:
        raise UsageError(f"this app's {error} is missing: start it with 'fedloom serve --engine flower'") from error
    return fitting(config), path, Terms(**{**words, "patience": Patience(**words["patience"])})


def run(grid: Any, told: Mapping[str, Any], say: Say, pace: float = PACE) -> Run:
    """Serve a run on Flower's grid until it is over; started again with the same words, it goes on.

    Args:
        grid: Flower's ``Grid``.
        told: What :func:`settings` returned.
        say: Told what people should know.
        pace: Seconds between two looks at what has come.

    Raises:
        UsageError: Something is missing in what it was told.
    """
    config, path, terms = understood(told)
    with _alone(path):
        return host(config, path, listening(grid, path, config.data.clients, say, pace), terms, say=say)


def app_folder(path: Path) -> Path:
    """Return where the app of a run is written: beside the run's own folder."""
    return path.with_name(f"{path.name}-flower-app")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other servers out of a run's folder; one that Flower has stopped may need a while to notice."""
    ends = time.monotonic() + 3 * DEAF
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(alone(app_folder(path), f"{path}: another server runs with this folder"))
                break
            except StorageError:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.5)
        yield


def listening(grid: Any, path: Path, count: int, say: Say, pace: float = PACE) -> Listen:
    """Return what makes a server reachable on Flower's grid, see :data:`fedloom.deploy.serving.host.Listen`."""

    @contextmanager
    def listen(server: Server) -> Iterator[Callable[[int], None]]:
        with AuditLog(path / AUDIT) as log:
            courier = Courier(grid, server, Admission(path / SECRETS / ADMISSION), say, log, pace)
            with courier.running():
                yield tell

    def tell(there: int) -> None:
        if there == count:
            say(f"all {count} clients are there")
            return
        say(f"waiting for {count - there} of {count} clients; on the machine of each SuperNode:")
        say("  fedloom join --engine flower --data MY_DATA --state MY_FOLDER")

    return listen


def _main(grid: Any, context: Any) -> None:
    base = Path(str(context.run_config.get(BASE, ".")))
    with contextlib.chdir(base if base.is_dir() else Path.cwd()):
        for line in run(grid, context.run_config, _say).lines():
            _say(line)


def _answered(message: Any, context: Any) -> Any:
    told = context.node_config.get(STATE)
    if not told:
        raise UsageError(f"this SuperNode has no folder for fedloom: start it with --node-config '{STATE}=\"FOLDER\"'")
    folder = Path(str(told)).expanduser()
    base = Path(Node.at(folder).base) if (folder / NODE).is_file() else Path.cwd()
    with contextlib.chdir(base):
        found = answer(folder, Letter.read(message.content), _say)
    return load().app.Message(found.records(), reply_to=message)


def _say(text: str) -> None:
    print(f"fedloom: {text}", flush=True)
