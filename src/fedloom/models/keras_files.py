"""Keras model files as plain data: a configuration and arrays by layer, whatever Keras version wrote them.

``read`` and ``write`` do without Keras: a ``.keras`` archive is a zip of JSON and HDF5, a ``.h5`` file is HDF5 with
JSON in it. Nothing is unpickled and no code is run.

What is written is a file of Keras 3 (3.12 and newer load it), also when the one that was read came from Keras 2, whose
files Keras 3 refuses in most cases (see ``keras_dialect.modern``); TensorFlow 2.15 and older do not load it. The
optimiser's state and the settings of ``compile`` are left out: compile a written model before training or evaluating
it with Keras.
"""

from __future__ import annotations

import io
import json
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.errors import ModelError, unknown
from fedloom.files import write_bytes
from fedloom.models import keras_archive, keras_h5, keras_hdf5
from fedloom.models.keras_backend import import_keras
from fedloom.models.keras_dialect import Config, Entry, check_all, entries, holders, leaves, modern

DIALECT = "3.6.0"
_SUFFIXES: dict[str, str] = {".keras": "keras", ".h5": "h5", ".hdf5": "h5"}
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_JSON_LIMIT = 1 << 28
_ZIP_FLOOR, _ZIP_EXPANSION = 1 << 30, 100


@dataclass(frozen=True)
class KerasFile:
    """What a Keras model file holds.

    Attributes:
        config: The configuration (``class_name``, ``config`` and so on), as read in the dialect of Keras 3 whatever
            the file's own is; without the settings of ``compile``.
        weights: For each layer that has weights, by its path (``"name"``, inside nested models ``"outer/inner"``),
            the arrays in the order of Keras' ``layer.weights``: kernel, bias; gamma, beta, moving mean, moving
            variance; depthwise kernel, pointwise kernel, bias; mean, variance, count (Normalization: all three are
            in every file; a written one gets the count 0 where it is left out).
        keras_version: The version that wrote the file, "" when it does not say.
        format: ``"keras"`` for the zip archive, ``"h5"`` for the older HDF5 file.
    """

    config: Config
    weights: dict[str, list[np.ndarray]] = field(repr=False)
    keras_version: str = DIALECT
    format: str = "keras"


def read(path: str | Path) -> KerasFile:
    """Read a Keras model file, recognised by its first bytes.

    Raises:
        ModelError: The file is missing, truncated, damaged, no Keras model, or holds no Sequential or Functional one.
    """
    path = Path(path)
    with _naming(path):
        data = _bytes(path)
        if data.startswith(b"PK"):
            return _read_archive(data)
        if data.startswith(b"\x89HDF\r\n\x1a\n"):
            return _read_h5(data)
        if len(data) < 8:
            raise ModelError(f"it has only {len(data)} bytes: copy it again")
        raise ModelError(
            "not a Keras model file, neither a zip archive nor HDF5: save it with model.save('NAME.keras')"
        )


