"""Rules that make one model out of n: functions on an (n, P) float32 matrix, and one table that names them.

Every rule refuses what :func:`cohort` refuses (no model, NaN, other lengths): a ``MergeError`` that names the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from fedloom.aggregate.checks import Cohort, Vectors, cohort, raw_weights, whole
from fedloom.aggregate.clipping import centered_clipping, norm_bounding
from fedloom.aggregate.fednova import fednova, fednova_norm
from fedloom.aggregate.geometric import geometric_median
from fedloom.aggregate.krum import bulyan, krum, krum_scores, multi_krum
from fedloom.aggregate.mean import StreamingMean, combination, weighted_mean
from fedloom.aggregate.order import median, trimmed_mean
from fedloom.errors import MergeError, check_known
from fedloom.layout import Layout

__all__ = [
    "RULES",
    "Cohort",
    "Option",
    "Rule",
    "StreamingMean",
    "Vectors",
    "bulyan",
    "centered_clipping",
    "cohort",
    "combination",
    "combine",
    "fednova",
    "fednova_norm",
    "geometric_median",
    "krum",
    "krum_scores",
    "median",
    "multi_krum",
    "norm_bounding",
    "trimmed_mean",
    "weighted_mean",
]


@dataclass(frozen=True)
class Option:
    """A number that a rule can be given.

    Attributes:
        default: Its value when nothing is said; None where the rule derives it from the models.
        help: What it is, its range and unit.
    """

    default: float | None
    help: str


@dataclass(frozen=True)
class Inputs:
    """All that a rule may look at; see :func:`combine`."""

    models: Cohort
    weights: Sequence[float] | Tensor | None
    norms: Sequence[float] | None
    centre: Tensor | None


Options = Mapping[str, float | None]


@dataclass(frozen=True)
class Rule:
    """One row of :data:`RULES`.

    Attributes:
        title: What it does, in one line.
        protects: What it is good against.
        paper: Author, title, venue, year.
        apply: The rule on its inputs and complete options.
        options: Its options by name.
        weights: Whether the models' weights count.
        streams: Whether :class:`StreamingMean` gives the same with one model in memory at a time.
        uses: What else it takes: ``norms`` (local steps), ``centre`` (the previous global model).
    """

    title: str
    protects: str
    paper: str
    apply: Callable[[Inputs, Options], Tensor]
    options: Mapping[str, Option] = field(default_factory=dict)
    weights: bool = False
    streams: bool = False
    uses: tuple[str, ...] = ()


def combine(
    method: str,
    vectors: Vectors,
    *,
    weights: Sequence[float] | Tensor | None = None,
    norms: Sequence[float] | None = None,
    centre: Tensor | None = None,
    names: Sequence[str] | None = None,
    layout: Layout | None = None,
    options: Mapping[str, float | None] | None = None,
) -> Tensor:
    """Merge n models by the rule of that name.

    Args:
        method: A name of :data:`RULES`.
        vectors: n models: an (n, P) float32 matrix, n vectors of shape (P,), or a checked :class:`Cohort`.
        weights: n numbers >= 0; checked, and used by the rules whose ``weights`` is set. Equal when None.
        norms: For ``fednova``: every model's local work, see :func:`fednova_norm`.
        centre: The previous global model, float32 (P,): where ``fednova``'s updates start, and the centre of
            ``centered-clipping`` and ``norm-bounding`` (the coordinate median when None).
        names: What to call the models in messages, usually their files.
        layout: Their layout, so that messages can name the array.
        options: The rule's own; None as a value means its default.

    Returns:
        The merged model, float32 (P,).

    Raises:
        UsageError: An unknown method or option, with a suggestion.
        MergeError: The rule cannot be applied to these models; the message says why.

    Example:
        >>> import torch
        >>> combine("trimmed-mean", torch.tensor([[0.0], [1.0], [3.0], [99.0]]), options={"k": 1}).tolist()
        [2.0]
    """
    check_known("method", [method], RULES)
    rule = RULES[method]
    check_known(f"option of {method}", options or {}, rule.options)
    values = {name: option.default for name, option in rule.options.items()}
    values |= {name: value for name, value in (options or {}).items() if value is not None}
    models = cohort(vectors, names=names, layout=layout)
    if weights is not None:
        raw_weights(weights, models)
    return rule.apply(Inputs(models, weights, norms, centre), values)


def _mean(g: Inputs, _: Options) -> Tensor:
    return weighted_mean(g.models, weights=g.weights)


def _weighted(g: Inputs, _: Options) -> Tensor:
    if g.weights is None:
        raise MergeError(f"'weighted' needs weights: one for each of the {g.models.n} models, or use 'fedavg'")
    return weighted_mean(g.models, weights=g.weights)


def _geometric(g: Inputs, o: Options) -> Tensor:
    nu, iterations = _number(o, "nu"), _count(o, "iterations")
    return geometric_median(g.models, weights=g.weights, nu=nu, iterations=iterations)


def _clipping(g: Inputs, o: Options) -> Tensor:
    return centered_clipping(g.models, centre=g.centre, tau=o["tau"], iterations=_count(o, "iterations"))


def _fednova(g: Inputs, _: Options) -> Tensor:
    if g.norms is None:
        raise MergeError("'fednova' needs the local steps of every model")
    return fednova(g.models, norms=g.norms, start=g.centre, weights=g.weights)


def _number(options: Options, name: str) -> float:
    value = options[name]
    if value is None:
        raise MergeError(f"the option '{name}' needs a value", option=name)
    return value


def _count(options: Options, name: str) -> int:
    return whole(name, _number(options, name))


def _count_or_none(options: Options, name: str) -> int | None:
    value = options[name]
    return None if value is None else whole(name, value)


_FEDAVG = 'McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017'
_YIN = 'Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018'
_KRUM = 'Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NIPS 2017'

RULES: dict[str, Rule] = {
    "fedavg": Rule(
        "mean, weighted by samples",
        "nothing: one bad model is enough to spoil it",
        _FEDAVG,
        _mean,
        weights=True,
        streams=True,
    ),
    "weighted": Rule(
        "mean with weights of your own",
        "models that you trust less: give them a small weight",
        _FEDAVG,
        _weighted,
        weights=True,
        streams=True,
    ),
    "median": Rule(
        "median of each coordinate",
        "up to half of the models being arbitrary",
        _YIN,
        lambda g, _: median(g.models),
    ),
    "trimmed-mean": Rule(
        "mean of each coordinate without its extremes",
        "as many arbitrary models as are trimmed on each side",
        _YIN,
        lambda g, o: trimmed_mean(g.models, trim=_number(o, "trim"), k=_count_or_none(o, "k")),
        {
            "trim": Option(0.1, "fraction left out on each side, in [0, 0.5); rounded up to whole models"),
            "k": Option(None, "models left out on each side, instead of the fraction"),
        },
    ),
    "geometric-median": Rule(
        "the point with the least summed distance to the models",
        "up to half of the models (by weight) being arbitrary",
        'Pillutla et al., "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 2022',
        _geometric,
        {
            "nu": Option(1e-6, "smallest distance that counts (a norm), > 0"),
            "iterations": Option(1000, "most Weiszfeld steps, >= 1"),
        },
        weights=True,
    ),
    "krum": Rule(
        "the one model nearest to its neighbours",
        "up to f arbitrary models of n >= 2 f + 3",
        _KRUM,
        lambda g, o: krum(g.models, f=_count_or_none(o, "f")),
        {"f": Option(None, "bad models to bear, a whole number; (n - 3) // 2 unless said")},
    ),
    "multi-krum": Rule(
        "mean of the models nearest to their neighbours",
        "up to f arbitrary models of n >= 2 f + 3",
        _KRUM,
        lambda g, o: multi_krum(g.models, f=_count_or_none(o, "f"), m=_count_or_none(o, "m")),
        {
            "f": Option(None, "bad models to bear, a whole number; (n - 3) // 2 unless said"),
            "m": Option(None, "models to average, 1 to n; n - f - 2 unless said"),
        },
    ),
    "bulyan": Rule(
        "Krum's selection, then the mean of the values nearest to the median",
        "up to f arbitrary models of n >= 4 f + 3, also when each hides in few coordinates",
        'El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018',
        lambda g, o: bulyan(g.models, f=_count_or_none(o, "f")),
        {"f": Option(None, "bad models to bear, a whole number; (n - 3) // 4 unless said")},
    ),
    "centered-clipping": Rule(
        "mean of the updates, clipped around a centre, a few times over",
        "a minority of arbitrary models, over many rounds",
        'Karimireddy et al., "Learning from History for Byzantine Robust Optimization", ICML 2021',
        _clipping,
        {
            "tau": Option(None, "clipping radius (a norm), > 0; the median distance to the centre unless said"),
            "iterations": Option(5, "how many times, >= 1"),
        },
        uses=("centre",),
    ),
    "norm-bounding": Rule(
        "mean of the updates, the long ones shortened",
        "a few models that push hard in their direction",
        'Sun et al., "Can You Really Backdoor Federated Learning?", 2019',
        lambda g, o: norm_bounding(g.models, weights=g.weights, centre=g.centre, bound=o["bound"]),
        {"bound": Option(None, "longest update that counts in full (a norm), > 0; the median norm unless said")},
        weights=True,
        uses=("centre",),
    ),
    "fednova": Rule(
        "mean of the updates, each normalised by its local steps",
        "clients that take many more steps than others",
        'Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", '
        "NeurIPS 2020",
        _fednova,
        weights=True,
        uses=("norms", "centre"),
    ),
}
