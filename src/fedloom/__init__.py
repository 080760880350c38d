"""fedloom: one good model out of models that were trained apart.

    fedloom.split("mnist", clients=6, out="parts")        # parts with one shared start
    fedloom.train("parts/ana", epochs=3)                  # each member, on its own machine
    fedloom.merge(["ana.keras", "luis.keras"], "fedavg", out="global.keras")
    fedloom.compare(["ana.keras", "luis.keras"], data="mnist")

Everything here is loaded when it is first used: ``import fedloom`` loads neither PyTorch nor Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "split": "fedloom.offline.split",
    "train": "fedloom.offline.train",
    "merge": "fedloom.offline.merge",
    "explain": "fedloom.offline.explain",
    "compare": "fedloom.offline.compare",
    "next_round": "fedloom.offline.next_round",
    "demo": "fedloom.offline.demo",
    "simulate": "fedloom.simulation.simulate",
    "sweep": "fedloom.simulation.sweep",
    "leak": "fedloom.leakage.leak",
    "serve": "fedloom.deploy.serving.serve",
    "join": "fedloom.deploy.joining.join",
    "watch": "fedloom.dashboard.watching",
    "load_data": "fedloom.data",
    "load_pair": "fedloom.data",
    "load_evaluation": "fedloom.data",
    "load_model": "fedloom.models.io",
    "save_model": "fedloom.models.io",
    "Dataset": "fedloom.data.dataset",
    "Model": "fedloom.models.model",
    "FedloomError": "fedloom.errors",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604 - names of the table above

if TYPE_CHECKING:
    from fedloom.dashboard.watching import watch as watch
    from fedloom.data import load_data as load_data
    from fedloom.data import load_evaluation as load_evaluation
    from fedloom.data import load_pair as load_pair
    from fedloom.data.dataset import Dataset as Dataset
    from fedloom.deploy.joining.join import join as join
    from fedloom.deploy.serving.serve import serve as serve
    from fedloom.errors import FedloomError as FedloomError
    from fedloom.leakage.leak import leak as leak
    from fedloom.models.io import load_model as load_model
    from fedloom.models.io import save_model as save_model
    from fedloom.models.model import Model as Model
    from fedloom.offline.compare import compare as compare
    from fedloom.offline.demo import demo as demo
    from fedloom.offline.explain import explain as explain
    from fedloom.offline.merge import merge as merge
    from fedloom.offline.next_round import next_round as next_round
    from fedloom.offline.split import split as split
    from fedloom.offline.train import train as train
    from fedloom.simulation.simulate import simulate as simulate
    from fedloom.simulation.sweep import sweep as sweep


def __getattr__(name: str) -> object:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedloom' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
