"""Setup: everything that a run needs, made from its configuration; what does not fit is refused before round 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedloom import algorithms, sampling
from fedloom.algorithms import Algorithm, Setting, Visit
from fedloom.algorithms.batchnorm import recalibration
from fedloom.algorithms.protection import EXAMPLES, Protection
from fedloom.attacks import Attackers, attackers
from fedloom.clients import ClientSide, Population, registered
from fedloom.config import Config, refuse
from fedloom.config.conflicts import network_of
from fedloom.data import load_pair
from fedloom.data.dataset import Dataset
from fedloom.data.unlabelled import load_unlabelled
from fedloom.engines.recipe import Blueprint, Recipe
from fedloom.errors import FedloomError
from fedloom.models import io
from fedloom.models.model import Model, device
from fedloom.rounds import Accounts
from fedloom.schedule import Buffered, Schedule, Synchronous
from fedloom.simulation import guarantee
from fedloom.simulation import population as populations
from fedloom.simulation.protecting import ClientAccounts, ExampleAccounts, Terms
from fedloom.training.local import LocalConfig
from fedloom.training.shard import Shard

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """The parts of a run, before its first round.

    Attributes:
        config: What was asked for.
        data: The training samples.
        test: The test set, ready for the model.
        model: The model with its start weights.
        population: The clients' samples, those of attackers with wrong labels where they attack so; one client for
            central training.
        algorithm: The algorithm, with what protects updates around it.
        plain: What clients do, before the algorithm changes it.
        unlabelled: The server's own inputs.
        attackers: Who attacks; None where nobody does.
        protection: What is done with updates on their way.
    """

    config: Config
    data: Dataset
    test: Shard
    model: Model
    population: Population
    algorithm: Algorithm
    plain: LocalConfig
    unlabelled: Dataset | None
    attackers: Attackers | None
    protection: Protection = field(default_factory=Protection)

    @cached_property
    def local(self) -> LocalConfig:
        """What clients do."""
        return self.algorithm.local(self.plain)

    @cached_property
    def start(self) -> torch.Tensor:
        """The start weights, float32 (P,)."""
        return self.model.vector()

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """How many samples each client trains on, int64 (n,)."""
        return populations.sizes(self.population)

    def lr(self, number: int) -> float:
        """Return the local learning rate of a round."""
        return self.local.lr * self.config.training.lr_decay ** (number - 1)

    def computed_in(self, precision: str) -> Setup:
        """Return the same run with another precision: the one that the planner chose."""
        made = replace(self, plain=replace(self.plain, precision=precision))
        made.__dict__["start"] = self.start
        return made

    def side(self, plan: str) -> ClientSide:
        """Return what trains clients here."""
        seed, equal = self.config.run.seed, self.sampler().scheme.sized
        examples = self.protection.examples()
        return ClientSide(self.model, self.population, self.algorithm, self.local, seed, plan, equal, examples)

    def recipe(self, plan: str) -> Recipe:
        """Return how a worker makes what trains clients there."""
        chosen, run = self.config.algorithm, self.config.run
        return Recipe(
            Blueprint.of(self.model),
            chosen.name,
            _options(self.config),
            self.plain,
            len(self.population),
            run.seed,
            plan,
            self.unlabelled,
            protection=self.protection,
            equal_weights=self.sampler().scheme.sized,
        )

    def sampler(self) -> sampling.Sampler:
        """Return who takes part."""
        chosen, n, seed = self.config.sampling, len(self.population), self.config.run.seed
        if self.algorithm.everyone or self.algorithm.pooled:
            return sampling.make("all", n, n, seed)
        sizes = self.sizes if sampling.SAMPLERS[chosen.scheme].sized else None
        return sampling.make(chosen.scheme, chosen.per_round, n, seed, sizes)

    def terms(self) -> Terms:
        """Return what the cost of the run in privacy depends on."""
        first = Visit(0, 1, self.algorithm.broadcast(self.algorithm.init(self.start)), None, self.local)
        head, phases = self.model.layout.trainable, self.algorithm.phases(first)
        return Terms(self.config, self.sampler(), self.sizes, head, self.local, phases)

    def protected(self) -> Setup:
        """Return the run with what protects its updates.

        Raises:
            UsageError: It does not go with the algorithm or the model, or no noise gives the epsilon that is wanted.
        """
        terms = self.terms()
        made = terms.protection()
        if not (found := list(guarantee.conflicts(self, made))):
            made = terms.noised(made)
            found = list(guarantee.conflicts(self, made))
        if found:
            raise refuse(found)
        return replace(self, protection=made, algorithm=made.around(self.algorithm, self.model))

    def accounts(self) -> Accounts | None:
        """Return what keeps account of the run's privacy; None where nothing is protected by noise."""
        made = self.protection
        if made.mechanism == "none" or not made.multiplier:
            return None
        return ExampleAccounts(self.terms(), made) if made.mechanism == EXAMPLES else ClientAccounts(self.terms(), made)

    def schedule(self) -> Schedule:
        """Return who takes part when, on the simulated network."""
        network, said = network_of(self.config), self.config.sampling
        turns: dict[str, Any] = {"epochs": self.local.epochs, "samples": 1 if network.instant else self.sizes}
        if self.algorithm.buffered:
            return Buffered(self.sampler(), network, buffer=self.algorithm.buffered, **turns)
        return Synchronous(
            self.sampler(),
            network,
            over_selection=0.0 if self.algorithm.everyone or self.algorithm.pooled else said.over_selection,
            deadline=said.deadline,
            pause=self.config.network.pause,
            **turns,
        )

    def refresh(self) -> Callable[[int, torch.Tensor], torch.Tensor] | None:
        """Return what computes BatchNorm statistics of the merged model anew; None where they are left alone."""
        if self.config.run.batchnorm != "recalibrate":
            return None
        return recalibration(self.model, self.population, self.sampler().expected, self.config.run.seed)

    def suffix(self) -> str:
        """Return the suffix of the model files."""
        return f".{self.config.run.format or ('pt' if self.model.architecture.kind == 'torch' else 'keras')}"


