"""The order in which Keras keeps the layers of a functional graph, which the names in a weights file depend on.

Keras sorts by depth, the longest way to an output, and within one depth by a depth-first walk from the outputs
(``keras.src.ops.function.map_graph`` of 3.x; 2.x agrees).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Config = dict[str, Any]
Call = tuple[str, int]


def is_model(class_name: object) -> bool:
    """Whether a class name is that of a model whose layers are in its configuration."""
    return class_name in {"Sequential", "Functional", "Model"}


def sort_layers(config: Config) -> None:
    """Sort the ``layers`` of a functional model in place, as Keras 3 will; old inbound nodes become new ones.

    Args:
        config: The inner configuration: ``layers``, ``input_layers``, ``output_layers``.
    """
    rows: dict[str, Config] = {str(row.get("name") or row["config"].get("name")): row for row in config["layers"]}
    nested = {name: row["class_name"] for name, row in rows.items() if is_model(row["class_name"])}
    if any(isinstance(node, list) for row in rows.values() for node in row.get("inbound_nodes", ())):
        for row in rows.values():
            row["inbound_nodes"] = [_new_node(node, nested) for node in row.get("inbound_nodes", ())]
        for key in ("input_layers", "output_layers"):
            config[key] = _new_ends(config[key], nested)
    outputs = [
        (name, index - 1 if nested.get(name) == "Functional" else index)
        for name, index, _ in _ends(config["output_layers"])
    ]
    parents = {
        (name, index): list(_tensors(node))
        for name, row in rows.items()
        for index, node in enumerate(row.get("inbound_nodes", ()))
    }
    rank = _rank(outputs, parents)
    last = (1, 0)  # an input that leads nowhere
    for name, row in rows.items():
        row.setdefault("name", name)
    config["layers"] = sorted(rows.values(), key=lambda row: rank.get(row["name"], last))


def _new_node(node: Any, nested: dict[str, str]) -> Any:
    """Turn ``[[name, call, output, kwargs], ...]`` into the form of Keras 3."""
    if not isinstance(node, list):
        return node
    calls = node if node and isinstance(node[0], list) else [node]
    tensors = [_tensor(name, index - (name in nested), output) for name, index, output, *_ in calls]
    kwargs = next((dict(call[3]) for call in calls if len(call) > 3 and call[3]), {})
    return {"args": [tensors[0] if len(tensors) == 1 else tensors], "kwargs": kwargs}


def _tensor(name: str, index: int, output: int) -> Config:
    config = {"shape": [None], "dtype": "float32", "keras_history": [name, index, output]}
    return {"class_name": "__keras_tensor__", "config": config}


def _new_ends(ends: Any, nested: dict[str, str]) -> Any:
    """Undo the list around a single input or output; a nested Sequential's calls count from 0 in Keras 3."""
    found = [[name, index - (nested.get(name) == "Sequential"), output] for name, index, output in _ends(ends)]
    return found[0] if len(found) == 1 else found


def _ends(value: Any) -> Iterator[tuple[str, int, int]]:
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        yield value[0], value[1], value[2]
    elif isinstance(value, list | dict):
        for item in value if isinstance(value, list) else (value[key] for key in sorted(value)):
            yield from _ends(item)


def _tensors(value: Any) -> Iterator[Call]:
    """Yield the calls whose outputs a node takes, in the order of its arguments."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        name, index, _ = value["config"]["keras_history"]
        yield name, index
    elif isinstance(value, dict | list):
        for item in value if isinstance(value, list) else (value[key] for key in sorted(value)):
            yield from _tensors(item)


def _rank(outputs: list[Call], parents: dict[Call, list[Call]]) -> dict[str, tuple[int, int]]:
    """Return ``(-depth, place in the walk)`` of each layer that leads to an output."""
    place: dict[str, int] = {}
    finished: dict[Call, None] = {}
    for output in outputs:
        _walk(output, parents, place, finished)
    depth_of_call: dict[Call, int] = {}
    depth: dict[str, int] = {}
    for call in reversed(finished):
        depth[call[0]] = depth_of_call[call] = max(depth_of_call.get(call, 0), depth.get(call[0], 0))
        for parent in parents.get(call, ()):
            depth_of_call[parent] = max(depth_of_call.get(parent, 0), depth[call[0]] + 1)
    return {name: (-depth[name], place[name]) for name in place}


def _walk(start: Call, parents: dict[Call, list[Call]], place: dict[str, int], finished: dict[Call, None]) -> None:
    stack = [(start, iter(parents.get(start, ())))] if start not in finished else []
    place.setdefault(start[0], len(place))
    open_calls = {start}
    while stack:
        call, rest = stack[-1]
        step = next((parent for parent in rest if parent not in finished and parent not in open_calls), None)
        if step is None:
            stack.pop()
            finished[call] = None
        else:
            place.setdefault(step[0], len(place))
            open_calls.add(step)
            stack.append((step, iter(parents.get(step, ()))))
