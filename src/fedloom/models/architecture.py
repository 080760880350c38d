"""Architecture: how to rebuild a model without its weights, as plain data that travels in a sidecar.

Three kinds exist: a Keras configuration (files, the zoo), a PyTorch factory (``file.py:function``), and ``bare``
arrays, which is what a state dict without its code is: it can be merged, but not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedloom.errors import DataError, unknown

_FIELDS: dict[str, dict[str, type]] = {
    "keras": {"config": Mapping},
    "torch": {"factory": str, "arguments": Mapping},
    "bare": {},
}


@dataclass(frozen=True)
class Architecture:
    """How to rebuild a model.

    Attributes:
        kind: ``"keras"``, ``"torch"`` or ``"bare"``.
        config: The content of a Keras ``config.json`` (kind ``keras``).
        factory: ``file.py:name`` or ``module:name`` (kind ``torch``).
        arguments: What the factory is told: ``input_shape`` as the data have it, and ``n_classes``.
        base: The folder that a relative file in ``factory`` starts from; it does not travel.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    factory: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    base: Path | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON-able data."""
        if self.kind == "keras":
            return {"kind": self.kind, "config": dict(self.config)}
        if self.kind == "torch":
            return {"kind": self.kind, "factory": self.factory, "arguments": dict(self.arguments)}
        return {"kind": self.kind}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], base: Path | None = None) -> Architecture:
        """Read what ``to_json`` wrote.

        Raises:
            UsageError: An unknown kind.
            DataError: A field is missing, or of another type.
        """
        kind = str(value.get("kind"))
        if kind not in _FIELDS:
            raise unknown("kind of model", kind, _FIELDS)
        for name, type_ in _FIELDS[kind].items():
            if not isinstance(value.get(name), type_):
                raise DataError(
                    f"the description of a '{kind}' model is damaged: its '{name}' is {value.get(name)!r:.40}"
                )
        return cls(kind, **{name: value[name] for name in _FIELDS[kind]}, base=base if kind == "torch" else None)
