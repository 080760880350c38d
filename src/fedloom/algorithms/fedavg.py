"""FedAvg: clients train from the global model; the server takes the mean, weighted by samples.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, arXiv 1602.05629, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from fedloom.aggregate import StreamingMean
from fedloom.algorithms.base import Algorithm, Method, Option, Options, Reduce, Setting, State
from fedloom.algorithms.options import positive
from fedloom.records import ClientUpdate
from fedloom.server_opt import ServerOptimizer, sgd

SERVER_LR = Option(1.0, "server learning rate on the mean update, > 0; 1 is plain averaging")
PAPER = 'McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017'


def averaging(name: str, server: ServerOptimizer) -> Algorithm:
    """Make the algorithm that hands the weighted mean update to a server optimiser."""

    def init(w0: Tensor) -> State:
        return {"model": w0, **{f"server.{key}": value for key, value in server.init(w0).items()}}

    return Algorithm(name, mean_delta(server), init=init, linear=True)


def mean_delta(server: ServerOptimizer) -> Reduce:
    """Make the ``reduce`` of :func:`averaging`; the optimiser's tensors stand in the state under ``server.``."""

    def reduce(state: State, updates: Iterable[ClientUpdate]) -> tuple[State, Mapping[str, float]]:
        before = {k.removeprefix("server."): v for k, v in state.items() if k.startswith("server.")}
        model, after = server.step(before, state["model"], mean_of(updates, state["model"]))
        return {**state, "model": model, **{f"server.{k}": v for k, v in after.items()}}, {}

    return reduce


def mean_of(updates: Iterable[ClientUpdate], like: Tensor) -> Tensor:
    """Return the mean delta, weighted by ``update.weight``, float32 (P,); one update is in memory at a time."""
    mean = StreamingMean(like.numel(), like.device)
    for update in updates:
        mean.add(update.delta, update.weight, name=update.client)
    return mean.take()


def make(setting: Setting, options: Options) -> Algorithm:
    """Make FedAvg.

    Raises:
        UsageError: The server learning rate is not above 0.
    """
    return averaging("fedavg", sgd(lr=positive(options, "server_lr"), trainable=setting.model.layout.trainable))


METHOD = Method("mean of the clients' models, weighted by samples", PAPER, make, {"server_lr": SERVER_LR})
