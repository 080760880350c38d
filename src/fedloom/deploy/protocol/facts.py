"""What is said under which name in the facts of messages, on both sides alike."""

from __future__ import annotations

READY, TABLES, SAMPLES, TITLE, NUMBER, TRY = "ready", "tables", "samples", "title", "number", "try"

RIGHT, OWN = "right", "own"
"""Of the samples that a client keeps apart, how many the global model gets right, and how many the client's own."""

MODEL = "model"
"""Beside what is sent: the global model to evaluate, where that is another."""

OVER = "over"
"""What a client is at when it has heard that the run is over."""

TURN = "turn"
"""The name under which a client's turn, whose state counts, is kept by the server: the state itself stays with the client."""

SHOWN = {
    "algorithm": (),
    "model": ("name",),
    "training": ("epochs", "batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule"),
    "run": ("rounds", "batchnorm", "seed"),
    "sampling": ("scheme", "per_round"),
    "data": ("holdout",),
    "evaluation": ("clients_every", "stop_at_target"),
    "compression": ("up", "down"),
    "privacy": (
        *("mechanism", "clip", "noise", "target_epsilon", "delta", "noise_seed", "secure_aggregation"),
        *("clip_quantile", "secure_bits", "secure_range", "secure_dropouts"),
    ),
}
"""What of a configuration is a client's business, by table; all of a table where no key is named."""
