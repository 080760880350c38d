"""Host: the server's side of a run, from its configuration to its folder; started again, it goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedloom import checkpoint, events, files
from fedloom.algorithms.protection import SHARES
from fedloom.config import Config, refuse
from fedloom.config.conflicts import check
from fedloom.data import load_evaluation, load_pair
from fedloom.data.dataset import Dataset
from fedloom.deploy.agreement import SHOWN
from fedloom.deploy.checks import Pattern
from fedloom.deploy.desk import Desk, Patience
from fedloom.deploy.engine import Remote
from fedloom.deploy.experiment import Experiment, Samples
from fedloom.deploy.roster import Roster
from fedloom.deploy.server import Server
from fedloom.errors import DataError, TrainingError
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.simulation import folder as folders
from fedloom.simulation.course import Course
from fedloom.simulation.folder import CONFIG, Folder
from fedloom.simulation.planning import plan_untried
from fedloom.simulation.run import Run
from fedloom.simulation.setup import Setup, prepare_remote

NOTHING = "none"
"""In place of a data set: the server has none."""

FACTS = "served.json"
"""What makes a folder that of a served run: its name."""

GOODBYE = 5.0
"""Seconds in which clients can hear that the run is over."""

Listen = Callable[[Server], AbstractContextManager[Callable[[int], None]]]
"""Makes a server reachable; what it yields is told how many clients have joined, and says how to."""


@dataclass(frozen=True)
class Terms:
    """How a run is served, beside its configuration.

    Attributes:
        patience: How long rounds wait.
        longest: The largest L2 norm of an update that is taken.
        test: What the server evaluates on, where that is not what the configuration names.
        trial: Whether every client trains once before round 1.
        data_dir: Where data sets lie.
    """

    patience: Patience = field(default_factory=Patience)
    longest: float = float("inf")
    test: str | None = None
    trial: bool = False
    data_dir: str | Path | None = None


USUAL = Terms()


def host(
    config: Config,
    path: Path,
    listen: Listen,
    terms: Terms = USUAL,
    *,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> Run:
    """Serve a run until it is over.

    Args:
        config: What to run.
        path: The folder of the run; one that holds this run already is gone on with.
        listen: Makes the server reachable.
        terms: How it is served.
        say: Told what people should know.
        progress: Show how it gets on.

    Returns:
        The run, as :func:`fedloom.simulation.simulate.simulate` returns it.

    Raises:
        UsageError: The configuration contradicts itself, or needs what a network does not have.
        TrainingError: A client cannot take part.
    """
    config = served(config)
    opened, run = _opened(path, config)
    data, test = _data(config, terms)
    roster = Roster(path, config.data.clients)
    done = (checkpoint.numbers(opened.checkpoints) or [0])[-1]
    roster.fix(begun=done > 0)
    desk = Desk(roster, terms.patience, say)
    known = None if data is None else Samples.of(data)
    server = Server(run, shown(config), _title(config), roster, desk, known, say)
    with listen(server) as told:
        try:
            server.wait_full(told)
            setup = _setup(config, server, data, test, terms)
            _begin(setup, server, desk, run, done, terms)
            if not done:
                _checked(server, roster, terms)
            made = Course(setup, opened, Remote(desk)).run(progress)
            if made.stopped != "interrupted":
                server.stop("the run is over")
                server.wait_told(GOODBYE)
        except TrainingError as error:
            server.stop(f"the run has ended: {error}")
            server.wait_told(GOODBYE)
            raise
    return made


def served(config: Config) -> Config:
    """Return a configuration as it is served: with a checkpoint after every round.

    Raises:
        UsageError: It contradicts itself, or needs what a network does not have: all of it, one per line.
    """
    check(config)
    found = list(_conflicts(config))
    if found:
        raise refuse(found)
    return config if config.run.checkpoint_every else config.override(checkpoint_every=1)


def shown(config: Config) -> dict[str, dict[str, Any]]:
    """Return what clients are told of a configuration before they agree."""
    tables = config.to_tables()
    return {table: {key: tables[table][key] for key in keys} for table, keys in SHOWN.items()}


def _conflicts(config: Config) -> Iterator[str]:
    from fedloom.algorithms import ALGORITHMS

    name, run = config.algorithm.name, config.run
    if name in ALGORITHMS and name in ("central", "local-only", "fedbuff"):
        yield f"{name} cannot be served over a network (yet): fedloom simulate runs it"
    if config.network != type(config.network)():
        yield "[network] simulates slow clients, and these are real: leave it out"
    if config.sampling.deadline is not None or config.sampling.over_selection:
        yield "deadline and over_selection are of the simulated clock: pass --deadline to fedloom serve"
    if config.attack.kind != "none":
        yield "attacks are simulated: leave [attack] out"
    if config.privacy.secure_aggregation != "off" or config.privacy.mechanism in SHARES:
        yield "secure aggregation does not go over the network yet: set secure_aggregation to off"
    if config.data.holdout or config.evaluation.clients_every:
        yield "clients do not keep samples apart over the network yet: leave out holdout and clients_every"
    if run.batchnorm == "recalibrate":
        yield "batchnorm = recalibrate needs clients' samples on the server: take average or local"
    if run.engine != "here":
        yield f"engine = {run.engine} is for simulations: leave it out"


def _opened(path: Path, config: Config) -> tuple[Folder, str]:
    """Take a folder for the run, or go on with the run that is there; returns its name, too."""
    if (path / FACTS).is_file():
        opened = folders.open_again(path, config)
        return opened, str(files.read_json(path / FACTS).get("run"))
    opened = folders.open_new(path)
    run = f"{path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = "".join(c if c.isalnum() or c in "-_" else "-" for c in run)
    files.write_text(path / CONFIG, config.to_toml())
    files.write_json(path / FACTS, {"run": run})
    return opened, run


def finished(path: Path) -> bool:
    """Say whether a folder holds a run that is over."""
    if not (path / events.EVENTS).is_file():
        return False
    return any(row["event"] == "end" for row in events.read(path).rows)


def _data(config: Config, terms: Terms) -> tuple[Dataset | None, Dataset | None]:
    """Return what clients' samples look like, and the test set; None where the server does not know, or has none."""
    if config.data.source == NOTHING:
        data, test = None, None
    else:
        part, seed = config.data.test_fraction, config.run.seed
        data, test = load_pair(config.data.source, terms.data_dir, test_fraction=part, seed=seed)
    if terms.test is not None:
        test = None if terms.test == NOTHING else load_evaluation(terms.test, terms.data_dir)
    return data if data is not None else test, test


