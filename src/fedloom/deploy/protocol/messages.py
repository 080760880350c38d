"""What a client and the server say to each other: frozen data, and their bytes (:mod:`fedloom.deploy.protocol.wire`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

from torch import Tensor

from fedloom.deploy.protocol import forms, wire
from fedloom.deploy.protocol.forms import Array, Fact
from fedloom.deploy.protocol.wire import Buffer, Raw
from fedloom.errors import DataError

TRAIN, EVALUATE, CHECK, STOP = ("train", "evaluate", "check", "stop")

Name: TypeAlias = Annotated[str, forms.line(64)]
Line: TypeAlias = Annotated[str, forms.text(2000)]
Count: TypeAlias = Annotated[int, Fact(forms.count)]
Number: TypeAlias = Annotated[float, Fact(forms.number)]
Flag: TypeAlias = Annotated[bool, Fact(forms.flag)]
Facts: TypeAlias = Annotated[Mapping[str, Any], Fact(forms.facts)]
Numbers: TypeAlias = Annotated[Mapping[str, float], Fact(forms.numbers)]
Vector: TypeAlias = Annotated[Tensor | None, Array(Tensor)]
Vectors: TypeAlias = Annotated[Mapping[str, Tensor], Array(Tensor, many=True)]
Blob: TypeAlias = Annotated[bytes, Array(bytes)]
Blobs: TypeAlias = Annotated[Mapping[str, bytes], Array(bytes, many=True)]


@dataclass(frozen=True)
class Hello:
    """What a client says of itself when it joins.

    Attributes:
        name: What it wants to be called; the server's list and its log call it so.
        version: Of fedloom.
        samples: How many samples it trains on.
        facts: What the server checks its data by, JSON-able: the shape of an input, the names of the classes, ...
    """

    name: Name
    version: Name = ""
    samples: Count = 0
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Welcome:
    """Everything that a client needs to build its side of a run; no code travels.

    Attributes:
        client: Its number, from 0.
        clients: How many clients the run has.
        run: Names the run; it stays the same when the server is started again.
        experiment: The tables of the experiment, resolved, with what protects updates, JSON-able.
        model: How to rebuild the model, JSON-able: a Keras configuration, a name of the zoo, or ``module:function`` that has
            to exist on the client; and the digest of its layout.
        vectors: The start (``"start"``, float32 (P,)), and the whole numbers of the module, by name.
        blobs: Anything else, as bytes by name.
    """

    client: Count
    clients: Count
    run: Name = ""
    experiment: Facts = field(default_factory=dict)
    model: Facts = field(default_factory=dict)
    vectors: Vectors = field(default_factory=dict)
    blobs: Blobs = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a client is to do.

    Attributes:
        kind: :data:`TRAIN`, :data:`EVALUATE` (on samples kept apart), :data:`CHECK` (say that all is ready, or train one
            batch and report), :data:`STOP` (``reason`` says why), or :data:`fedloom.deploy.sealing.legs.SECURE`.
        round: The number of the round, from 1; 0 where there is none.
        attempt: 0, or 1 and 2 for those that are asked in place of others.
        vector: The model, float32 (P,); None where it is ``encoded``.
        encoded: The model as bytes of the run's codec; empty where ``vector`` is it.
        extra: Further vectors that the algorithm sends.
        lr: The local learning rate.
        deadline: So many seconds from now the server will not wait any longer; 0 for no limit.
        stale: How many rounds ago the model was sent out.
        unsent: See :class:`fedloom.algorithms.base.Broadcast`.
        reason: Words for people.
        facts: Anything else, JSON-able.
    """

    kind: Name
    round: Count = 0
    attempt: Count = 0
    vector: Vector = None
    encoded: Blob = b""
    extra: Vectors = field(default_factory=dict)
    lr: Number = 0.0
    deadline: Number = 0.0
    stale: Count = 0
    unsent: Count = 0
    reason: Line = ""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """What a client sends of a task: its update, or why there is none.

    Attributes:
        round: Of the task.
        attempt: Of the task.
        task: The kind of the task.
        delta: Local weights minus the model that was sent, float32 (P,); None where it is ``encoded`` or there is none.
        encoded: The update as bytes of the run's codec; empty where ``delta`` is it.
        extra: Further vectors that the algorithm sends along.
        weight: The update's weight in an average.
        steps: The number of local optimiser steps.
        metrics: Numbers to log.
        bytes: See ``ClientUpdate.bytes_up``.
        failure: The kind of failure as in :class:`fedloom.records.ClientFailure`; empty where all went well.
        reason: What happened, with file and line where it was an error of a program.
        facts: Anything else, JSON-able.
    """

    round: Count
    attempt: Count = 0
    task: Name = TRAIN
    delta: Vector = None
    encoded: Blob = b""
    extra: Vectors = field(default_factory=dict)
    weight: Number = 0.0
    steps: Count = 0
    metrics: Numbers = field(default_factory=dict)
    bytes: Count = 0
    failure: Name = ""
    reason: Line = ""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """The server's answer to an upload; after it the client may forget the update.

    Attributes:
        accepted: Whether it counts; a second upload of the same update is accepted as the first was.
        reason: Why it does not.
        again: Whether this update had come before.
    """

    accepted: Flag
    reason: Line = ""
    again: Flag = False


