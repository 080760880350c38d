"""Agreement: what a person is shown before anything is trained, and what the run is held to afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedloom.algorithms.protection import EXAMPLES, LOCAL, SHARES
from fedloom.deploy.experiment import Experiment
from fedloom.deploy.messages import Welcome
from fedloom.errors import DataError, UsageError

SHOWN = {
    "algorithm": ("name",),
    "model": ("name",),
    "training": ("epochs", "batch_size", "optimizer", "lr"),
    "run": ("rounds", "batchnorm"),
    "sampling": ("scheme", "per_round"),
    "compression": ("up", "down"),
    "privacy": (
        *("mechanism", "clip", "noise", "target_epsilon", "delta", "noise_seed", "secure_aggregation"),
        "clip_quantile",
    ),
}
"""What of a configuration is a client's business, by table."""


@dataclass(frozen=True)
class Agreement:
    """What is agreed to.

    Attributes:
        run: The run's name.
        clients: How many clients it has.
        samples: How many samples of this client's it trains on.
        tables: What of the configuration concerns clients, see :data:`SHOWN`.
        title: What the server calls it.
    """

    run: str
    clients: int
    samples: int
    tables: Mapping[str, Mapping[str, Any]]
    title: str

    @classmethod
    def of(cls, welcome: Welcome, samples: int) -> Agreement:
        """Read what the server says.

        Raises:
            DataError: Something is missing.
        """
        try:
            said = welcome.experiment["tables"]
            tables = {table: {key: said[table][key] for key in keys} for table, keys in SHOWN.items()}
        except (KeyError, TypeError) as error:
            raise DataError(f"what the server says of the run is damaged ({error})") from error
        return cls(welcome.run, welcome.clients, samples, tables, str(welcome.experiment.get("title", ""))[:200])

    def hold(self, experiment: Experiment) -> None:
        """Check that the run that is about to begin is the one that was agreed to.

        Raises:
            UsageError: It protects less, or is another one.
        """
        privacy, made, packed = self.tables["privacy"], experiment.recipe.protection, self.tables["compression"]
        algorithm = self.tables["algorithm"]["name"] == experiment.recipe.algorithm
        same = made.mechanism == privacy["mechanism"] and made.clip == privacy["clip"]
        same = same and made.noise_seed == privacy["noise_seed"] and made.secure == privacy["secure_aggregation"]
        same = same and (privacy["noise"] is None or made.multiplier == privacy["noise"])
        codecs = tuple("" if packed[key] == "none" else packed[key] for key in ("up", "down"))
        batchnorm = made.local_statistics == (self.tables["run"]["batchnorm"] == "local")
        training = all(
            getattr(experiment.recipe.config, key) == value for key, value in self.tables["training"].items()
        )
        if not (algorithm and same and training and codecs == (made.up, made.down) and batchnorm):
            raise UsageError("the server asks for something else than what you agreed to: nothing was trained or sent")
        if made.mechanism in (LOCAL, EXAMPLES) and not made.multiplier:
            raise UsageError("the server asks to train with privacy, but without noise: nothing was trained or sent")

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        rounds = self.tables["run"]["rounds"]
        return rounds if isinstance(rounds, int) else 0

    def lines(self) -> list[str]:
        """Return it in words."""
        t, training = self.tables, self.tables["training"]
        batch = f"batches of {training['batch_size']}" if training["batch_size"] else "all samples in one step"
        return [
            f"run      {self.title or self.run}: {t['algorithm']['name']}, {t['run']['rounds']} rounds with "
            f"{self.clients} clients",
            f"model    {t['model']['name']}",
            f"training here, on your {self.samples} samples: {training['epochs']} epochs per round, {batch}, "
            f"{training['optimizer']} with learning rate {training['lr']:g}",
            f"privacy  {self._privacy()}",
            f"leaves   {self._leaves()}",
            "stays    your samples, and the run's logs in your folder; no code is sent to you",
        ]

    def _privacy(self) -> str:
        said = self.tables["privacy"]
        kind = said["mechanism"]
        if kind == "none":
            return "none: an update can tell something of the samples that it was made from"
        hidden = "each of your samples" if kind == EXAMPLES else "you as a whole"
        how = f"epsilon {said['target_epsilon']:g}" if said["target_epsilon"] else f"noise {said['noise']}"
        own = kind in (LOCAL, EXAMPLES, *SHARES)
        who = "here, before anything is sent" if own else "on the server, which sees your update"
        void = "; void, since the noise can be repeated (noise_seed)" if said["noise_seed"] is not None else ""
        return f"{kind}: hides {hidden} ({how}, delta {said['delta']:g}); noise is added {who}{void}"

    def _leaves(self) -> str:
        up = self.tables["compression"]["up"]
        packed = "" if up == "none" else f", packed as {up}"
        hidden = self.tables["privacy"]["mechanism"] in (LOCAL, EXAMPLES, *SHARES)
        beside = "" if hidden else ", the mean loss and accuracy of training"
        return f"after every round your update of the model's weights{packed}{beside}; and how many samples you have"
