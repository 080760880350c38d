r"""The weights inside a ``.keras`` archive: an HDF5 file whose groups are named by class and counter.

Keras numbers the layers of each model by their class: ``layers/conv2d/vars/0`` is the first variable of the first
Conv2D, ``layers/conv2d_1`` the second one, ``layers/sequential/layers/dense`` a layer of a nested model. Keras 2.14
says ``_layer_checkpoint_dependencies`` for ``layers``, Keras 2.12 and 2.13 leave gaps in the numbers, and before 3.1 a
Windows machine wrote one group named ``layers\conv2d``. A recurrent layer's variables are those of its cell,
``layers/lstm/cell/vars`` (``saving_lib`` of Keras 2.12 to 3.15).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedloom.errors import ModelError
from fedloom.models import keras_hdf5
from fedloom.models.keras_dialect import Entry, check, holders, leaves, variables

_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")


def find(file: Any, layers: Sequence[Entry]) -> dict[str, list[Any]]:
    """Return the data sets of every single layer, by the layer's path.

    Args:
        file: The open HDF5 file.
        layers: The layers of the model's configuration.

    Raises:
        ModelError: A layer's weights are missing, or of another number than its class has.
    """
    found: dict[str, list[Any]] = {}
    _collect(file, (), layers, found)
    for leaf in leaves(layers):
        check(leaf, len(found[leaf.path]))
    return found


def write(layers: Sequence[Entry], weights: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """Return the HDF5 file that holds ``weights``, by layer path; equal weights give equal bytes."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("vars")
        _store(file, layers, weights)
    return buffer.getvalue()


def _store(group: Any, layers: Sequence[Entry], weights: Mapping[str, Sequence[np.ndarray]]) -> None:
    container = group.create_group("layers")
    for name, entry in zip(_names(layers), layers, strict=True):
        if entry.children is not None:
            _store(container.create_group(name), entry.children, weights)
        elif weights.get(entry.path):
            _store_layer(container.create_group(name), entry, weights[entry.path])


def _store_layer(group: Any, entry: Entry, arrays: Sequence[np.ndarray]) -> None:
    group.create_group("vars").attrs["name"] = entry.path.rpartition("/")[2]
    places = holders(entry)
    share = len(arrays) // len(places)
    for number, place in enumerate(places):
        values = group.require_group(f"{place}/vars" if place else "vars")
        for index, array in enumerate(arrays[number * share : (number + 1) * share]):
            values.create_dataset(str(index), data=array)


def snake_case(class_name: str) -> str:
    """Return the group name that Keras derives from a class name.

    Example:
        >>> [snake_case(name) for name in ("Conv2D", "SeparableConv2D", "PReLU", "BatchNormalization")]
        ['conv2d', 'separable_conv2d', 'p_re_lu', 'batch_normalization']
    """
    return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", re.sub(r"\W", "", class_name)).lower()


def _names(layers: Sequence[Entry]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for entry in layers:
        base = snake_case("Functional" if entry.kind == "Model" else entry.kind)
        count = seen[base] = seen.get(base, -1) + 1
        names.append(f"{base}_{count}" if count else base)
    return names


def _collect(file: Any, parts: tuple[str, ...], layers: Sequence[Entry], found: dict[str, list[Any]]) -> None:
    """Add the data sets of ``layers``, which belong to the model at ``parts``."""
    groups: dict[str, tuple[str, ...]] = {}
    for container in _CONTAINERS:
        for name in _children(file, (*parts, container)):
            groups.setdefault(name, (*parts, container, name))
    names = _names(layers)
    if any(_is_missing(file, groups.get(name), entry) for name, entry in zip(names, layers, strict=True)):
        names = _by_rank(file, groups, layers, names)
    for name, entry in zip(names, layers, strict=True):
        where = groups.get(name)
        if entry.children is not None:
            _collect(file, where or (*parts, _CONTAINERS[0], name), entry.children, found)
        else:
            found[entry.path] = _variables(file, where, entry) if where else []


def _is_missing(file: Any, where: tuple[str, ...] | None, entry: Entry) -> bool:
    return entry.children is None and bool(variables(entry)) and (where is None or not _variables(file, where, entry))


def _by_rank(
    file: Any, groups: Mapping[str, tuple[str, ...]], layers: Sequence[Entry], names: Sequence[str]
) -> list[str]:
    """Pair the groups of one class with its layers in order, where the numbers have gaps but the counts agree."""
    renamed = list(names)
    for kind in {entry.kind for entry in layers if entry.children is None and variables(entry)}:
        pattern = re.compile(rf"{re.escape(snake_case(kind))}(?:_(\d+))?")
        matches = [match for name in groups if (match := pattern.fullmatch(name))]
        matches.sort(key=lambda match: int(match[1] or 0))
        wanted = [index for index, entry in enumerate(layers) if entry.kind == kind and variables(entry)]
        like = layers[wanted[0]]
        full = [match[0] for match in matches if _variables(file, groups[match[0]], like)]
        if len(full) == len(wanted):
            for index, name in zip(wanted, full, strict=True):
                renamed[index] = name
    return renamed


def _variables(file: Any, where: tuple[str, ...], entry: Entry) -> list[Any]:
    """Return the layer's variables, its cell's included; a seed generator's state is none of them."""
    places = [tuple(place.split("/")) if place else () for place in holders(entry)]
    known = {place[0] for place in places if place} | {"vars"}
    for name in _children(file, where):
        if name not in known and "generator" not in name and _datasets(file, (*where, name, "vars")):
            raise ModelError(
                f"layer '{entry.path}' ({entry.kind}) keeps its weights in layers of its own, which cannot be read",
                array=entry.path,
            )
    return [dataset for place in places for dataset in _datasets(file, (*where, *place, "vars"))]


def _datasets(file: Any, parts: tuple[str, ...]) -> list[Any]:
    import h5py

    group = next(iter(_at(file, parts)), None)
    if not isinstance(group, h5py.Group):
        return []
    numbered = sorted((int(name), name) for name in group if name.isdecimal())
    values = (keras_hdf5.child(group, name) for _, name in numbered)
    return [value for value in values if isinstance(value, h5py.Dataset)]


def _at(group: Any, parts: tuple[str, ...]) -> Iterator[Any]:
    """Yield what is at ``parts``, where a group's name may stand for several parts joined by backslashes."""
    import h5py

    if not parts:
        yield group
        return
    if not isinstance(group, h5py.Group):
        return
    for length in range(1, len(parts) + 1):
        below = keras_hdf5.child(group, "\\".join(parts[:length]))
        if below is not None:
            yield from _at(below, parts[length:])


def _children(group: Any, parts: tuple[str, ...]) -> list[str]:
    """Return the names below ``parts``, where a group's name may stand for several parts joined by backslashes."""
    import h5py

    names: dict[str, None] = {}
    if not isinstance(group, h5py.Group):
        return []
    for key in group:
        pieces = tuple(key.split("\\"))
        if pieces[: len(parts)] == parts and len(pieces) > len(parts):
            names[pieces[len(parts)]] = None
        elif parts[: len(pieces)] == pieces:
            for name in _children(keras_hdf5.child(group, key), parts[len(pieces) :]):
                names[name] = None
    return list(names)
