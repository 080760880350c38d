"""Execution plans: how a cohort is computed. All of them train on the same batches, to the same results up to rounding.

``fedloom.training.planner`` chooses one. To add a plan, write its function and add a line to ``PLANS``.

All of them are written to work on a GPU through CUDA, too: every tensor follows the clients' samples, and what is about
processors (one thread, the C++ compiler) is asked of processors alone. None has been run on one: no GPU was at hand
while they were written, so nothing of their speed there is known, and no step is captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from fedloom.models.keras_slow import KerasModule
from fedloom.models.model import Model
from fedloom.training.cohort import Task, Trained, train_each, train_loop
from fedloom.training.local import LocalConfig, Trainer
from fedloom.training.plans.batched import groups, mixes, train_batched
from fedloom.training.plans.compiling import compiler
from fedloom.training.plans.functional import channels_first, train_compiled

WhyNot = Callable[[Model, LocalConfig, Sequence[Task]], str | None]
Run = Callable[[Model, Sequence[Task], LocalConfig, int], Iterator[Trained]]


@dataclass(frozen=True)
class Plan:
    """A way to compute a cohort.

    Attributes:
        name: Its name in a configuration.
        title: What it is, in a few words.
        why_not: Says why it cannot be used for a model, a configuration and a cohort; None when it can.
        run: Trains a cohort: see ``train_loop``, whose results it must reach.
        compiled: Whether it has to be compiled first, which takes tens of seconds.
        batched: Whether clients are computed together, in the groups of ``batched.groups``.
    """

    name: str
    title: str
    why_not: WhyNot
    run: Run
    compiled: bool = False
    batched: bool = False


def split(plan: Plan, model: Model, tasks: Sequence[Task], config: LocalConfig) -> list[list[int]]:
    """Divide a cohort into parts whose results do not depend on where, or after what, they are computed.

    Args:
        plan: The plan that will train them.
        model: The model.
        tasks: The whole cohort.
        config: What its clients do.

    Returns:
        The places of each part's tasks in ``tasks``. Run each part by itself:
        ``plan.run(model, [tasks[i] for i in part], config, seed)``.
    """
    return groups(model, tasks, config) if plan.batched else [[i] for i in range(len(tasks))]


def _always(_model: Model, _config: LocalConfig, _tasks: Sequence[Task]) -> str | None:
    return None


def _for_images(model: Model, _config: LocalConfig, _tasks: Sequence[Task]) -> str | None:
    if not any(len(shape) == 4 for shape in model.layout.shapes[: model.layout.n_trainable]):
        return "the model has no convolution"
    return None if channels_first(model) else "this model's images have their channels last in every plan"


def _functional(model: Model, _config: LocalConfig, _tasks: Sequence[Task]) -> str | None:
    if not model.layout.n_trainable:
        return "the model has nothing to train"
    return "the model runs through Keras itself" if isinstance(model.module, KerasModule) else None


def _compiled(model: Model, config: LocalConfig, tasks: Sequence[Task]) -> str | None:
    if tasks[0].shard.x.device.type == "cpu" and compiler() is None:
        return "there is no C++ compiler on this machine (install g++ or clang, or set CXX)"
    if config.batch_size == 0:
        return "with all samples in one step every size of client would be compiled anew: choose a batch size"
    return _functional(model, config, tasks)


def _groups_compiled(model: Model, config: LocalConfig, tasks: Sequence[Task]) -> str | None:
    why = _compiled(model, config, tasks)
    if why is None and mixes(model):
        return "BatchNorm needs groups of equal clients, and every size of group would be compiled anew"
    return why


_last = partial(train_each, make=partial(Trainer, channels_last=True))
_vmap = partial(train_batched, compiled=False)
_both = partial(train_batched, compiled=True)

PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        Plan("loop", "one client after another, step by step", _always, train_loop),
        Plan("channels-last", "the loop, with images' channels last in memory", _for_images, _last),
        Plan("compiled", "one client after another, compiled steps", _compiled, train_compiled, compiled=True),
        Plan("vmap", "many clients as one computation", _functional, _vmap, batched=True),
        Plan("compiled-vmap", "many clients as one compiled computation", _groups_compiled, _both, True, True),
    )
}
