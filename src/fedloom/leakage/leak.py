"""Leak: every attack of the gallery on one model and one data set, in a folder with a page and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fedloom
from fedloom import files
from fedloom.data import load_data
from fedloom.data.dataset import Dataset
from fedloom.errors import DataError, MissingDependency, StorageError, UsageError
from fedloom.leakage.gallery import Attempt, Scene, divisions, searches, work
from fedloom.leakage.inversion import Effort
from fedloom.leakage.lessons import DELTA, Learned, epochs, lessons
from fedloom.leakage.protections import Protection
from fedloom.models import io
from fedloom.offline.progress import bar
from fedloom.privacy.events import Local, Release
from fedloom.privacy.planning import plan

NUMBERS = "leak.json"
DIVIDED = "2nn"
"""The model for the attack by division, where the chosen one does not begin with a fully connected layer."""


@dataclass(frozen=True)
class Leak:
    """What the attacks found.

    Attributes:
        folder: Where ``report.html`` and ``leak.json`` lie.
        data: The name of the data.
        model: The name of the model.
        seed: Of everything.
        searches: Gradient inversion, one attempt per protection.
        divisions: The attack by division, likewise; empty where no model could be made for it.
        divided: The model of these.
        epsilons: What the noise of a protection guarantees in one round, by its name, at a delta of 1e-5.
        lessons: Membership inference, model by model.
        left_out: Why a model of the lessons could not be trained.
    """

    folder: Path
    data: str
    model: str
    seed: int
    searches: Sequence[Attempt]
    divisions: Sequence[Attempt]
    divided: str
    epsilons: dict[str, float]
    lessons: Sequence[Learned]
    left_out: Sequence[str]

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def lines(self) -> list[str]:
        """Say what was found, for a terminal."""
        said = [
            f"{attempt.protection.title}: {attempt.psnr.mean():.1f} dB, a guess has {attempt.guess.mean():.1f} dB: "
            f"{WORDS[attempt.verdict]}"
            for attempt in self.searches
        ]
        said += [
            f"{one.lesson.title}: members are told from others with an AUC of {one.calibrated.auc.value:.2f}, "
            f"test accuracy {one.loss.accuracy:.1%}"
            for one in self.lessons
        ]
        return [*said, f"report: {self.report}"]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        return {
            "fedloom": fedloom.__version__,
            "data": self.data,
            "model": self.model,
            "seed": self.seed,
            "inversion": [attempt.to_json() for attempt in self.searches],
            "division": {"model": self.divided, "attempts": [attempt.to_json() for attempt in self.divisions]},
            "epsilon_of_one_round": self.epsilons,
            "delta": DELTA,
            "membership": [one.to_json() for one in self.lessons],
            "left_out": list(self.left_out),
        }


WORDS = {"recovered": "the picture is seen", "traces": "traces are seen", "nothing": "no better than a guess"}


def leak(
    data: str | Path | Dataset | None = None,
    *,
    model: str = "lenet",
    images: int = 1,
    out: str | Path = "fedloom-leak",
    seed: int = 0,
    data_dir: str | Path | None = None,
    effort: Effort | None = None,
    progress: bool = True,
) -> Leak:
    """Attack what a client sends and what a model remembers, without and with protection, and write a page about it.

    Args:
        data: Pictures: a name, a path or a ``Dataset``; ``mnist`` where it is on this machine, else ``digits``.
        model: A zoo name, ``file.py:function``, ``module:name`` or a Keras file.
        images: How many pictures the victim's update is computed from, 1 to 8.
        out: The folder to write; one that an earlier call wrote is replaced.
        seed: Of everything, of the noise too, so that the page can be made again.
        data_dir: Where the data sets lie.
        effort: How hard gradient inversion tries.
        progress: Show a progress bar.

    Raises:
        UsageError: Data that are no pictures, or too many images.
        DataError: Data that are missing, damaged, or too few.
        StorageError: The folder holds something else, or cannot be written.
    """
    folder, effort = Path(out), effort or Effort()
    _check_place(folder)
    samples = _pictures(data, data_dir)
    made = io.create(model, samples, seed)
    made.require_runnable("attacking it")
    scene = Scene.of(made, samples, images, seed)
    with bar("attacking", work(effort, images) + _LESSON * epochs(), progress) as advance:
        advance(0, "reconstructing pictures")
        searched = list(searches(scene, effort, advance))
        name, divided = _divided(scene, model, samples, images)
        advance(0, "membership inference")
        learned = list(lessons(made, scene.start, samples, seed, lambda: advance(_LESSON)))
    found = Leak(
        folder,
        samples.name,
        model,
        seed,
        searched,
        divided,
        name,
        _epsilons([attempt.protection for attempt in searched]),
        [one for one in learned if isinstance(one, Learned)],
        [one for one in learned if isinstance(one, str)],
    )
    write(found)
    return found


_LESSON = 20
"""What an epoch of a lesson counts on the progress bar, in steps of a search for one picture."""


def write(found: Leak) -> None:
    """Write ``leak.json`` and ``report.html``, each atomically.

    Raises:
        StorageError: The folder cannot be written.
    """
    from fedloom.leakage.page import render

    text = render(found)
    files.write_json(found.folder / NUMBERS, found.to_json())
    files.write_text(found.report, text)


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file: choose another --out", file=str(folder))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NUMBERS).is_file():
        raise StorageError(
            f"{folder} exists and was not made by 'fedloom leak': choose another --out", file=str(folder)
        )


def _pictures(data: str | Path | Dataset | None, data_dir: str | Path | None) -> Dataset:
    """Load the samples, training and test together.

    Raises:
        UsageError: They are no pictures.
    """
    if data is None:
        try:
            samples = load_data("mnist", "all", data_dir, download=False)
        except DataError:
            samples = load_data("digits", "all")
    else:
        samples = load_data(data, "all", data_dir)
    if (
        samples.high is None
        or len(samples.input_shape) not in (2, 3)
        or samples.input_shape[2:] not in ((), (1,), (3,))
    ):
        raise UsageError(
            f"{samples.name}: samples of shape {samples.input_shape} are no pictures, which is what this shows: take digits, "
            "mnist, fashion-mnist or a folder of images"
        )
    return samples


def _divided(scene: Scene, model: str, samples: Dataset, images: int) -> tuple[str, list[Attempt]]:
    """Attack by division, with a model that begins with a fully connected layer."""
    found = list(divisions(scene))
    if found:
        return model, found
    other = Scene.of(io.create(DIVIDED, samples, scene.seed), samples, images, scene.seed)
    return DIVIDED, list(divisions(other))


def _epsilons(protections: Sequence[Protection]) -> dict[str, float]:
    """Return what the noise of one round guarantees; nothing where dp-accounting is not installed."""
    found = {}
    for one in protections:
        event = Local(one.noise) if one.clients == 1 else Release(one.noise)
        if one.noise:
            try:
                found[one.name] = plan(event, 1, DELTA)
            except MissingDependency:
                return {}
    return found
