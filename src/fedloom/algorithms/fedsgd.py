"""FedSGD: every client sends one gradient over all of its samples; together they make one big gradient step.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, arXiv 1602.05629: FedAvg with one epoch and the whole shard as one batch::

    w <- w - lr sum_k (n_k / n) g_k

A client takes the step itself and sends the difference, which is the same. The learning rate is the local one.
"""

from __future__ import annotations

from dataclasses import replace

from fedloom.algorithms.base import Algorithm, Method, Options, Setting
from fedloom.algorithms.fedavg import PAPER, mean_delta
from fedloom.algorithms.work import require_sgd
from fedloom.server_opt import sgd
from fedloom.training.local import LocalConfig


def one_step(config: LocalConfig) -> LocalConfig:
    """Return the configuration with one step over all samples; momentum and a schedule mean nothing to it."""
    return replace(config, epochs=1, batch_size=0, momentum=0.0, schedule="constant")


def make(setting: Setting, _: Options) -> Algorithm:
    """Make FedSGD.

    Raises:
        UsageError: The clients do not train with SGD.
    """
    require_sgd("fedsgd", one_step(setting.config))
    return Algorithm("fedsgd", mean_delta(sgd(trainable=setting.model.layout.trainable)), local=one_step, linear=True)


METHOD = Method("one gradient per client and round, over all of its samples", PAPER, make)
