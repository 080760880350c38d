"""Run a user's model code with a seed of its own, and leave the process's chance and Keras' settings as they were."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed every global generator inside the block and restore all of them at its end.

    These are Python's, NumPy's, PyTorch's (CPU) and Keras' own. PyTorch's default dtype, Keras' float type, image
    data format, dtype policy and layer-name counters are restored too: model files like to change them.

    Args:
        seed: 0 <= seed < 2^63.

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated(1):
        ...     a = torch.randn(2)
        >>> with isolated(1):
        ...     b = torch.randn(2)
        >>> torch.equal(a, b), torch.equal(before, torch.get_rng_state())
        (True, True)
    """
    python, numpy, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]), _keras_state():
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is what the user's code draws from
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_default_dtype(dtype)


@contextmanager
def _keras_state() -> Iterator[None]:
    """Give Keras a fresh global state; it has no public way to read and restore the seed and the name counters."""
    name = "keras.src.backend.common.global_state"
    states = sys.modules.get(name)
    saved = getattr(states, "GLOBAL_STATE_TRACKER", None)
    settings = _settings()
    if states is not None:
        states.GLOBAL_STATE_TRACKER = threading.local()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        states = sys.modules.get(name)
        if states is not None:
            states.GLOBAL_STATE_TRACKER = saved or threading.local()  # type: ignore[attr-defined]
            config = sys.modules["keras"].config
            config.set_floatx(settings[0])
            config.set_image_data_format(settings[1])


def _settings() -> tuple[str, str]:
    keras = sys.modules.get("keras")
    if keras is None:
        return "float32", "channels_last"
    return str(keras.config.floatx()), str(keras.config.image_data_format())
