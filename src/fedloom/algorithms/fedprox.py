"""FedProx: a spring holds every client near the global model while it trains.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, arXiv 1812.06127, Algorithm 2. A client minimises::

    F_k(w) + (mu / 2) |w - w_t|^2        gradient: g + mu (w - w_t)

Deviations: clients are drawn by the run's sampling scheme and averaged by samples, as FedAvg's are (the paper draws
them by samples and averages them equally); all take the same number of epochs, where the paper lets each solve its
problem as exactly as it likes.
"""

from __future__ import annotations

from fedloom.algorithms.base import Algorithm, Method, Option, Options, Setting, Visit
from fedloom.algorithms.fedavg import mean_delta
from fedloom.algorithms.options import not_negative
from fedloom.records import Correction, Phase
from fedloom.server_opt import sgd


def make(setting: Setting, options: Options) -> Algorithm:
    """Make FedProx; mu = 0 is FedAvg."""
    correction = Correction(pull=not_negative(options, "mu"))

    def phases(visit: Visit) -> tuple[Phase, ...]:
        return (Phase(visit.broadcast.vector, correction),)

    return Algorithm("fedprox", mean_delta(sgd(trainable=setting.model.layout.trainable)), phases=phases, linear=True)


METHOD = Method(
    "FedAvg with a spring towards the global model during local training",
    'Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020',
    make,
    {"mu": Option(0.01, "strength of the spring, >= 0; 0 is FedAvg, the paper tries 0.001 to 1")},
)
