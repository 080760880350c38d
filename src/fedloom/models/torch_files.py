"""State dicts on disk: ``.pt``/``.pth`` (PyTorch) and ``.safetensors``, read without running a line of what they hold.

In a ``.pt`` file the text metadata travels in the ordered dictionary's ``_metadata``, where PyTorch keeps its own
version numbers, so the file stays a plain state dict for ``torch.load`` and ``load_state_dict``.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from fedloom import files
from fedloom.errors import DataError, ModelError, unknown

SUFFIXES = (".pt", ".pth", ".safetensors")

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_OURS = "fedloom"


def read_state(
    path: str | Path, expected: Collection[str] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a state dict; a checkpoint that wraps one (under ``state_dict``, ``model``...) is unwrapped.

    The prefixes of ``DataParallel`` (``module.``) and ``torch.compile`` (``_orig_mod.``) are taken off.

    Args:
        path: A ``.pt``, ``.pth`` or ``.safetensors`` file.
        expected: The names that the model has, where known: names that fit already keep their prefix.

    Returns:
        The arrays by name, in the dtypes of the file (integer ones included), on the CPU; and the text metadata,
        where ``fedloom`` carries the architecture when fedloom wrote the file.

    Raises:
        UsageError: Another suffix.
        ModelError: The file is missing, truncated, foreign, a whole pickled model, or an array is of a kind that
            cannot be merged (complex, sparse, quantised); the message names the file and the array.
    """
    path = Path(path)
    found, metadata = _read_safetensors(path) if _suffix(path) == ".safetensors" else _read_pt(path)
    if not found:
        raise ModelError(f"{path}: holds no arrays", file=str(path))
    arrays = {name: array.detach() for name, array in _strip(found, expected).items()}
    for name, array in arrays.items():
        if array.layout is not torch.strided or array.is_complex() or array.is_quantized or array.is_meta:
            kind = f"{array.dtype}, {array.layout}" + (", without values" if array.is_meta else "")
            raise ModelError(f"{path}: array '{name}' ({kind}) cannot be merged", file=str(path), array=name)
    return arrays, metadata


def write_state(path: str | Path, arrays: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict atomically.

    Args:
        path: A ``.pt``, ``.pth`` or ``.safetensors`` file.
        arrays: The arrays by name, in the dtypes that the file is to have, on any device.
        metadata: Text that travels with them.

    Raises:
        UsageError: Another suffix.
        StorageError: No space, or the place is not writable.
    """
    path = Path(path)
    ready = {name: array.detach().cpu().contiguous().clone() for name, array in arrays.items()}
    if _suffix(path) == ".safetensors":
        files.write_tensors(path, ready, metadata)
        return
    state: OrderedDict[str, Any] = OrderedDict(ready)
    if metadata:
        state._metadata = OrderedDict({_OURS: dict(metadata)})  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.write_bytes(path, buffer.getvalue())


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise unknown("suffix of a state-dict file", suffix or path.name, SUFFIXES)
    return suffix


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        return files.read_tensors(path)
    except DataError as error:
        raise ModelError(str(error), **error.context) from error


def _read_pt(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    content = _load(path)
    wrapped = content
    while isinstance(wrapped, Mapping) and not any(isinstance(v, torch.Tensor) for v in wrapped.values()):
        inner = next((wrapped[key] for key in _WRAPPERS if isinstance(wrapped.get(key), Mapping)), None)
        if inner is None:
            break
        wrapped = inner
    if not isinstance(wrapped, Mapping):
        found = f"a {type(content).__name__}"
        raise ModelError(f"{path}: a state dict is expected, found {found}: {_advice(path)}", file=str(path))
    for name, value in wrapped.items():
        if not isinstance(value, torch.Tensor):
            keys = ", ".join(f"'{key}'" for key in list(wrapped)[:6])
            raise ModelError(
                f"{path}: entry '{name}' is a {type(value).__name__}, not an array (entries: {keys}): {_advice(path)}",
                file=str(path),
                array=str(name),
            )
    metadata = getattr(wrapped, "_metadata", None) or {}
    ours = metadata.get(_OURS, {}) if isinstance(metadata, Mapping) else {}
    return {str(k): v for k, v in wrapped.items()}, {str(k): str(v) for k, v in ours.items()}


def _load(path: Path) -> Any:
    """Load what the restricted unpickler of PyTorch allows: tensors, numbers, text, lists and dictionaries."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file", file=str(path)) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})", file=str(path)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_refusal(path, str(error)), file=str(path)) from error
    except _DAMAGE as error:
        if "TorchScript" in str(error):
            raise ModelError(f"{path}: a TorchScript program: {_advice(path)}", file=str(path)) from error
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(f"{path}: truncated, or not a PyTorch file ({reason})", file=str(path)) from error


# What torch.load raises on damaged bytes is not documented: these are what cut, flipped and random bytes gave.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    OverflowError,
    MemoryError,
    AssertionError,
    struct.error,
)


def _refusal(path: Path, message: str) -> str:
    code = re.search(r"GLOBAL\s+([\w.]+)", message)
    if code is None:
        return f"{path}: truncated, or not a PyTorch file"
    return f"{path}: holds pickled Python objects ({code[1]}), which fedloom never runs: {_advice(path)}"


def _advice(path: Path) -> str:
    return f"save the state dict alone, torch.save(model.state_dict(), '{path.name}')"


def _strip(arrays: Mapping[str, torch.Tensor], expected: Collection[str] | None) -> dict[str, torch.Tensor]:
    names = {name: name for name in arrays}
    while names and (expected is None or set(names.values()) != set(expected)):
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) and n != p for n in names.values())), None)
        if prefix is None:
            break
        names = {old: new.removeprefix(prefix) for old, new in names.items()}
    return {new: arrays[old] for old, new in names.items()}