@dataclass(frozen=True)
class Poll:
    """A client asks for its next task; ``wait`` is how long it is ready to wait, in seconds."""

    wait: Number


@dataclass(frozen=True)
class Beat:
    """A client is alive; ``doing`` is what it is at, in words."""

    doing: Line = ""


@dataclass(frozen=True)
class Leave:
    """A client goes; ``reason`` in words."""

    reason: Line = ""


@dataclass(frozen=True)
class Nothing:
    """There is no answer, or nothing to do."""


@dataclass(frozen=True)
class Open:
    """A client shows who it is; it is signed with the key of which ``key`` is the public half.

    Attributes:
        challenge: What the server gave it to sign, 32 bytes.
        key: Its public Ed25519 key, 32 bytes.
        name: What it is called; empty for the name that the server knows it by.
        token: Of its invitation, 16 bytes; empty when the server knows it.
    """

    challenge: Blob
    key: Blob
    name: Name = ""
    token: Blob = b""


@dataclass(frozen=True)
class Opened:
    """The server knows the client; ``session`` (16 bytes) goes with everything that it says from now on."""

    session: Blob
    name: Name


Message: TypeAlias = Hello | Welcome | Task | Upload | Receipt | Poll | Beat | Leave | Nothing | Open | Opened
KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Welcome,
    3: Task,
    4: Upload,
    5: Receipt,
    6: Poll,
    7: Beat,
    8: Leave,
    9: Nothing,
    10: Open,
    11: Opened,
}
M = TypeVar("M", bound=Message)

_FORMS: dict[type[Any], dict[str, Fact | Array]] = {
    cls: {name: hint.__metadata__[0] for name, hint in get_type_hints(cls, include_extras=True).items()}
    for cls in KINDS.values()
}
_REQUIRED: dict[type[Any], tuple[str, ...]] = {
    cls: tuple(f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING)
    for cls in KINDS.values()
}


def pieces(message: Message) -> list[Buffer]:
    """Return a message's bytes in pieces; vectors are not copied. The last piece is the SHA-256 of the others.

    Raises:
        DataError: Something in it cannot be sent.
    """
    return wire.pieces(raw(message))


def raw(message: Message) -> Raw:
    """Return a message as the wire knows it; vectors are not copied.

    Raises:
        DataError: Something in it cannot be sent.
    """
    facts: dict[str, Any] = {}
    arrays: dict[tuple[str, str], Tensor | bytes] = {}
    kind = next(number for number, cls in KINDS.items() if cls is type(message))
    for name, form in _FORMS[type(message)].items():
        value = getattr(message, name)
        if isinstance(form, Fact):
            facts[name] = form.check(form.clean(value), name)
        elif form.many:
            arrays.update({(name, key): one for key, one in value.items()})
        elif value is not None and (form.type is Tensor or value):
            arrays[name, ""] = value
    return Raw(kind, facts, arrays)


def encode(message: Message) -> bytes:
    """Return a message's bytes, see :func:`pieces`."""
    return b"".join(pieces(message))


def decode(data: Buffer, expected: type[M], summed: bytes | None = None) -> M:
    """Read a message of an expected kind; tensors share the memory of ``data`` where that may be written to.

    Args:
        data: Its bytes.
        expected: The kind.
        summed: See :func:`fedloom.deploy.protocol.wire.read`.

    Raises:
        DataError: The bytes are no such message, whatever else they may be.
    """
    found = wire.read(data, summed)
    if KINDS.get(found.kind) is not expected:
        raise DataError(f"expected the message {expected.__name__}, found kind {found.kind}")
    known = _FORMS[expected]
    values: dict[str, Any] = {}
    for name, value in found.facts.items():
        form = known.get(name)
        if not isinstance(form, Fact):
            raise DataError(f"{expected.__name__} has no {name[:64]!r}: update fedloom on both sides")
        values[name] = form.check(value, name)
    for (name, key), array in found.arrays.items():
        form = known.get(name)
        if not isinstance(form, Array) or not isinstance(array, form.type) or (key and not form.many):
            raise DataError(f"{expected.__name__}: {name[:64]!r} is no such array")
        if form.many:
            values.setdefault(name, {})[key] = array
        else:
            values[name] = array
    missing = [name for name in _REQUIRED[expected] if name not in values]
    if missing:
        raise DataError(f"{expected.__name__}: {missing[0]} is missing")
    return expected(**values)


def is_nothing(data: Buffer) -> bool:
    """Say whether these bytes are the message :class:`Nothing`."""
    return bytes(data) == _NOTHING if len(data) == len(_NOTHING) else False


_NOTHING = encode(Nothing())
