"""Models made by the user's own code: ``file.py:function``, ``file.py:Class``, ``module:attr``, ``file.py:a.b``.

This is the only place where fedloom runs foreign code, and only when the caller names it. What goes wrong there is
told in one line with file and line number.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedloom.errors import FedloomError, ModelError, UsageError, unknown
from fedloom.models.arguments import fill
from fedloom.models.isolation import isolated
from fedloom.models.tf_shim import NotOffered, tensorflow_as_keras


@dataclass(frozen=True)
class Factory:
    """What a reference names.

    Attributes:
        reference: The reference, for messages.
        target: A function, a class, or a model that exists already.
        owner: The class to make an instance of first, when the target is one of its methods.
        folder: The folder that the code may import from; None when it needs none.
        base: What a relative file in the reference starts from.
    """

    reference: str
    target: Any
    owner: type | None = None
    folder: Path | None = None
    base: Path | None = None


def make(reference: str, input_shape: tuple[int, ...], n_classes: int, seed: int = 0, base: Path | None = None) -> Any:
    """Load a factory and call it: see ``load_factory`` and ``call_factory``."""
    return call_factory(load_factory(reference, base), input_shape, n_classes, seed)


def load_factory(reference: str, base: Path | None = None) -> Factory:
    """Find what a reference names; the user's file (or module) is run for that.

    Args:
        reference: ``file.py:name`` or ``module:name``; the name may be dotted (``TheModel.py:build.build_it``).
        base: The folder that a relative file starts from; the current one when None.

    Returns:
        The factory.

    Raises:
        UsageError: The reference has no ``:name``, or the name does not exist.
        ModelError: The file is missing, or running it failed.

    Example:
        >>> load_factory("torch.nn:Flatten").target.__name__
        'Flatten'
    """
    with isolated(0):
        return _load(reference, base or Path())


def call_factory(
    factory: Factory | Callable[..., Any], input_shape: tuple[int, ...], n_classes: int, seed: int = 0
) -> Any:
    """Make a model with the user's code; the same seed gives the same weights, and no global generator moves.

    Args:
        factory: What ``load_factory`` found, or a function or class.
        input_shape: The shape of one sample.
        n_classes: The number of classes.
        seed: Of the initial weights.

    Returns:
        A ``keras.Model`` (``is_keras_model`` tells), else a ``torch.nn.Module`` on the CPU in float32.

    Raises:
        ModelError: The code failed, needs an argument that is not known, or gave something else.
    """
    if not isinstance(factory, Factory):
        factory = Factory(getattr(factory, "__qualname__", type(factory).__name__), factory)
    with isolated(seed), _foreign(factory.reference, factory.folder):
        made = _call(factory, tuple(int(n) for n in input_shape), n_classes)
        if is_keras_model(made):
            return _built(made, input_shape)
    if not isinstance(made, nn.Module) or _is_keras(made, "Layer"):
        hint = _methods(made, factory.reference)
        raise ModelError(
            f"{factory.reference} gave {_kind(made)} where a torch.nn.Module or a keras.Model is expected{hint}"
        )
    return made.to("cpu", torch.float32)


def is_keras_model(value: object) -> bool:
    """Tell a Keras model; on Keras' torch backend it is a ``torch.nn.Module`` too. Keras is not imported for it."""
    return _is_keras(value, "Model")


def _is_keras(value: object, name: str) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(value, getattr(keras, name))


def _is_model(value: object) -> bool:
    return isinstance(value, nn.Module) or is_keras_model(value)


def _call(factory: Factory, input_shape: tuple[int, ...], n_classes: int) -> Any:
    def call(function: Callable[..., Any]) -> Any:
        positional, named = fill(function, input_shape, n_classes, factory.reference)
        return function(*positional, **named)

    if _is_model(factory.target):
        if factory.base is None:
            raise ModelError(f"{factory.reference} is a model; give the function or class that makes it")
        # A model that the file made when it was loaded: loaded again, so that this call's seed makes its weights.
        return _load(factory.reference, factory.base).target
    if factory.owner is not None:
        return call(getattr(call(factory.owner), factory.target.__name__))
    return call(factory.target)


def _built(model: Any, input_shape: tuple[int, ...]) -> Any:
    if sys.modules["keras"].config.backend() != "torch":
        raise ModelError(
            "Keras was loaded with another backend than torch: set KERAS_BACKEND=torch before importing it"
        )
    if not model.built:
        first = getattr(model, "layers", None)
        rank = getattr(getattr(first[0], "input_spec", None), "min_ndim", None) if first else None
        shape = (*input_shape, 1) if rank == len(input_shape) + 2 else input_shape
        model.build((None, *shape))
    return model


