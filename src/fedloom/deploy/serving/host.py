"""Host: the server's side of a run, from its configuration to its folder; started again, it goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedloom import checkpoint, events, files
from fedloom.config import Config, refuse
from fedloom.config.conflicts import check
from fedloom.data import load_evaluation, load_pair
from fedloom.data.dataset import Dataset
from fedloom.deploy.experiment import Experiment, Samples, told
from fedloom.deploy.protocol.facts import SAMPLES, SHOWN
from fedloom.deploy.sealing.engine import Sealed, Sums
from fedloom.deploy.serving import presence
from fedloom.deploy.serving.checks import Pattern
from fedloom.deploy.serving.conflicts import conflicts
from fedloom.deploy.serving.desk import Desk
from fedloom.deploy.serving.engine import Remote
from fedloom.deploy.serving.evaluation import Evaluation
from fedloom.deploy.serving.leaning import lean, leant
from fedloom.deploy.serving.patience import Patience
from fedloom.deploy.serving.roster import Roster
from fedloom.deploy.serving.server import Server
from fedloom.errors import DataError, FedloomError, StorageError, TrainingError, UsageError
from fedloom.models import io
from fedloom.models.model import Model
from fedloom.privacy.secagg.primitives import check_installed
from fedloom.simulation import folder as folders
from fedloom.simulation.course import Course
from fedloom.simulation.folder import CONFIG, Folder
from fedloom.simulation.planning import plan_untried
from fedloom.simulation.population import held_count
from fedloom.simulation.run import Run
from fedloom.simulation.setup import Setup, prepare_remote

NOTHING = "none"
"""In place of a data set: the server has none."""

FACTS = "served.json"
"""What makes a folder that of a served run: its name."""

BEGUN = "begun"
"""Said there once every client can take part: whoever comes back is not asked again."""

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

    def __post_init__(self) -> None:
        """Raise UsageError for a number that is none."""
        patience = self.patience
        for name, value, least in (
            ("deadline", patience.deadline, "0 for as long as it takes"),
            ("away", patience.away, "such as 60"),
            ("norm-bound", self.longest, "such as 10"),
        ):
            if not value > 0:
                raise UsageError(f"--{name} {value:g}: a number above 0 is expected ({least})")
        if patience.quorum < 1:
            raise UsageError(f"--quorum {patience.quorum}: a round needs 1 update at least")


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
    terms = replace(terms, patience=terms.patience.served(config))
    if config.privacy.secure_aggregation != "off":
        _check_sums(terms)
    data, test = _data(config, terms)
    opened, run = _opened(path, config)
    facts = files.read_json(path / FACTS)
    roster = Roster(path, config.data.clients, least=2 if config.data.holdout else 1)
    done = _done(opened)
    begun = done > 0 or bool(facts.get(BEGUN))
    roster.fix(begun=begun)
    desk = Desk(roster, terms.patience, say)
    known = None if data is None else Samples.of(data)
    if begun and known is None:  # the first client has said it
        known = Samples.from_json(facts.get(SAMPLES))
    server = Server(run, shown(config), _title(config), roster, desk, known, say)
    with presence.told(path, roster, desk, terms.patience.away), listen(server) as told:
        try:
            server.wait_full(told, terms.patience.away)
            setup = _setup(config, server, data, test, terms)
            lean(setup, path)
            made = _begin(setup, server, desk, run, done, terms, check=not begun)
            if not begun:
                _checked(server, roster, terms)
                files.write_json(path / FACTS, facts | {BEGUN: True, SAMPLES: made.samples.to_json()})
            sums = _sums(setup, opened, made, desk, roster, say)
            engine, gather = (Remote(desk), None) if sums is None else (sums, sums.gather)
            over = Course(setup, opened, engine, gather, Evaluation(desk, say)).run(progress)
            if over.stopped != "interrupted":
                server.stop("the run is over")
                server.wait_told(GOODBYE)
        except StorageError:
            raise  # started again, it goes on: clients wait for that
        except FedloomError as error:
            server.stop(f"the run has ended: {error}")
            server.wait_told(GOODBYE)
            raise
    return over


def served(config: Config) -> Config:
    """Return a configuration as it is served: with a checkpoint after every round.

    Raises:
        UsageError: It contradicts itself, or needs what a network does not have: all of it, one per line.
    """
    check(config)
    found = list(conflicts(config))
    if found:
        raise refuse(found)
    return config if config.run.checkpoint_every else config.override(checkpoint_every=1)


def shown(config: Config) -> dict[str, dict[str, Any]]:
    """Return what clients are told of a configuration before they agree."""
    tables = config.to_tables()
    return {table: {key: tables[table][key] for key in keys or tables[table]} for table, keys in SHOWN.items()}


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
        if data is not None and test is not None:
            test = Samples.of(data).fit(test)
    if data is not None:
        _model(config, data)  # one that cannot be made is known before anybody joins
    return data if data is not None else test, test


def _setup(config: Config, server: Server, data: Dataset | None, test: Dataset | None, terms: Terms) -> Setup:
    all_of, share = [member.samples for member in server.members()], config.data.holdout
    known = server.samples
    assert known is not None
    alike = known.nothing(sum(all_of), config.data.source)
    model = _model(config, data if data is not None else alike)
    sizes = [samples - held_count(samples, share) for samples in all_of]
    made = prepare_remote(config, model, alike, test, sizes, terms.data_dir)
    if not made.algorithm.buffered:
        return made
    return replace(made, algorithm=replace(made.algorithm, buffered=0, everyone=True))  # the desk has the buffer


def _model(config: Config, data: Dataset) -> Model:
    if data.high is None and config.data.source == NOTHING:
        raise DataError(
            "features are scaled by their means, which the server cannot know without samples: name some under [data] source"
        )
    model = io.create(config.model.name, data, config.run.seed)
    io.check_format(model, Path(f"model.{config.run.format or 'pt'}"))
    return model


def _check_sums(terms: Terms) -> None:
    check_installed()
    if terms.longest < float("inf"):
        raise UsageError(
            "--norm-bound looks at single updates, and secure aggregation shows none: leave it out, and set a clip"
        )


def _done(opened: Folder) -> int:
    """Return the number of the last checkpoint; 0 where there is none."""
    return (checkpoint.numbers(opened.checkpoints) or [0])[-1]


def _sums(
    setup: Setup, opened: Folder, told_of: Experiment, desk: Desk, roster: Roster, say: Callable[[str], None]
) -> Sealed | None:
    """Return what makes the sums of a run whose updates are sealed; None where they are not."""
    made = setup.protection.gather(setup.algorithm, setup.model)
    if made is None:
        return None
    size = setup.model.layout.size
    return Sealed(Sums(told(told_of.welcome()), opened.path, desk, roster, made, size, lambda: _done(opened), say))


def _begin(setup: Setup, server: Server, desk: Desk, run: str, done: int, terms: Terms, *, check: bool) -> Experiment:
    plan = plan_untried(setup.config)
    setup = setup.computed_in(plan["precision"])
    recipe = leant(setup.recipe(plan["chosen"]), setup)
    known = server.samples
    assert known is not None
    sent = setup.algorithm.broadcast(setup.algorithm.init(setup.start))
    pattern = Pattern.of(
        setup.side(plan["chosen"]), recipe.protection, sent, setup.lr(1), terms.longest, setup.config.data.holdout
    )
    desk.begin(pattern, keeps=setup.algorithm.keeps, done=done)
    made = Experiment(run, recipe, known, _title(setup.config))
    server.begin(made, check=check, trial=terms.trial)
    return made


def _checked(server: Server, roster: Roster, terms: Terms) -> None:
    failed = server.wait_checked(terms.patience.away, terms.patience.deadline)
    if failed:
        lines = "; ".join(f"{roster.member(number).title}: {reason}" for number, reason in sorted(failed.items()))
        raise TrainingError(f"before round 1, not all clients can take part: {lines}")


def _title(config: Config) -> str:
    return f"{config.model.name} with {config.algorithm.name}"
