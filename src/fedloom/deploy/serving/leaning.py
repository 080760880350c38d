"""Leaning: what a server has of a model, but seldom looks at, lies on its disk instead of in its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedloom import checkpoint, files
from fedloom.engines.recipe import Recipe
from fedloom.simulation.setup import Setup

START = "start.safetensors"


def lean(setup: Setup, folder: Path) -> None:
    """Let the start weights lie in a file of the run's folder, and the model's arrays be views of what is evaluated.

    Small models, and those on a GPU, stay where they are. FedDF trains the model, which has to be its own then.

    Raises:
        StorageError: The disk is full.
    """
    start = setup.start
    if start.device.type != "cpu" or start.nbytes < checkpoint.RESTS:
        return
    files.write_tensors(folder / START, {"start": start}, {})
    there, _ = files.read_tensors(folder / START)
    start.data = there["start"]
    if setup.unlabelled is None:
        setup.model.borrows = True
        setup.model.load(start)


def leant(recipe: Recipe, setup: Setup) -> Recipe:
    """Return a recipe with the run's start weights in place of a copy of them."""
    return replace(recipe, model=replace(recipe.model, vector=setup.start.cpu()))
