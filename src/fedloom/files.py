"""Files on disk: atomic writes, checksums, JSON, safetensors. A reader never sees half a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedloom.errors import DataError, FedloomError, StorageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_TEMPORARY = ".fedloom-"
_REASONS = {
    errno.ENOSPC: "no space left on the disk; free some and run the same command again",
    errno.EFBIG: "the file is larger than is allowed here",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EACCES: "permission denied; choose another folder",
    errno.EPERM: "operation not permitted; choose another folder",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EEXIST: "a file stands where a folder is expected",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; it replaces ``path`` when the block ends well, and is deleted otherwise.

    The temporary name keeps the suffix of ``path``, for libraries that look at it.

    Raises:
        StorageError: The disk is full, read-only or the place is not writable.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_TEMPORARY}{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Say whether a file is one that :func:`atomic` was writing; a kill leaves it behind."""
    return path.name.startswith(_TEMPORARY)


def tidy(folder: str | Path) -> None:
    """Delete what kills have left half-written in a folder that nobody writes to, and in those inside it.

    Raises:
        StorageError: That is not allowed.
    """
    for path in Path(folder).rglob(f"{_TEMPORARY}*"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> FedloomError:
    """Say in one line why ``path`` could not be written."""
    unnamed = f"only a part of it was written, the disk may be full ({error})"  # NumPy gives a full disk no number
    reason = unnamed if error.errno is None else _REASONS.get(error.errno, error.strerror or str(error))
    return StorageError(f"cannot write {path}: {reason}", file=str(path), errno=error.errno)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically; NaN and infinity become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def canonical(value: object) -> str:
    """Return JSON that is equal for equal values, whatever the order of their keys and whether lists were tuples."""
    return json.dumps(finite(value), sort_keys=True)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: The file is missing, is not JSON, or holds no object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", file=str(path)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error})", file=str(path)) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: a JSON object is expected, found {type(value).__name__}", file=str(path))
    return value


def from_json(cls: type[T], value: Mapping[str, Any], path: Path) -> T:
    """Build a dataclass from a JSON object; lists become tuples, unknown keys are passed over.

    Raises:
        DataError: A key is missing; ``path`` is named.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in known})
    except TypeError as error:
        raise DataError(f"{path}: damaged ({error})", file=str(path)) from error


def sha256(path: str | Path) -> str:
    """Return the SHA-256 checksum of a file, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def copy(source: str | Path, target: str | Path) -> None:
    """Copy a file atomically."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def write_tensors(path: str | Path, arrays: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors and text metadata as a safetensors file, atomically.

    The library's own functions copy all of them first, and tell a full disk as an error of another kind.

    Raises:
        DataError: The format has no such type of numbers.
        StorageError: It cannot be written.
    """
    for name, tensor in arrays.items():
        if str(tensor.dtype) not in _NAMES:
            raise DataError(f"{path}: '{name}' holds {tensor.dtype}, which cannot be written", file=str(path))
    rows = sorted(arrays.items(), key=lambda row: (-_ORDER.index(str(row[1].dtype)), row[0]))
    head: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in rows:
        start, end = end, end + tensor.numel() * tensor.element_size()
        head[name] = {"dtype": _NAMES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in rows:
            if tensor.numel():
                file.write(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return flat


_NAMES = {
    **{"torch.bool": "BOOL", "torch.uint8": "U8", "torch.int8": "I8", "torch.int16": "I16", "torch.uint16": "U16"},
    **{"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.int32": "I32", "torch.uint32": "U32"},
    **{"torch.float32": "F32", "torch.float64": "F64", "torch.int64": "I64", "torch.uint64": "U64"},
}
_ORDER = list(_NAMES)
"""The types of safetensors; the widest are written first, as its own functions do."""


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, and the text metadata.

    Raises:
        DataError: The file is missing, truncated, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", file=str(path)) from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: truncated, or not a safetensors file ({error})", file=str(path)) from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def finite(value: object) -> object:
    """Return a value with null in place of every NaN and infinity, which JSON cannot say."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
