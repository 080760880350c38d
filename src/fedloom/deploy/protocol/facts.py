"""What is said under which name in the facts of messages, on both sides alike."""

from __future__ import annotations

READY, TABLES, SAMPLES, TITLE, NUMBER, TRY = "ready", "tables", "samples", "title", "number", "try"

OVER = "over"
"""What a client is at when it has heard that the run is over."""

TURN = "turn"
"""The name under which a client's turn, whose state counts, is kept by the server: the state itself stays with the client."""

SHOWN = {
    "algorithm": ("name",),
    "model": ("name",),
    "training": ("epochs", "batch_size", "optimizer", "lr"),
    "run": ("rounds", "batchnorm"),
    "sampling": ("scheme", "per_round"),
    "compression": ("up", "down"),
    "privacy": (
        *("mechanism", "clip", "noise", "target_epsilon", "delta", "noise_seed", "secure_aggregation"),
        *("clip_quantile", "secure_bits", "secure_range", "secure_dropouts"),
    ),
}
"""What of a configuration is a client's business, by table."""
