"""How a message becomes bytes and bytes become a message; what a message has is said by the types of its fields.

All numbers are little-endian; every array begins at a multiple of 64 bytes, and what lies between is zero:

    4 bytes   "FLNW"
    u8        version (1)
    u8        kind of message
    u16       0
    u32       length of the head, in bytes
    u32       0
    u64       length of the body, in bytes
    head      JSON: {"facts": {...}, "arrays": [[field, name, dtype, shape], ...]}, filled up with spaces
    body      the arrays, raw, in that order
    32 bytes  SHA-256 of everything before

A decoder looks at no more than it was given, and makes nothing that is larger than that. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedloom.errors import DataError

Buffer: TypeAlias = bytes | bytearray | memoryview

HEAD = struct.Struct("<4sBBHIIQ")
DIGEST = 32
MOST_FACTS = 4 << 20
"""The longest head, in bytes."""
SMALLEST = HEAD.size + DIGEST
LARGE = 4 << 20
"""Longer messages are not held in memory as a whole where that can be helped, in bytes."""
ALIGN = 64
"""Arrays begin at multiples of so many bytes."""

_MAGIC, _VERSION = b"FLNW", 1
_MOST_ARRAYS, _MOST_AXES, _MOST_NUMBERS = 4096, 16, 1 << 40
_BYTES = "bytes"
_DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Raw:
    """A message as the wire knows it.

    Attributes:
        kind: Its number.
        facts: What can be said in JSON.
        arrays: Tensors and bytes, by field and by name within the field (empty where the field is one array).
    """

    kind: int
    facts: Mapping[str, Any]
    arrays: Mapping[tuple[str, str], Tensor | bytes]


def plain(raw: Raw) -> list[Buffer]:
    """Return the bytes of a message in pieces, arrays without a copy; all but the checksum at its end.

    Raises:
        DataError: Something in it cannot be sent.
    """
    rows, body, length = [], list[Buffer](), 0
    for (field, name), value in raw.arrays.items():
        dtype, shape, data = _raw(field, value)
        rows.append([field, name, dtype, shape])
        body += [data, bytes(-len(data) % ALIGN)]
        length += len(data) + len(body[-1])
    head = _json({"facts": raw.facts, "arrays": rows})
    head += b" " * (-(HEAD.size + len(head)) % ALIGN)
    if len(head) > MOST_FACTS:
        raise DataError(f"a message's facts are {len(head)} bytes; {MOST_FACTS} are the most")
    start = HEAD.pack(_MAGIC, _VERSION, raw.kind, 0, len(head), 0, length)
    return [start, head, *(piece for piece in body if len(piece))]


def pieces(raw: Raw) -> list[Buffer]:
    """Return the bytes of a message in pieces; together they are what :func:`read` takes.

    Raises:
        DataError: Something in it cannot be sent.
    """
    whole = plain(raw)
    digest = hashlib.sha256()
    for piece in whole:
        digest.update(piece)
    return [*whole, digest.digest()]


class Summed:
    """The checksum of a message that comes, or goes, a piece at a time.

    Args:
        length: Of the message, in bytes, with the checksum at its end.
    """

    def __init__(self, length: int) -> None:
        self._left, self._sum = max(0, length - DIGEST), hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, "fedloom-sum") if length > LARGE else None
        self._last: Future[None] | None = None

    def add(self, data: Buffer) -> None:
        """Take the next piece; it must not change any more. That of a large message is summed up in another thread."""
        taken = memoryview(data)[: self._left]
        self._left -= len(taken)
        if self._pool is None:
            self._sum.update(taken)
        else:
            self._settle()
            self._last = self._pool.submit(self._sum.update, taken)

    def digest(self) -> bytes:
        """Return the checksum of what came, 32 bytes."""
        self._settle()
        if self._pool is not None and not self._left:
            self._pool.shutdown()
        return self._sum.digest()

    def _settle(self) -> None:
        if self._last is not None:
            self._last.result()
        self._last = None


def chunks(parts: Iterable[Buffer], size: int, skip: int = 0) -> Iterator[Buffer]:
    """Cut what ``parts`` are together into chunks of ``size`` bytes; the first ``skip`` bytes are left out.

    A chunk that lies within one part is a view of it.
    """
    held = bytearray()
    for part in parts:
        view = memoryview(part)
        start = min(skip, len(view))
        skip -= start
        while start < len(view):
            taken = view[start : start + size - len(held)]
            start += len(taken)
            if len(taken) == size:
                yield taken
                continue
            held += taken
            if len(held) == size:
                yield bytes(held)
                held.clear()
    if held:
        yield bytes(held)


def sealed(parts: list[Buffer], size: int, summed: Summed) -> Iterator[Buffer]:
    """Cut what :func:`plain` returned into chunks, with the checksum at the end, which is made as they go."""
    length = sum(len(part) for part in parts)
    if length + DIGEST <= size:
        whole = b"".join(parts)
        summed.add(whole)
        yield whole + summed.digest()
        return
    for data in chunks(parts, size):
        summed.add(data)
        yield data
    yield summed.digest()


def read(data: Buffer, summed: bytes | None = None) -> Raw:
    """Read a message. Tensors share the memory of ``data`` where that may be written to (a bytearray, a private map).

    Args:
        data: Its bytes.
        summed: Their checksum, where it was made as they came (:class:`Summed`).

    Raises:
        DataError: The bytes are no message, or a damaged one.
    """
    view = memoryview(data)
    kind, head, body = _framed(view, summed)
    found = _parsed(bytes(view[HEAD.size : head]))
    writable = view if not view.readonly else memoryview(bytearray(view[head:body]))
    return Raw(kind, found["facts"], _arrays(found["arrays"], writable, head if not view.readonly else 0, body - head))


def _framed(view: memoryview, summed: bytes | None) -> tuple[int, int, int]:
    """Return the kind of a message and where its head and its body end."""
    if len(view) < SMALLEST:
        raise DataError(f"a message has {SMALLEST} bytes or more, found {len(view)}")
    magic, version, kind, zero, head, nothing, body = HEAD.unpack_from(view)
    if (magic, zero, nothing) != (_MAGIC, 0, 0):
        raise DataError("these bytes are no message of fedloom")
    if version != _VERSION:
        raise DataError(f"a message of version {version}, expected {_VERSION}: update fedloom on both sides")
    if head > MOST_FACTS or SMALLEST + head + body != len(view):
        raise DataError(f"a message of {SMALLEST + head + body} bytes was announced, {len(view)} came")
    if (summed or hashlib.sha256(view[:-DIGEST]).digest()) != view[-DIGEST:]:
        raise DataError("a message was damaged on the way: its checksum is wrong")
    return kind, HEAD.size + head, HEAD.size + head + body


def _parsed(head: bytes) -> dict[str, Any]:
    try:
        found = json.loads(head.decode("utf-8"))
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair cannot be written or shown
    except (ValueError, RecursionError) as error:
        raise DataError(f"a message's head is no JSON ({type(error).__name__})") from error
    if not isinstance(found, dict) or set(found) != {"facts", "arrays"}:
        raise DataError("a message's head holds facts and arrays, nothing else")
    if not isinstance(found["facts"], dict) or not isinstance(found["arrays"], list):
        raise DataError("a message's facts are an object and its arrays a list")
    return found


def _arrays(rows: list[Any], view: memoryview, start: int, length: int) -> dict[tuple[str, str], Tensor | bytes]:
    if len(rows) > _MOST_ARRAYS:
        raise DataError(f"a message with {len(rows)} arrays; {_MOST_ARRAYS} are the most")
    arrays: dict[tuple[str, str], Tensor | bytes] = {}
    end = start + length
    for row in rows:
        field, name, dtype, shape, size = _row(row)
        after = start + size + -size % ALIGN
        if after > end or any(view[start + size : after]):
            raise DataError(f"{field}: {size} bytes were announced, {end - start} are left")
        if (field, name) in arrays:
            raise DataError(f"{field}: sent twice")
        arrays[field, name] = _array(field, view[start : start + size], dtype, shape)
        start = after
    if start != end:
        raise DataError(f"a message has {end - start} bytes that belong to nothing")
    return arrays


def _row(row: object) -> tuple[str, str, str, list[int], int]:
    if not isinstance(row, list) or len(row) != 4:
        raise DataError("an array of a message is described by field, name, dtype and shape")
    field, name, dtype, shape = row
    if not (isinstance(field, str) and isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
        raise DataError("an array of a message is described by field, name, dtype and shape")
    if dtype != _BYTES and dtype not in _DTYPES:
        raise DataError(f"{field}: an array of the type {dtype[:40]!r} cannot be read")
    if len(shape) > _MOST_AXES or not all(type(n) is int and 0 <= n <= _MOST_NUMBERS for n in shape):
        raise DataError(f"{field}: its shape is not one")
    if math.prod(max(n, 1) for n in shape) > _MOST_NUMBERS:
        raise DataError(f"{field}: its shape is too large")
    if dtype == _BYTES and len(shape) != 1:
        raise DataError(f"{field}: bytes have one axis")
    return field, name, dtype, shape, math.prod(shape) * (1 if dtype == _BYTES else _DTYPES[dtype].itemsize)


def _array(field: str, data: memoryview, dtype: str, shape: list[int]) -> Tensor | bytes:
    if dtype == _BYTES:
        return bytes(data)
    if not len(data):
        return torch.empty(shape, dtype=_DTYPES[dtype])
    numbers = torch.frombuffer(data, dtype=torch.uint8)
    if dtype == "bool" and int(numbers.max()) > 1:
        raise DataError(f"{field}: a yes or no that is neither")
    return numbers.view(_DTYPES[dtype]).reshape(shape)


def _raw(field: str, value: Tensor | bytes) -> tuple[str, list[int], Buffer]:
    if isinstance(value, bytes):
        return _BYTES, [len(value)], value
    if value.dtype not in _NAMES:
        raise DataError(f"{field}: an array of the type {value.dtype} cannot be sent")
    flat = value.detach().cpu().contiguous().reshape(-1)
    return _NAMES[value.dtype], list(value.shape), flat.view(torch.uint8).numpy().data if len(flat) else b""


def _json(value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a message cannot be sent: {error}") from error
