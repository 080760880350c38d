"""Whole-model ``.h5`` files: the configuration in an attribute, the weights in one group per layer.

The arrays of one layer stand in the order of its attribute ``weight_names``. For a nested model that is all
trainable variables first and all others after them, so the order alone does not say which layer an array belongs to
(``legacy_h5_format`` of Keras 3, ``hdf5_format`` of Keras 2).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedloom.errors import ModelError
from fedloom.models import keras_hdf5
from fedloom.models.keras_dialect import Config, Entry, check, leaves, trainable, variables


def config_text(file: Any) -> str:
    """Return the model's configuration, JSON.

    Raises:
        ModelError: The file holds weights only, or no Keras model.
    """
    value = file.attrs.get("model_config")
    if value is not None:
        return keras_hdf5.text(value)
    if "layer_names" in file.attrs or any(key.startswith(("layers", "_layer_checkpoint")) for key in file):
        raise ModelError(
            "it holds weights without the model (save_weights): load it where the model is built, "
            "and save the whole model there with model.save('NAME.keras')"
        )
    raise ModelError("an HDF5 file, but no Keras model (no model_config)")


def version(file: Any) -> str:
    """Return the Keras version that wrote the file, "" when it does not say."""
    group = keras_hdf5.child(file, "model_weights")
    holders = [holder for holder in (file, group) if holder is not None]
    return next((keras_hdf5.text(h.attrs["keras_version"]) for h in holders if "keras_version" in h.attrs), "")


def find(file: Any, layers: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return the data sets of every single layer, by the layer's path.

    Raises:
        ModelError: A layer's weights are missing, or cannot be told apart.
    """
    weights = keras_hdf5.child(file, "model_weights")
    if weights is None:
        raise ModelError("it holds a model without its weights (no group model_weights)")
    found: dict[str, list[Any]] = {}
    for entry in layers:
        group = keras_hdf5.child(weights, entry.path)
        rows = (
            [] if group is None else [(name, _dataset(group, name)) for name in keras_hdf5.texts(group, "weight_names")]
        )
        if entry.children is None:
            found[entry.path] = [dataset for _, dataset in rows]
        else:
            found.update(_by_name(entry, rows) or _by_order(entry, rows))
    for leaf in leaves(layers):
        check(leaf, len(found.get(leaf.path, ())))
    return found


def _dataset(group: Any, name: str) -> Any:
    import h5py

    dataset = keras_hdf5.child(group, name)
    if not isinstance(dataset, h5py.Dataset):
        raise ModelError(f"its weights are damaged: '{name}' of '{group.name}' is missing")
    return dataset


def _by_name(entry: Entry, rows: Sequence[tuple[str, Any]]) -> dict[str, list[Any]] | None:
    """Give each array of a nested model to the layer that its name ends with ("trunk/conv/kernel:0" to "conv")."""
    paths = [leaf.path for leaf in entry.leaves()]
    found: dict[str, list[Any]] = {path: [] for path in paths}
    for name, dataset in rows:
        scope = f"{entry.path}/{name.rpartition('/')[0]}"
        scores = sorted(((_overlap(path, scope), path) for path in paths), reverse=True)
        if not scores or scores[0][0] == 0 or (len(scores) > 1 and scores[1][0] == scores[0][0]):
            return None
        found[scores[0][1]].append(dataset)
    return found


def _overlap(path: str, scope: str) -> int:
    """Count the parts at the end of ``path`` that ``scope`` ends with as well."""
    parts = path.split("/")
    return next((n for n in range(len(parts), 0, -1) if f"/{scope}".endswith("/" + "/".join(parts[-n:]))), 0)


def _by_order(entry: Entry, rows: Sequence[tuple[str, Any]]) -> dict[str, list[Any]]:
    """Split the arrays of a nested model as Keras orders them; Keras 3.0 to 3.2 gave them bare names."""
    found: dict[str, list[Any]] = {leaf.path: [] for leaf in entry.leaves()}
    counts = {leaf.path: len(variables(leaf) or ()) for leaf in entry.leaves()}
    order = _order(entry, counts)
    if len(order) != len(rows):
        raise ModelError(
            f"the weights of the nested model '{entry.path}' cannot be told apart: save it as .keras", array=entry.path
        )
    values = {place: dataset for place, (_, dataset) in zip(order, rows, strict=True)}
    for path, index in sorted(values):
        found[path].append(values[path, index])
    return found


def _order(entry: Entry, counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return ``(layer, index)`` of the arrays of a top-level layer, in the order of Keras 3's ``.h5`` files."""
    flat, trained = [], []
    for leaf in entry.leaves():
        names = variables(leaf) or ()
        for index in range(counts[leaf.path]):
            flat.append((leaf.path, index))
            frozen = leaf.config.get("trainable") is False
            trained.append(not frozen and (index >= len(names) or trainable(names[index])))
    if entry.kind != "Sequential" and entry.config.get("trainable") is False:
        return flat
    return [
        *(place for place, yes in zip(flat, trained, strict=True) if yes),
        *(place for place, yes in zip(flat, trained, strict=True) if not yes),
    ]


def write(config: Config, layers: Sequence[Entry], weights: Mapping[str, Sequence[np.ndarray]], keras: str) -> bytes:
    """Return the ``.h5`` file of a model; equal models give equal bytes.

    Args:
        config: The configuration in the dialect of Keras 3.
        layers: Its layers.
        weights: The arrays of each layer, by path.
        keras: The Keras version to state.
    """
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["keras_version"] = keras
        file.attrs["backend"] = "torch"
        file.attrs["model_config"] = json.dumps(config)
        group = file.create_group("model_weights")
        group.attrs["keras_version"] = keras
        group.attrs["backend"] = "torch"
        _set_texts(group, "layer_names", [entry.path for entry in layers])
        for entry in sorted(layers, key=lambda entry: entry.path):
            _store(group.create_group(entry.path), entry, weights)
        _set_texts(group.create_group("top_level_model_weights"), "weight_names", [])
    return buffer.getvalue()


def _store(group: Any, entry: Entry, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
    known = {leaf.path: variables(leaf) or () for leaf in entry.leaves()}
    names = []
    for path, index in _order(entry, {path: len(weights.get(path, ())) for path in known}):
        variable = known[path][index] if index < len(known[path]) else f"variable_{index}"
        names.append(f"{path}/{variable}")
        group.create_dataset(names[-1], data=weights[path][index])
    _set_texts(group, "weight_names", names)


def _set_texts(group: Any, name: str, values: list[str]) -> None:
    import h5py

    group.attrs.create(name, np.array(values, dtype=object), shape=(len(values),), dtype=h5py.string_dtype())