def write(path: str | Path, file: KerasFile) -> None:
    """Write a model file that Keras 3 loads, as a ``.keras`` archive or, by the suffix, as ``.h5``.

    The configuration is translated into the dialect of Keras 3. Equal models give equal bytes.

    Raises:
        UsageError: The suffix is none of ``.keras``, ``.h5``, ``.hdf5``.
        ModelError: Configuration and weights do not fit each other.
        StorageError: The disk is full, read-only or the place is not writable.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise unknown("format of a Keras file", path.suffix or path.name, _SUFFIXES)
    with _naming(path):
        write_bytes(path, _encode(file, _SUFFIXES[path.suffix]))


def from_keras_model(model: Any) -> KerasFile:
    """Take configuration and weights out of a built ``keras.Model``.

    Raises:
        ModelError: The model has no weights yet, or a layer keeps its weights in layers of its own.
    """
    keras = import_keras()
    if not model.built:
        raise ModelError(f"the Keras model '{model.name}' is not built yet: call it once, or give it an Input")
    config = keras.saving.serialize_keras_object(model)
    entries(config)
    weights = dict(_weights(keras, model, ""))
    return KerasFile(modern(json.loads(json.dumps(config))), weights, keras.__version__)


def to_keras_model(file: KerasFile) -> Any:
    """Build the ``keras.Model`` of a file, not compiled; Keras runs in its safe mode, so that no code in it is run.

    Raises:
        ModelError: Keras cannot build it; its reason is given.
    """
    keras = import_keras()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        write(path, file)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ImportError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"Keras {keras.__version__} cannot build the model: {reason[:300]}") from error


def _weights(keras: Any, model: Any, prefix: str) -> Iterator[tuple[str, list[np.ndarray]]]:
    for layer in model.layers:
        path = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from _weights(keras, layer, f"{path}/")
        elif len(list(layer._flatten_layers())) > 1 and layer.weights and not _is_recurrent(layer):
            kind = type(layer).__name__
            raise ModelError(f"layer '{path}' ({kind}) keeps its weights in layers of its own", array=path)
        elif layer.weights:
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # Keras under NumPy 2.4
                arrays = [np.array(keras.ops.convert_to_numpy(weight.value)) for weight in layer.weights]
            yield path, arrays


def _is_recurrent(layer: Any) -> bool:
    return holders(Entry(layer.name, type(layer).__name__, layer.get_config())) != ("",)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of a ModelError."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error}", **{**error.context, "file": str(path)}) from error.__cause__


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        if (path / "saved_model.pb").exists():
            raise ModelError("a TensorFlow SavedModel folder: load it with TensorFlow and model.save('NAME.keras')")
        raise ModelError("a folder, where a model file is expected")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError("no such file") from error
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})") from error


def _read_archive(data: bytes) -> KerasFile:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ModelError("the archive is truncated or damaged: copy the file again") from error
    with archive:
        names = archive.namelist()
        if _CONFIG not in names:
            pickled = any(name.endswith("data.pkl") for name in names)
            hint = "a PyTorch file: give it the suffix .pt" if pickled else "no Keras model"
            raise ModelError(f"a zip archive without {_CONFIG}, {hint}")
        if _WEIGHTS not in names:
            raise ModelError(f"the archive has no {_WEIGHTS}: save it again with model.save('NAME.keras')")
        config = _json(_member(archive, _CONFIG, _JSON_LIMIT), _CONFIG)
        metadata = _json(_member(archive, _METADATA, _JSON_LIMIT), _METADATA) if _METADATA in names else {}
        weights = _member(archive, _WEIGHTS, max(_ZIP_FLOOR, _ZIP_EXPANSION * len(data)))
    layers = entries(config)
    with keras_hdf5.reading(weights) as file:
        arrays = keras_hdf5.load(keras_archive.find(file, layers), len(weights))
    return KerasFile(modern(config), arrays, str(metadata.get("keras_version", "")), "keras")


def _read_h5(data: bytes) -> KerasFile:
    with keras_hdf5.reading(data) as file:
        config = _json(keras_h5.config_text(file), "model_config")
        arrays = keras_hdf5.load(keras_h5.find(file, entries(config)), len(data))
        return KerasFile(modern(config), arrays, keras_h5.version(file), "h5")


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > limit:
        raise ModelError(f"{name} claims to have {size:,} bytes: damaged, or made to harm")
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{name} in the archive is truncated or damaged ({error})") from error


def _json(text: str | bytes, name: str) -> Config:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds no JSON object but a {type(value).__name__}")
    return value


def _encode(file: KerasFile, form: str) -> bytes:
    entries(file.config)
    config = modern(file.config)
    layers = entries(config)
    weights = _with_count(layers, file.weights)
    check_all(layers, weights)
    version = file.keras_version if file.keras_version.startswith("3.") else DIALECT
    if form == "h5":
        return keras_h5.write(config, layers, weights, version)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        members = (
            (_METADATA, json.dumps({"keras_version": version}).encode()),
            (_CONFIG, json.dumps(config).encode()),
            (_WEIGHTS, keras_archive.write(layers, weights)),
        )
        for name, data in members:
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            archive.writestr(info, data)
    return buffer.getvalue()


def _with_count(layers: Sequence[Entry], weights: Mapping[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Complete the statistics of Normalization layers: Keras keeps a count, which plays no part afterwards."""
    completed = dict(weights)
    for leaf in leaves(layers):
        if leaf.kind == "Normalization" and len(completed.get(leaf.path, ())) == 2:
            completed[leaf.path] = [*completed[leaf.path], np.zeros((), np.int32)]
    return completed