def prepare(config: Config, source: str | Dataset, data_dir: str | Path | None = None) -> Setup:
    """Load data and model, divide the samples, make the algorithm.

    Raises:
        UsageError: Parts that do not fit each other: all of them, one per line.
        DataError: The data are missing or damaged.
    """
    run = config.run
    if run.threads:
        torch.set_num_threads(run.threads)
    where = device("cpu" if run.engine != "here" else run.device or None)
    train, test = load_pair(source, data_dir, test_fraction=config.data.test_fraction, seed=run.seed)
    wrong: list[FedloomError] = []
    model = _tried(lambda: _model(config, train), wrong)
    people = _tried(lambda: populations.divide(train, config.data, run.seed), wrong)
    if people is not None:
        _tried(lambda: _check_cohort(config, len(people.parts)), wrong)
    free = _tried(lambda: _unlabelled(config, data_dir), wrong)
    local = _local(config)
    made = None
    if model is not None and people is not None and (free is not None or not config.data.unlabelled):
        setting = Setting(model, local, len(people.parts), run.seed, free)
        made = _tried(lambda: algorithms.make(config.algorithm.name, setting, _options(config)), wrong)
    if wrong or model is None or people is None or made is None:
        raise wrong[0] if len(wrong) == 1 else refuse(str(error) for error in wrong)
    population = Population(Shard.of(train, model, device=where), people.parts, people.held)
    bad = _attackers(config, population, model)
    if bad is not None:
        population = bad.population(population, model.n_classes or train.n_classes)
    if made.pooled:
        population = populations.pooled(population)
    tested = Shard.of(test, model, "the test set", where)
    return Setup(config, train, tested, model.to(where), population, made, local, free, bad).protected()


def prepare_remote(
    config: Config,
    model: Model,
    data: Dataset,
    test: Dataset | None,
    sizes: Sequence[int],
    data_dir: str | Path | None = None,
) -> Setup:
    """Make the parts of a run whose clients, and their samples, are elsewhere.

    Args:
        config: What was asked for.
        model: The model with its start weights.
        data: What is known of the clients' samples; its inputs are not looked at.
        test: What the server evaluates on; None where it has nothing: no round is evaluated then.
        sizes: Per client, how many samples it trains on.
        data_dir: Where the server's own inputs without labels lie, if the algorithm needs some.

    Raises:
        UsageError: Parts that do not fit each other.
        DataError: The test set, or the inputs without labels, do not fit the model.
    """
    where, free = device(config.run.device or None), _unlabelled(config, data_dir)
    _check_cohort(config, len(sizes))
    local = _local(config)
    setting = Setting(model, local, len(sizes), config.run.seed, free)
    made = algorithms.make(config.algorithm.name, setting, _options(config))
    tested = _nothing(model, where) if test is None else Shard.of(test, model, "the test set", where)
    population = registered(sizes, _nothing(model, where))
    return Setup(config, data, tested, model.to(where), population, made, local, free, None).protected()


def _nothing(model: Model, where: torch.device) -> Shard:
    """Return no samples at all."""
    return Shard("", torch.zeros((0, *model.input_shape)).to(where), torch.zeros(0, dtype=torch.int64).to(where), 1.0)


def _local(config: Config) -> LocalConfig:
    return LocalConfig(**{f.name: getattr(config.training, f.name) for f in fields(LocalConfig)})


def _model(config: Config, train: Dataset) -> Model:
    model = io.create(config.model.name, train, config.run.seed)
    io.check_format(model, Path(f"model.{config.run.format or 'pt'}"))
    return model


def _check_cohort(config: Config, clients: int) -> None:
    """Refuse a cohort that is larger than the population, where only the data tell how large that is."""
    if config.sampling.scheme != "all":
        sampling.how_many(config.sampling.per_round, clients)


def _attackers(config: Config, population: Population, model: Model) -> Attackers | None:
    said = config.attack
    if said.kind == "none":
        return None
    return attackers(
        said.kind,
        n_clients=len(population),
        fraction=said.fraction,
        trainable=model.layout.trainable,
        strength=said.strength,
        seed=config.run.seed,
    )


def _options(config: Config) -> dict[str, float | str | None]:
    return {key: float(v) if isinstance(v, bool | int) else v for key, v in config.algorithm.options.items()}


def _unlabelled(config: Config, data_dir: str | Path | None) -> Dataset | None:
    if not config.data.unlabelled:
        return None
    return load_unlabelled(config.data.unlabelled, data_dir, seed=config.run.seed)


def _tried(make: Callable[[], T], wrong: list[FedloomError]) -> T | None:
    """Make a part; where it cannot be, remember why."""
    try:
        return make()
    except FedloomError as error:
        wrong.append(error)
        return None
