"""Agreement: what a person is shown before anything is trained, and what the run is held to afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.algorithms.protection import EXAMPLES, LOCAL, SHARES, Protection
from fedloom.deploy.experiment import Experiment
from fedloom.deploy.protocol.facts import SHOWN
from fedloom.deploy.protocol.forms import shown
from fedloom.deploy.protocol.messages import Task, Welcome
from fedloom.errors import DataError, ModelError, UsageError
from fedloom.models import zoo
from fedloom.privacy.secagg import plan
from fedloom.rounds import RETRIES
from fedloom.sampling import SAMPLERS, how_many
from fedloom.simulation.population import held_count

MOST = 200
"""The longest text that is shown of what the server says."""

MOST_NUMBER = 1e15
"""Above any number in it."""


@dataclass(frozen=True)
class Agreement:
    """What is agreed to.

    Attributes:
        run: The run's name.
        clients: How many clients it has.
        samples: How many samples this client has.
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
            tables = {table: _read(said[table], keys) for table, keys in SHOWN.items()}
            title = str(_plain(str(welcome.experiment.get("title", ""))[:MOST]))
            made = cls(welcome.run, welcome.clients, samples, tables, title)
            made.least, made.lines()
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise DataError(f"what the server says of the run is damaged ({error})") from error
        return made

    def hold(self, experiment: Experiment) -> None:
        """Check that the run that is about to begin is the one that was agreed to.

        Raises:
            UsageError: It protects less, or is another one.
        """
        privacy, made, packed = self.tables["privacy"], experiment.recipe.protection, self.tables["compression"]
        algorithm = self.tables["algorithm"] == {"name": experiment.recipe.algorithm, **experiment.recipe.options}
        same = made.mechanism == privacy["mechanism"] and made.clip == privacy["clip"]
        same = same and made.noise_seed == privacy["noise_seed"] and made.secure == privacy["secure_aggregation"]
        same = same and (privacy["noise"] is None or made.multiplier == privacy["noise"])
        same = same and (made.secure == "off" or self._seals(made))
        codecs = tuple("" if packed[key] == "none" else packed[key] for key in ("up", "down"))
        batchnorm = made.local_statistics == (self.tables["run"]["batchnorm"] == "local")
        training = all(
            getattr(experiment.recipe.config, key) == value for key, value in self.tables["training"].items()
        )
        same = same and self.tables["run"]["seed"] == experiment.recipe.seed
        same = same and algorithm and self._is_model(experiment)
        if not (same and training and codecs == (made.up, made.down) and batchnorm):
            raise UsageError("the server asks for something else than what you agreed to: nothing was trained or sent")
        if made.own_noise and not made.multiplier:
            raise UsageError("the server asks to train with privacy, but without noise: nothing was trained or sent")

    def check(self, task: Task) -> None:
        """Check that a round that is asked for is one of those that were agreed to.

        Raises:
            DataError: There are not so many rounds, or it is to be trained in another way.
        """
        if not 0 < task.round <= self.rounds:
            raise DataError(f"the server asks for round {task.round}, and you agreed to {self.rounds}")
        if task.attempt > RETRIES:
            raise DataError(f"the server asks for round {task.round} again and again")
        most = self.tables["training"]["lr"]
        if not 0 <= task.lr <= most:
            raise DataError(f"the server asks for the learning rate {task.lr:g}, and you agreed to {most:g} at most")

    def check_evaluation(self, task: Task) -> None:
        """Check that an evaluation that is asked for is one of those that were agreed to.

        Raises:
            DataError: It is none.
        """
        every, anywhere = self._evaluated
        due = task.round == self.rounds or anywhere or (every and task.round % every == 0)
        if not (self.holdout and due and 0 < task.round <= self.rounds):
            raise DataError(
                f"the server asks for an evaluation after round {task.round}, and you did not agree to that"
            )

    @property
    def holdout(self) -> float:
        """The share of the samples that are kept apart; 0 where none are."""
        share = self.tables["data"]["holdout"]
        if not 0 <= share < 1:
            raise ValueError("the share of the samples that are kept apart is none")
        return float(share)

    @property
    def _evaluated(self) -> tuple[int, bool]:
        """Return after every how many rounds models are evaluated, and whether any round may be the last."""
        said = self.tables["evaluation"]
        if type(said["clients_every"]) is not int or said["clients_every"] < 0:
            raise ValueError("it does not say after how many rounds models are evaluated")
        return said["clients_every"], bool(said["stop_at_target"])

    def _is_model(self, experiment: Experiment) -> bool:
        """Say whether a model of the zoo is the one of that name; others are known by their file or function alone."""
        name, found, samples = self.tables["model"]["name"], experiment.recipe.model.architecture, experiment.samples
        if name not in zoo.TITLES:
            return True
        try:
            return _layers(found.config) == _layers(zoo.config(name, samples.shape, len(samples.class_names)))
        except (KeyError, TypeError, ModelError):
            return False

    def _seals(self, made: Protection) -> bool:
        """Say whether sums are as was agreed; a client's share of the noise depends on how many it is divided among."""
        privacy = self.tables["privacy"]
        known = made.bits == privacy["secure_bits"] and made.range == privacy["secure_range"]
        return known and made.dropouts == privacy["secure_dropouts"] and made.cohort <= self._asked()[1]

    def _asked(self) -> tuple[int, float]:
        """Return how many clients a round asks, at least and on average."""
        said = self.tables["sampling"]
        if said["scheme"] == "all":
            return self.clients, self.clients
        count, rate = how_many(said["per_round"], self.clients)
        return (count, count) if SAMPLERS[said["scheme"]].counted else (2, rate * self.clients)

    @property
    def least(self) -> int:
        """The fewest clients of which the server is to see the sum; 0 where it sees updates one by one."""
        privacy = self.tables["privacy"]
        if privacy["secure_aggregation"] == "off":
            return 0
        return plan(max(2, self._asked()[0]), privacy["secure_dropouts"]).minimum

    @property
    def rounds(self) -> int:
        """How many rounds there are."""
        rounds = self.tables["run"]["rounds"]
        return rounds if isinstance(rounds, int) else 0

    def lines(self) -> list[str]:
        """Return it in words."""
        t, training = self.tables, self.tables["training"]
        batch = f"batches of {training['batch_size']}" if training["batch_size"] else "all samples in one step"
        here = self.samples - held_count(self.samples, self.holdout)
        return [
            f"run      {self.title or self.run}: {self._algorithm()}, {t['run']['rounds']} rounds with "
            f"{self.clients} clients",
            f"model    {t['model']['name']}",
            f"training here, on your {here} samples: {training['epochs']} epochs per round, {batch}, "
            f"{self._optimizer()}",
            *self._apart(),
            f"privacy  {self._privacy()}",
            f"leaves   {self._leaves()}",
            "stays    your samples, and the run's logs in your folder; no code is sent to you",
        ]

    def _apart(self) -> list[str]:
        """Say what becomes of samples that are not trained on."""
        count, (every, _) = held_count(self.samples, self.holdout), self._evaluated
        if not count:
            return []
        if self.tables["privacy"]["mechanism"] != "none":
            raise UsageError("its privacy does not hide what is told of samples that are kept apart")
        when = {0: "the last round", 1: "every round"}.get(every, f"every {every} rounds and the last one")
        return [
            f"apart    {count} more of your samples ({100 * self.holdout:g} %) are never trained on: models are only "
            f"evaluated on them, after {when}"
        ]

    def _algorithm(self) -> str:
        said = self.tables["algorithm"]
        options = [f"{key} {value}" for key, value in said.items() if key != "name" and value is not None]
        return f"{said['name']} ({', '.join(options)})" if options else str(said["name"])

    def _optimizer(self) -> str:
        said = self.tables["training"]
        words = [f"{said['optimizer']} with learning rate {said['lr']:g}"]
        words += [f"{key.replace('_', ' ')} {said[key]:g}" for key in ("momentum", "weight_decay") if said[key]]
        words += [f"{said['schedule']} schedule"] if said["schedule"] != "constant" else []
        return ", ".join(words)

    def _privacy(self) -> str:
        said = self.tables["privacy"]
        kind = said["mechanism"]
        if kind == "none" and self.least:
            return "no noise: the sum of updates can tell something of the samples that they were made from"
        if kind == "none":
            return "none: an update can tell something of the samples that it was made from"
        hidden = "each of your samples" if kind == EXAMPLES else "you as a whole"
        how = f"epsilon {said['target_epsilon']:g}" if said["target_epsilon"] else f"noise {said['noise']}"
        own = kind in (LOCAL, EXAMPLES, *SHARES)
        seen = f"the sum of {self.least} updates or more" if self.least else "your update"
        who = "here, before anything is sent" if own else f"on the server, which sees {seen}"
        void = "; void, since the noise can be repeated (noise_seed)" if said["noise_seed"] is not None else ""
        return f"{kind}: hides {hidden} ({how}, delta {said['delta']:g}); noise is added {who}{void}"

    def _leaves(self) -> str:
        up = self.tables["compression"]["up"]
        packed = "" if up == "none" else f", packed as {up}"
        hidden = self.tables["privacy"]["mechanism"] in (LOCAL, EXAMPLES, *SHARES)
        beside = "" if hidden else ", the mean loss and accuracy of training"
        have = "how many samples you have"
        have += ", and how many of those kept apart a model gets right" if self.holdout else ""
        if self.least:
            clear = f"how many steps you took{beside}; and {have}"
            return (
                "after every round your update of the model's weights, under masks: the server sees only the sum of the "
                f"updates of {self.least} clients or more. In the clear: {clear}"
            )
        return f"after every round your update of the model's weights{packed}{beside}; and {have}"


def _read(said: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return what a table says under these keys; under all that it has where none are named."""
    if len(said) > MOST:
        raise ValueError("it says more than can be read")
    return {str(_plain(key)): _plain(said[key]) for key in keys or said}


def _plain(value: Any) -> Any:
    """Return a value that can be shown on one line.

    Raises:
        ValueError: It is a text that would draw on the screen, or no plain value.
    """
    drawn = isinstance(value, str) and (len(value) > MOST or "\n" in value or shown(value) != value)
    huge = isinstance(value, int | float) and not abs(value) < MOST_NUMBER
    if drawn or huge or not isinstance(value, str | int | float | bool | None):
        raise ValueError("it says what cannot be shown on one line")
    return value


def _layers(config: Mapping[str, Any]) -> str:
    """Return the layers of a Keras configuration but for the scaling of the inputs, which has the data's own numbers."""
    return json.dumps(
        [one for one in config["config"]["layers"] if one["class_name"] != "Normalization"], sort_keys=True
    )
