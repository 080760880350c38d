"""Conflicts: what contradicts itself in a configuration, all of it at once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fedloom.config import Config, refuse, suggestion
from fedloom.config.tables import LOGS
from fedloom.config.values import keys
from fedloom.errors import FedloomError, MissingDependency, unknown

if TYPE_CHECKING:
    from fedloom.network import Network

DRAWN = ("iid", "dirichlet")
"""Schemes that can draw a client's samples with replacement."""


def check(config: Config) -> None:
    """Refuse a configuration that contradicts itself.

    Raises:
        UsageError: Every conflict, one per line.
    """
    found = list(conflicts(config))
    if found:
        raise refuse(found)


def conflicts(config: Config) -> Iterator[str]:
    """Yield every conflict, in words."""
    for part in (_data, _model, _algorithm, _training, _sampling, _network, _attack, _compression, _privacy, _others):
        yield from part(config)


def _data(config: Config) -> Iterator[str]:
    from fedloom import partition

    data, own = config.data, keys("data")
    known = {key for scheme in partition.SCHEMES.values() for key in scheme.options}
    misspelt = {key: near for key in data.options if key not in known and (near := suggestion(key, own))}
    yield from (f"[data] unknown key '{key}'{near}" for key, near in misspelt.items())
    options = {key: value for key, value in data.options.items() if key not in misspelt}
    yield from _said(lambda: partition.scheme_options(data.scheme, options))
    if data.samples_per_client and data.scheme not in DRAWN:
        yield f"samples_per_client draws with replacement, which goes with {' and '.join(DRAWN)}, not {data.scheme}"
    if data.samples_per_client and data.holdout:
        yield "samples drawn with replacement may be on both sides of holdout: leave out holdout or samples_per_client"
    if config.evaluation.clients_every and not data.holdout:
        yield "clients_every evaluates clients on samples that they keep apart: set holdout, such as 0.2"


def _algorithm(config: Config) -> Iterator[str]:
    from fedloom.algorithms import ALGORITHMS, robust

    name, given = config.algorithm.name, config.algorithm.options
    if name not in ALGORITHMS:
        yield str(unknown("algorithm", name, ALGORITHMS))
        return
    known = ALGORITHMS[name].options
    for option in given:
        if option not in known:
            listed = f" (known: {', '.join(known)})" if known else f": {name} has none"
            yield f"unknown option of {name} '{option}'{suggestion(option, known)}{listed}"
    if name == "local-only" and not config.data.holdout:
        yield "local-only has no global model, only those of the clients: set holdout, such as 0.2, to evaluate these"
    if name in robust.METHODS and set(given) <= set(known) and config.data.scheme != "by-column":
        yield from _bears(config)
    if name == "feddf" and not config.data.unlabelled:
        yield "feddf teaches the server's model on inputs without labels: set unlabelled to a data set or a file"


def _bears(config: Config) -> Iterator[str]:
    """Try a robust rule on as many updates as a round has at most."""
    from fedloom.algorithms import robust

    name, options = config.algorithm.name, config.algorithm.options
    yield from _said(lambda: robust.check_cohort(name, options, _most(config)))


def _most(config: Config) -> int:
    """Return how many clients a round has at most."""
    from fedloom.sampling import how_many

    said, clients = config.sampling, config.data.clients
    if said.scheme in ("all", "poisson") or (isinstance(said.per_round, int) and said.per_round > clients):
        return clients
    return how_many(said.per_round, clients)[0]


def _training(config: Config) -> Iterator[str]:
    training = config.training
    if training.momentum and training.optimizer != "sgd":
        yield f"momentum belongs to sgd; {training.optimizer} has its own: leave it out"


def _sampling(config: Config) -> Iterator[str]:
    from fedloom.algorithms import ALGORITHMS
    from fedloom.sampling import how_many

    sampling, clients = config.sampling, config.data.clients
    if sampling.scheme != "all" and config.data.scheme != "by-column":
        yield from _said(lambda: how_many(sampling.per_round, clients))
    if sampling.scheme == "poisson" and isinstance(sampling.per_round, int):
        share = f"{sampling.per_round / clients:.3g}" if sampling.per_round <= clients else "0.1"
        yield f"poisson draws another number of clients every round: give per_round as a share, such as {share}"
    if sampling.scheme in ("poisson", "all") and sampling.over_selection:
        yield f"over_selection needs a number of clients to reach, and {sampling.scheme} has none: leave it out"
    if config.algorithm.name == "fedbuff":
        buffer = config.algorithm.options.get("buffer", ALGORITHMS["fedbuff"].options["buffer"].default)
        if config.data.scheme != "by-column" and isinstance(buffer, int | float) and buffer > clients:
            yield f"fedbuff's buffer is {buffer:g}, but there are only {clients} clients: set buffer to {clients} at most"
        if sampling.deadline is not None or sampling.over_selection:
            yield "fedbuff never waits for a round to end: leave out deadline and over_selection"
        if sampling.scheme not in ("uniform", "size"):
            yield f"fedbuff asks clients one by one: sampling must be uniform or size, not {sampling.scheme}"


