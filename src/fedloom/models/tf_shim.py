"""``import tensorflow as tf`` without TensorFlow: what uses only ``tf.keras`` runs on Keras 3 and its torch backend.

While ``tensorflow_as_keras`` is active, ``tensorflow`` and ``tensorflow.keras...`` are stand-ins whose names resolve
to Keras. Installed or not, the real TensorFlow is not used: fedloom's models are PyTorch modules, and a model made by
another Keras could not be taken over. Of TensorFlow itself only what model files commonly touch is there: activations
(``tf.nn.relu``), dtype names, ``tf.random.set_seed``; everything else is refused by name when it is touched.

Names that Keras 3 moved or dropped and that are harmless in a model file are translated: ``layers.experimental``
(``.preprocessing``), ``utils.np_utils``, ``optimizers.legacy`` and ``optimizers.experimental``, the optimisers'
``lr=`` and ``decay=``. What only the Keras 3 edition for TensorFlow has (``layers.ThresholdedReLU``,
``preprocessing.image.ImageDataGenerator``) is taken from there.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedloom.errors import ModelError
from fedloom.models.keras_backend import import_keras


def _set_seed(seed: int) -> None:
    import_keras().utils.set_random_seed(seed)


_ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "sigmoid", "tanh"),
    *("softmax", "log_softmax", "softplus", "softsign"),
)
_DTYPES = ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool", "string")
_OWN: dict[str, Any] = {
    **{f"tensorflow.{name}": name for name in _DTYPES},
    "tensorflow.__version__": "2.16.0+fedloom",
    "tensorflow.executing_eagerly": lambda: True,
    "tensorflow.get_logger": lambda: logging.getLogger("tensorflow"),
    "tensorflow.config.list_physical_devices": lambda device_type=None: [],  # noqa: ARG005
    "tensorflow.config.experimental.list_physical_devices": lambda device_type=None: [],  # noqa: ARG005
    "tensorflow.random.set_seed": _set_seed,
}
_MODULES = ("tensorflow", "tensorflow.nn", "tensorflow.random", "tensorflow.config", "tensorflow.config.experimental")
_MOVED = {
    "layers.experimental.preprocessing": "layers",
    "layers.experimental": "layers",
    "utils.np_utils": "utils",
    "optimizers.legacy": "optimizers",
    "optimizers.experimental": "optimizers",
}
_LAZY_IN_KERAS = ("tensorflow", "gfile")


class NotOffered(ModelError, AttributeError):  # noqa: N818 - an AttributeError too, so that hasattr() answers False
    """A name of TensorFlow that the stand-in does not have."""


@contextmanager
def tensorflow_as_keras() -> Iterator[None]:
    """Let ``import tensorflow`` give Keras inside the block; ``sys.modules`` is put back at the end, also on error.

    Keras itself is imported, on its torch backend, only when the code inside asks for it. Functions that import
    ``tensorflow`` when they are called work inside the block only. Not safe with several threads importing at once.

    Example:
        >>> with tensorflow_as_keras():
        ...     import tensorflow as tf
        ...     tf.float32
        'float32'
    """
    outer = {name: module for name, module in sys.modules.items() if _is_tensorflow(name)}
    for name in outer:
        del sys.modules[name]
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    finder.hide()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Do not pass an `input_shape`")
            warnings.filterwarnings("ignore", message=r"Argument `\w+` is (deprecated|no longer supported)")
            yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_tensorflow(name)]:
            del sys.modules[name]
        sys.modules.update(outer)
        finder.show()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-ins, keeps Keras on torch, and keeps Keras from taking the stand-in for TensorFlow."""

    def __init__(self) -> None:
        self.hidden: list[tuple[Any, Any, Any]] = []

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the import system's signature
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        self.hide()
        if name == "keras":
            os.environ["KERAS_BACKEND"] = "torch"
        if not _is_tensorflow(name):
            return None
        if name not in _MODULES and not _sources(name):
            raise ModuleNotFoundError(_refusal(name), name=name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: names resolve when they are asked for."""

    def hide(self) -> None:
        """Make Keras think that TensorFlow is absent, as soon as Keras is there."""
        utilities = sys.modules.get("keras.src.utils.module_utils")
        if self.hidden or not all(hasattr(utilities, name) for name in _LAZY_IN_KERAS):
            return
        for name in _LAZY_IN_KERAS:
            lazy = getattr(utilities, name)
            self.hidden.append((lazy, lazy.module, lazy._available))
            lazy._available = False

    def show(self) -> None:
        """Undo ``hide``."""
        for lazy, module, available in self.hidden:
            lazy.module, lazy._available = module, available


class _StandIn(types.ModuleType):
    """``tensorflow`` or one of its submodules."""

    def __getattr__(self, name: str) -> Any:
        full = f"{self.__name__}.{name}"
        if name == "__all__":
            return dir(self)
        if full in _OWN:
            return _OWN[full]
        if name.startswith("__"):
            raise AttributeError(full)
        if full in _MODULES or full.removeprefix("tensorflow.keras.") in _MOVED or full == "tensorflow.keras":
            return importlib.import_module(full)
        for source in _sources(self.__name__):
            if hasattr(source, name) and (self.__name__ != "tensorflow.nn" or name in _ACTIVATIONS):
                value = getattr(source, name)
                return importlib.import_module(full) if isinstance(value, types.ModuleType) else _translated(value)
        raise NotOffered(_refusal(full), name=full)

    def __dir__(self) -> list[str]:
        return sorted({name for source in _sources(self.__name__) for name in dir(source) if name[0] != "_"})


def _is_tensorflow(module: str) -> bool:
    return module.split(".", 1)[0] == "tensorflow"


def _sources(module: str) -> list[types.ModuleType]:
    """The modules of Keras in which the names of a stand-in are looked up, the first one first."""
    if module == "tensorflow.nn":
        return [import_keras().activations]
    if module != "tensorflow.keras" and not module.startswith("tensorflow.keras."):
        return []
    import_keras()
    below = module.removeprefix("tensorflow.keras").removeprefix(".")
    below = _MOVED.get(below, below)
    found = []
    for root in ("keras", "keras._tf_keras.keras"):
        try:
            found.append(importlib.import_module(f"{root}.{below}".rstrip(".")))
        except ModuleNotFoundError:
            continue
    return found


def _translated(value: Any) -> Any:
    """Let the optimisers take Keras 2's arguments; everything else is as it is."""
    optimizer = import_keras().optimizers.Optimizer
    if not isinstance(value, type) or not issubclass(value, optimizer) or value is optimizer:
        return value

    def build(*args: Any, lr: float | None = None, decay: float | None = None, **options: Any) -> Any:  # noqa: ARG001
        return value(*args, **(options if lr is None else {"learning_rate": lr, **options}))

    return functools.wraps(value, updated=())(build)


def _refusal(name: str) -> str:
    return (
        f"{name.replace('tensorflow', 'tf', 1)} is not available: fedloom runs files that use tf.keras on Keras 3, "
        "without TensorFlow; give the model in tf.keras alone"
    )