def _load(reference: str, base: Path) -> Factory:
    """Run the file or import the module, then walk down the dotted name."""
    place, names = _split(reference)
    path = _path(place, base)
    folder = path.parent if path else base.resolve()
    importlib.invalidate_caches()
    with _foreign(reference, folder):
        module = _run(path) if path else _import(place, reference)
        where = path.name if path else place
        target, owner = _walk(module, names, where)
    return Factory(reference, target, owner, folder, base)


def _split(reference: str) -> tuple[str, list[str]]:
    place, colon, name = reference.rpartition(":")
    names = name.split(".")
    if not colon or not place or not all(part.isidentifier() for part in names) or names[-1] == "py":
        raise UsageError(f"'{reference}' does not name a function: write file.py:function or module:Class")
    return place, names


def _path(place: str, base: Path) -> Path | None:
    """The file that is meant; None when ``place`` is the name of a module."""
    if not place.endswith(".py") and "/" not in place and "\\" not in place:
        return None
    for spelling in (place, place.replace("\\", "/")):
        path = base / Path(spelling).expanduser()
        if path.is_file():
            return path.resolve()
    raise ModelError(f"{base / place}: no such file", file=str(base / place))


def _run(path: Path) -> types.ModuleType:
    # Compiled here: the import system's cached bytecode would miss an edit within the same second.
    name = f"fedloom_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})", file=str(path)) from error
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(name: str, reference: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise UsageError(f"'{reference}': there is no module '{error.name}' here") from error
        raise


def _walk(module: types.ModuleType, names: list[str], where: str) -> tuple[Any, type | None]:
    target: Any = module
    owner: type | None = None
    for name in names:
        if not hasattr(target, name):
            raise unknown(f"name in {where}", name, _names(target))
        raw = inspect.getattr_static(target, name, None)
        owner = target if isinstance(target, type) and _needs_instance(raw) else None
        target = getattr(target, name)
    if not callable(target) and not _is_model(target):
        raise UsageError(f"{where}:{'.'.join(names)} is {_kind(target)}, not a function or class that makes a model")
    return target, owner


def _needs_instance(raw: object) -> bool:
    if not inspect.isfunction(raw):
        return False
    first = next(iter(inspect.signature(raw).parameters), "")
    return first == "self"


def _names(target: object) -> list[str]:
    own = getattr(target, "__name__", "")
    found = []
    for name, value in vars(target).items() if hasattr(target, "__dict__") else ():
        local = not isinstance(target, types.ModuleType) or getattr(value, "__module__", own) == own
        if name[0] != "_" and local and not isinstance(value, types.ModuleType):
            found.append(name)
    return found or ["nothing"]


def _kind(value: object) -> str:
    return (
        "None"
        if value is None
        else f"a {type(value).__module__}.{type(value).__qualname__}".replace("a builtins.", "a ")
    )


def _methods(value: object, reference: str) -> str:
    if type(value).__module__ == "builtins" or isinstance(value, nn.Module):
        return ""
    names = [n for n, v in vars(type(value)).items() if n[0] != "_" and callable(getattr(type(value), n, v))]
    return f": did you mean {reference}.{names[0]}?" if names else ""


@contextmanager
def _foreign(reference: str, folder: Path | None) -> Iterator[None]:
    """Run foreign code: ``tensorflow`` is Keras, ``folder`` can be imported from, and errors are told in one line."""
    path, before = list(sys.path), set(sys.modules)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        with tensorflow_as_keras():
            yield
    except (Exception, SystemExit) as error:
        if isinstance(error, FedloomError) and not isinstance(error, NotOffered):
            raise
        raise ModelError(_explain(error, reference, folder), reference=reference) from error
    finally:
        sys.path[:] = path
        _forget(before, folder)


def _forget(before: set[str], folder: Path | None) -> None:
    """Drop the helper modules that came from the folder: another folder may have others of the same names."""
    if folder is None:
        return
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        place = folder.joinpath(*name.split("."))
        if file and Path(file) in (place.with_name(place.name + ".py"), place / "__init__.py"):
            del sys.modules[name]


def _inside(file: str, folder: Path) -> bool:
    path = os.path.realpath(file)
    return path.startswith(str(folder) + os.sep) and f"{os.sep}site-packages{os.sep}" not in path


def _explain(error: BaseException, reference: str, folder: Path | None) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    where, frame = reference, error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        if folder is not None and _inside(code.co_filename, folder):
            inside = "" if code.co_name == "<module>" else f" in {code.co_name}"
            where = f"{code.co_filename}, line {frame.tb_lineno}{inside}"
        frame = frame.tb_next
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, NotOffered) or (isinstance(error, ImportError) and "tensorflow" in (error.name or "")):
        hint = (
            ""
            if "tf." in reason
            else " (fedloom runs such files on Keras 3, without TensorFlow: only tf.keras is there)"
        )
        return f"{where}: {reason}{hint}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"{where}: it imports '{error.name}', which is not installed here: pip install {error.name.split('.')[0]}"
        )
    return f"{where}: {type(error).__name__}" + (f": {reason}" if reason else "")
