"""Scale: which inputs does a model expect - 0 to 1, 0 to 255, or divided by 255 twice? Measured, when labels are at hand."""

from __future__ import annotations

from dataclasses import replace

from fedloom.data.dataset import Dataset
from fedloom.models.model import Model
from fedloom.report.comparison import Finding
from fedloom.rng import stream
from fedloom.training.evaluate import evaluate
from fedloom.training.shard import Shard

SAMPLES = 500
MARGIN = 0.1
"""Another scale has to be better by this much accuracy, several times the chance error of 500 samples, and better by
half of it than always naming the most frequent class: a model that knows nothing has no scale."""


def settle(model: Model, data: Dataset, name: str) -> tuple[Model, list[Finding]]:
    """Find the scale that the model's inputs have, and say so when it is not the one on record.

    Args:
        model: Its ``input_high`` is what its sidecar or its own Rescaling layer says, or None.
        data: Labelled samples.
        name: The model's name, for the message.

    Returns:
        The model with a settled ``input_high``, and at most one finding.
    """
    if data.high is None:
        return model, []
    said = model.input_high or 1.0
    index = stream(0, "scale").permutation(len(data))[:SAMPLES]
    sample = data.take(index)
    candidates = (said, 1.0, data.high, 255.0, 1 / 255, 1 / data.high)
    hits = {high: _accuracy(model, sample, high) for high in dict.fromkeys(candidates)}
    best = max(hits, key=lambda high: hits[high])
    commonest = sample.counts().max() / len(sample)
    if hits[best] < max(hits[said] + MARGIN, commonest + MARGIN / 2):
        return replace(model, input_high=said), []
    source = (
        "its sidecar or its first layer says" if model.input_high else "is usual, and nothing on record says otherwise"
    )
    text = (
        f"On {len(index)} samples {name} reaches {hits[best]:.1%} with inputs {_words(best)}, and {hits[said]:.1%} with "
        f"inputs {_words(said)}, which {source}. Its row uses the scale that works; averaged "
        "with models of another scale it spoils the result: train it again with the others' scale."
    )
    return replace(model, input_high=best), [Finding("warning", f"{name} expects inputs {_words(best)}", text)]


def _accuracy(model: Model, data: Dataset, high: float) -> float:
    scaled = replace(model, input_high=high)
    return evaluate(scaled, Shard.of(data, scaled)).accuracy


def _words(high: float) -> str:
    return f"divided by {1 / high:g} twice" if high < 1 else f"from 0 to {high:g}"
