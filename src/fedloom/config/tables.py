"""The tables of a run's configuration: what can be said, with its default, its range and one line of help each.

This module is all that the command line needs for its options, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Value: TypeAlias = bool | int | float | str

FORMATS = ("keras", "h5", "pt", "safetensors")
ENGINES = ("here", "workers", "ray")
POLICIES = ("skip", "retry", "stop")
BATCHNORM = ("average", "recalibrate", "local")
SAMPLING = ("uniform", "size", "fixed", "cyclic", "poisson", "all")
OPTIMIZERS = ("sgd", "adam", "adamw")
PRECISIONS = ("float32", "bfloat16", "auto")
SCHEDULES = ("constant", "cosine")
MECHANISMS = ("none", "central", "local", "tree", "distributed", "skellam", "examples")
ACCOUNTANTS = ("rdp", "pld")
SECURE = ("off", "sum", "protocol")
FEEDBACK = ("auto", "on", "off")
LOGS = ("mlflow", "tensorboard")


def _key(
    default: Any,
    text: str,
    *,
    flag: str = "",
    fits: Callable[[Any], bool] | None = None,
    rule: str = "",
    choices: Sequence[str] = (),
) -> Any:
    """Describe one key: its default, one line of help, its name as a flag where that differs, and its range."""
    known = {"help": text, "flag": flag, "fits": fits, "rule": rule, "choices": tuple(choices)}
    return field(default=default, metadata=known)


def _least(bound: float, most: float = float("inf")) -> dict[str, Any]:
    rule = f"{bound:g} or more" if most == float("inf") else f"from {bound:g} to {most:g}"
    return {"fits": lambda v: bound <= v <= most and v < float("inf"), "rule": rule}


def _above(bound: float, most: float = float("inf")) -> dict[str, Any]:
    rule = f"above {bound:g}" if most == float("inf") else f"above {bound:g} and at most {most:g}"
    return {"fits": lambda v: bound < v <= most and v < float("inf"), "rule": rule}


def _below(bound: float) -> dict[str, Any]:
    return {"fits": lambda v: 0 <= v < bound, "rule": f"from 0 to below {bound:g}"}


def _between(low: float, high: float) -> dict[str, Any]:
    return {"fits": lambda v: low < v < high, "rule": f"between {low:g} and {high:g}"}


@dataclass(frozen=True)
class Data:
    """``[data]``: the samples, and how they are divided among clients. Options of the scheme stand here, too."""

    source: str = _key("mnist", "digits, mnist, fashion-mnist or a path.", flag="data")
    clients: int = _key(100, "The number of clients.", **_least(1))
    scheme: str = _key("iid", "How to divide the samples; 'fedloom list schemes' explains.")
    holdout: float = _key(0.0, "The share of each client's samples kept to evaluate it on.", **_below(1))
    samples_per_client: int = _key(
        0, "Draw so many samples for each client, with replacement; 0: divide the data.", **_least(0)
    )
    test_fraction: float = _key(0.2, "Held out as the test set when the data bring none.", **_above(0, 0.9))
    unlabelled: str = _key("", "Inputs without labels that the server has (FedDF): a name or a path.")
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelTable:
    """``[model]``: what is trained."""

    name: str = _key("2nn", "A zoo name, file.py:function, module:name or a Keras file.", flag="model")


@dataclass(frozen=True)
class AlgorithmTable:
    """``[algorithm]``: the federated algorithm. Its options stand here, too."""

    name: str = _key("fedavg", "The algorithm; 'fedloom list algorithms' explains.", flag="algorithm")
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """``[training]``: what a client does in its turn."""

    epochs: int = _key(1, "Passes of a client over its samples per round.", **_least(1))
    batch_size: int = _key(10, "Samples per step; 0: all of a client's in one.", **_least(0))
    optimizer: str = _key("sgd", "The clients' optimiser.", choices=OPTIMIZERS)
    lr: float = _key(0.1, "The clients' learning rate.", **_above(0))
    lr_decay: float = _key(1.0, "The learning rate is multiplied by this after every round.", **_above(0, 1))
    momentum: float = _key(0.0, "The momentum of SGD.", **_below(1))
    weight_decay: float = _key(0.0, "Pull of the weights towards 0.", **_least(0))
    precision: str = _key("float32", "The numbers to compute with; auto: the faster.", choices=PRECISIONS)
    schedule: str = _key("constant", "The learning rate within a turn.", flag="lr_schedule", choices=SCHEDULES)


@dataclass(frozen=True)
class Sampling:
    """``[sampling]``: who takes part in a round."""

    scheme: str = _key("uniform", "How a round's clients are drawn.", flag="sampling", choices=SAMPLING)
    per_round: int | float = _key(
        10,
        "Clients per round: a number (10) or a share (10% or 0.1).",
        fits=lambda v: v >= 1 and v == int(v) if isinstance(v, int) else 0 < v <= 1,
        rule="a whole number from 1, or a share above 0 and at most 1",
    )
    over_selection: float = _key(0.0, "Ask so many more (0.3: 30 % more), and take those that are first.", **_least(0))
    deadline: float | None = _key(None, "Wait so many simulated seconds for a round.", **_above(0))


@dataclass(frozen=True)
class Network:
    """``[network]``: how slow and unreliable clients are, on a simulated clock.

    Quantities are numbers or distributions, as ``"lognormal(median=2k, sigma=0.5)"``; see :mod:`fedloom.network`.
    """

    profile: str = _key("none", "A named network of slow, unreliable clients; 'fedloom list networks'.", flag="network")
    speed: str | None = _key(None, "Samples that a client trains on per simulated second.")
    down: str | None = _key(None, "Bytes that it receives per second, such as 1.5M.")
    up: str | None = _key(None, "Bytes that it sends per second.")
    latency: str | None = _key(None, "Seconds that a turn waits for the network.")
    dropout: float | None = _key(None, "The chance that a client goes away in mid-round.", **_below(1))
    availability: str | None = _key(None, "Which share can be reached: 0.8, diurnal(...) or markov(...).")
    pause: float = _key(0.0, "Simulated seconds between two rounds.", **_least(0))


@dataclass(frozen=True)
class Attack:
    """``[attack]``: clients that send something else than they learned."""

    kind: str = _key("none", "What attackers do; 'fedloom list attacks' explains.", flag="attack")
    fraction: float = _key(0.1, "The share of attackers among the clients.", flag="attack_fraction", **_above(0, 1))
    strength: float | None = _key(
        None, "How hard they try; the attack's own default when left out.", flag="attack_strength", **_above(0)
    )


@dataclass(frozen=True)
class Compression:
    """``[compression]``: how updates and models become bytes; see :mod:`fedloom.compress`."""

    up: str = _key(
        "none", "The codec of updates, such as 'topk:0.01 | int8 | zstd'; 'fedloom list codecs'.", flag="compress"
    )
    down: str = _key("none", "The codec of the model that clients are sent.", flag="compress_down")
    feedback: str = _key(
        "auto",
        "Clients send later what the codec lost; auto: where it needs that.",
        flag="error_feedback",
        choices=FEEDBACK,
    )

    @property
    def codecs(self) -> tuple[str, str]:
        """The codecs up and down; empty where there is none."""
        up, down = ("" if text == "none" else text for text in (self.up, self.down))
        return up, down


@dataclass(frozen=True)
class Privacy:
    """``[privacy]``: what hides a client, or an example, in the model; see :mod:`fedloom.privacy`."""

    mechanism: str = _key(
        "none", "What hides them; 'fedloom list privacy' explains.", flag="privacy", choices=MECHANISMS
    )
    clip: float = _key(1.0, "The longest update (or gradient of an example) in L2 norm.", **_above(0))
    clip_quantile: float | None = _key(
        None, "central: let the bound follow this quantile of the norms, such as 0.5.", **_between(0, 1)
    )
    noise: float | None = _key(None, "The noise multiplier: its standard deviation / clip.", **_least(0))
    target_epsilon: float | None = _key(None, "Find the noise for this epsilon.", **_above(0))
    delta: float = _key(1e-5, "The delta of (epsilon, delta)-differential privacy.", **_between(0, 1))
    accountant: str = _key("rdp", "How epsilon is computed; pld is tighter and slower.", choices=ACCOUNTANTS)
    noise_seed: int | None = _key(
        None, "Repeatable noise, which protects nobody; left out: the operating system's randomness.", **_least(0)
    )
    restart: int = _key(0, "tree: a new tree after so many rounds; 0: one tree.", **_least(0))
    secure_aggregation: str = _key("off", "The server sees sums alone; protocol: with all messages.", choices=SECURE)
    secure_bits: int = _key(32, "Bits per number of a secure sum.", **_least(8, 62))
    secure_range: float = _key(4.0, "The largest number of an update in a secure sum without a clip.", **_above(0))
    secure_dropouts: float = _key(0.2, "The share of drop-outs that a secure sum survives.", **_below(0.5))


@dataclass(frozen=True)
class Evaluation:
    """``[evaluation]``: when models are evaluated, and on whom."""

    every: int = _key(1, "Evaluate on the test set every so many rounds.", flag="evaluate_every", **_least(1))
    clients_every: int = _key(
        0, "Evaluate on the clients' held-out samples every so many rounds; 0: never.", **_least(0)
    )
    target: float | None = _key(None, "Report the rounds until this accuracy (0-1).", **_above(0, 1))
    stop_at_target: bool = _key(False, "Stop there.")


@dataclass(frozen=True)
class RunTable:
    """``[run]``: how long, with which chance, and by what means."""

    rounds: int = _key(50, "Rounds.", **_least(1))
    seed: int = _key(0, "The seed of everything.", **_least(0))
    engine: str = _key("here", "Where clients are trained.", choices=ENGINES)
    workers: int = _key(0, "Worker processes; 0: as many as there are cores.", **_least(0))
    address: str = _key("", "ray: the cluster; 'auto' finds a running one.")
    threads: int = _key(0, "Threads per process; 0: as many as help.", **_least(0))
    plan: str = _key("auto", "The execution plan; 'fedloom list plans' explains.")
    policy: str = _key("skip", "When a client fails: go on without it, ask another, or stop.", choices=POLICIES)
    batchnorm: str = _key("average", "The statistics of BatchNorm in the global model.", choices=BATCHNORM)
    checkpoint_every: int = _key(0, "Rounds between checkpoints; 0: every few seconds.", **_least(0))
    format: str = _key("", "Of the model files: keras, h5, pt or safetensors.", choices=("", *FORMATS))
    device: str = _key("", "cpu or cuda; a GPU when there is one.")
    log: str = _key("", "Write the figures of every round to tensorboard or mlflow, too; or to both, with a comma.")


TABLES: dict[str, type] = {
    "data": Data,
    "model": ModelTable,
    "algorithm": AlgorithmTable,
    "training": Training,
    "sampling": Sampling,
    "network": Network,
    "attack": Attack,
    "compression": Compression,
    "privacy": Privacy,
    "evaluation": Evaluation,
    "run": RunTable,
}

OPEN = ("data", "algorithm")
"""Tables that hold options of what they name, beside their own keys."""