def network_of(config: Config) -> Network:
    """Make the simulated network.

    Raises:
        UsageError: An unknown profile or distribution, or numbers out of range.
    """
    from fedloom import network

    said = config.to_tables()["network"]
    options = {key: value for key, value in said.items() if key not in ("profile", "pause")}
    return network.make(config.network.profile, config.run.seed, options)


def _network(config: Config) -> Iterator[str]:
    from fedloom.schedule.base import must_move

    try:
        network = network_of(config)
        must_move(network, None if config.algorithm.name == "fedbuff" else config.network.pause)
    except FedloomError as error:
        yield str(error)
        return
    if config.sampling.deadline is not None and network.instant:
        yield "a deadline needs a simulated network that can be late: set a network, or leave the deadline out"


def _attack(config: Config) -> Iterator[str]:
    from fedloom.attacks import ATTACKS, attackers

    said = config.attack
    if said.kind in ATTACKS and ATTACKS[said.kind].forge is not None and config.algorithm.name == "central":
        yield f"{said.kind} changes what clients send, and in central training nobody sends anything: leave it out"
    if said.kind != "none":
        yield from _said(
            lambda: attackers(said.kind, n_clients=1, fraction=said.fraction, trainable=1, strength=said.strength)
        )


def _compression(config: Config) -> Iterator[str]:
    from fedloom.compress import parse
    from fedloom.layout import Layout

    any_model = Layout(("array",), ((1,),), 1)
    up, down = config.compression.codecs
    if up:
        yield from (f"[compression] up: {line}" for line in _said(lambda: parse(up, any_model)))
    if down:
        yield from (f"[compression] down: {line}" for line in _said(lambda: parse(down, any_model)))
    if config.compression.feedback == "on" and not up:
        yield "error_feedback needs a codec that loses something: set compress, such as topk:0.01"


def _privacy(config: Config) -> Iterator[str]:
    said = config.privacy
    given = said.noise is not None, said.target_epsilon is not None
    if said.mechanism == "none":
        if any(given) or said.clip_quantile is not None:
            yield "noise, target_epsilon and clip_quantile need a mechanism: set privacy, such as central"
        return
    if given == (False, False):
        yield f"privacy {said.mechanism} needs to know how much noise: set target_epsilon (such as 8) or noise (such as 1)"
    if given == (True, True):
        yield "noise and target_epsilon both say how much noise there is: set one of them"
    if said.clip_quantile is not None and said.mechanism != "central":
        yield f"clip_quantile goes with privacy central, not {said.mechanism}: set a fixed clip"
    if said.restart and said.mechanism != "tree":
        yield f"restart is about the noise tree, and privacy {said.mechanism} has none: leave it out"
    for package, module in (("dp-accounting", "dp_accounting"), ("cryptography", "cryptography")):
        if find_spec(module) is None:
            yield str(MissingDependency.of(package, "privacy", f"privacy {said.mechanism}"))


def _others(config: Config) -> Iterator[str]:
    from fedloom.training.plans import PLANS

    run, evaluation = config.run, config.evaluation
    if evaluation.stop_at_target and evaluation.target is None:
        yield "stop_at_target needs a target"
    if run.address and run.engine != "ray":
        yield f"an address belongs to the engine ray, not {run.engine}"
    if run.workers and run.engine == "here":
        yield "workers belong to the engines workers and ray: add engine = 'workers'"
    if run.engine == "ray" and find_spec("ray") is None:
        yield str(MissingDependency.of("ray", "ray", "the engine ray"))
    for name in (part.strip() for part in run.log.split(",") if part.strip()):
        if name not in LOGS:
            yield str(unknown("log", name, LOGS))
        elif find_spec(name) is None:
            package = {"mlflow": "mlflow-skinny"}.get(name, name)
            yield str(MissingDependency.of(package, name, f"log = '{name}'"))
    plans = ["auto", *PLANS]
    if run.plan not in plans:
        yield str(unknown("plan", run.plan, plans))
    if run.engine != "here" and run.device not in ("", "cpu"):
        yield f"the engine {run.engine} trains on processors: leave out device = '{run.device}', or take engine = 'here'"


def _model(config: Config) -> Iterator[str]:
    from fedloom.models.io import KERAS
    from fedloom.models.zoo import TITLES

    name = config.model.name
    if name not in TITLES and ":" not in name and not name.endswith(KERAS):
        yield str(unknown("model", name, [*TITLES, "file.py:function", "module:name", "file.keras"]))


def _said(check: Callable[[], object]) -> Iterator[str]:
    """Run a check that raises, and yield what it says."""
    try:
        check()
    except FedloomError as error:
        yield str(error)