def _setup(config: Config, server: Server, data: Dataset | None, test: Dataset | None, terms: Terms) -> Setup:
    sizes = [member.samples for member in server.members()]
    known = server.samples
    assert known is not None
    alike = known.nothing(sum(sizes), config.data.source)
    model = _model(config, data if data is not None else alike)
    return prepare_remote(config, model, alike, test, sizes, terms.data_dir)


def _model(config: Config, data: Dataset) -> Model:
    if data.high is None and config.data.source == NOTHING:
        raise DataError(
            "features are scaled by their means, which the server cannot know without samples: name some under [data] source"
        )
    model = io.create(config.model.name, data, config.run.seed)
    io.check_format(model, Path(f"model.{config.run.format or 'pt'}"))
    return model


def _begin(setup: Setup, server: Server, desk: Desk, run: str, done: int, terms: Terms) -> None:
    plan = plan_untried(setup.config)
    setup = setup.computed_in(plan["precision"])
    recipe = setup.recipe(plan["chosen"])
    known = server.samples
    assert known is not None
    sent = setup.algorithm.broadcast(setup.algorithm.init(setup.start.cpu()))
    pattern = Pattern.of(recipe, sent, setup.lr(1), terms.longest)
    if pattern is None:
        raise TrainingError("training diverges on two samples of zeros: take a smaller lr")
    desk.begin(pattern, keeps=setup.algorithm.keeps, done=done)
    server.begin(Experiment(run, recipe, known, _title(setup.config)), check=not done, trial=terms.trial)


def _checked(server: Server, roster: Roster, terms: Terms) -> None:
    failed = server.wait_checked(terms.patience.away)
    if failed:
        lines = "; ".join(f"{roster.member(number).title}: {reason}" for number, reason in sorted(failed.items()))
        raise TrainingError(f"before round 1, not all clients can take part: {lines}")


def _title(config: Config) -> str:
    return f"{config.model.name} with {config.algorithm.name}"
