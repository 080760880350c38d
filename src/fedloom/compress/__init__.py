"""Compression: an update becomes bytes, fewer than four per number, and an update again.

A codec is written as a chain: transforms, then at most one number format (float32 when there is none), then perhaps a
lossless stage::

    int4                          every number in 4 bits
    topk:0.01 | int8 | zstd       the largest 1 %, each in 8 bits, then zstd
    rotate | subsample:10% | int1 a tenth of the rotated numbers, in one bit each

Names, papers and options are in :data:`CODECS`; the stages of this room are in one file per family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from fedloom.compress import floats, integers, lossless, masks, matrices, qsgd, rotation, sign, sparse
from fedloom.compress.base import Codec, Lossless, Quantiser, Transform
from fedloom.compress.chain import Chain
from fedloom.compress.rotation import rotate, unrotate
from fedloom.compress.sign import majority
from fedloom.errors import UsageError, unknown
from fedloom.layout import Layout

__all__ = ["CODECS", "Chain", "Codec", "Kind", "Option", "majority", "parse", "rotate", "unrotate"]

Stage: TypeAlias = Transform | Quantiser | Lossless


@dataclass(frozen=True)
class Option:
    """What can be said after a stage's name, behind a colon.

    Attributes:
        default: Its value when nothing is said; None when it must be said.
        help: What it is, and its range.
    """

    default: str | None
    help: str


@dataclass(frozen=True)
class Kind:
    """One row of :data:`CODECS`.

    Attributes:
        title: What it does, in one line.
        paper: Author, title, venue, year.
        place: Its place in a chain.
        make: The stage, from the texts of all its options and the layout.
        unbiased: Whether it is right on average; else use error feedback.
        options: Its options, in the order in which they are written.
    """

    title: str
    paper: str
    place: Literal["transform", "numbers", "lossless"]
    make: Callable[[Mapping[str, str], Layout | None], Stage]
    unbiased: bool
    options: Mapping[str, Option] = field(default_factory=dict)


_KONECNY = 'Konečný et al., "Federated Learning: Strategies for Improving Communication Efficiency", 2016'
_STICH = 'Stich et al., "Sparsified SGD with Memory", NeurIPS 2018'
_KEPT = Option(None, "how many values are sent: a share (0.01, 1%) or a count (500)")

CODECS: dict[str, Kind] = {
    "topk": Kind(
        "send the values that are largest in size, and where they stand",
        f'{_STICH}; Aji, Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017',
        "transform",
        sparse.make_topk,
        False,
        {"kept": _KEPT},
    ),
    "randomk": Kind(
        "send exactly k values, drawn at random, as they are",
        _STICH,
        "transform",
        sparse.make_randomk,
        False,
        {"kept": _KEPT},
    ),
    "mask": Kind(
        "send a random part of the values, as they are",
        _KONECNY,
        "transform",
        masks.make_mask,
        False,
        {"share": Option(None, "the probability that a value is sent, 0.000001 to 1")},
    ),
    "subsample": Kind(
        "send a random part of the values, scaled up so that the mean over clients is right",
        _KONECNY,
        "transform",
        masks.make_subsample,
        True,
        {"share": Option(None, "the probability that a value is sent, 0.000001 to 1")},
    ),
    "rotate": Kind(
        "spread the vector evenly by a random rotation, so that few bits per value lose less",
        f'{_KONECNY}; Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017',
        "transform",
        rotation.make,
        True,
        {"block": Option("8192", "the longest block that is rotated as one, a power of two")},
    ),
    "lowrank": Kind(
        "project every weight matrix on a few random directions, and send where it lies there",
        _KONECNY,
        "transform",
        matrices.make_lowrank,
        False,
        {"rank": Option("4", "how many directions, 1 to 4096")},
    ),
    "powersgd": Kind(
        "send every weight matrix as a product of two thin ones",
        'Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression", NeurIPS 2019',
        "transform",
        matrices.make_powersgd,
        False,
        {
            "rank": Option("2", "how thin: columns of the first factor, 1 to 4096"),
            "steps": Option("2", "power iterations, 1 to 16; more fit better"),
        },
    ),
    "float32": Kind("four bytes per value, nothing lost", "", "numbers", floats.maker(floats.Float32), True),
    "float16": Kind(
        "two bytes per value, with 11 significant bits", "IEEE 754-2008", "numbers", floats.maker(floats.Float16), False
    ),
    "bfloat16": Kind(
        "two bytes per value, with 8 significant bits and float32's range",
        'Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019',
        "numbers",
        floats.maker(floats.BFloat16),
        False,
    ),
    "int": Kind(
        "1 to 8 bits per value (int1 ... int8) between a bucket's smallest and largest, rounded by chance",
        f'{_KONECNY}; Suresh et al., "Distributed Mean Estimation with Limited Communication", ICML 2017',
        "numbers",
        integers.make,
        True,
        {
            "bits": Option(None, "bits per value, written in the name: int4"),
            "bucket": Option("1024", "how many values share a range"),
        },
    ),
    "qsgd": Kind(
        "signs and sizes as shares of a bucket's norm, rounded by chance",
        'Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017',
        "numbers",
        qsgd.make,
        True,
        {
            "bits": Option("4", "bits per value with its sign, 2 to 8"),
            "bucket": Option("512", "how many values share a norm"),
            "norm": Option("l2", "l2, or max: the largest value, with smaller errors"),
        },
    ),
    "sign": Kind(
        "one bit per value: its sign, and the mean size of its bucket",
        'Bernstein et al., "signSGD", ICML 2018; Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019',
        "numbers",
        sign.make,
        False,
        {"bucket": Option("1024", "how many values share a size")},
    ),
    "zstd": Kind(
        "the same bytes, shorter",
        'Collet, Kucherawy, "Zstandard Compression", RFC 8878, 2021',
        "lossless",
        lossless.make,
        True,
        {"level": Option("3", "-7 (fast) to 19 (small)")},
    ),
}

_PLACES = ("transform", "numbers", "lossless")
_WORDS = {"transform": "transforms", "numbers": "one number format", "lossless": "one lossless stage"}
_ORDER = f"a chain is {', then '.join(_WORDS.values())}"


def parse(text: str, layout: Layout | None = None) -> Chain:
    """Read a chain such as ``topk:0.01 | int8 | zstd``.

    A stage's options follow its name behind colons, in their order (``qsgd:4:512``) or by name (``qsgd:norm=max``).

    Args:
        text: The chain.
        layout: The arrays of the vectors that will be encoded; ``lowrank`` and ``powersgd`` need it.

    Returns:
        The codec.

    Raises:
        UsageError: A stage or option is unknown or out of range, or stands where it cannot; the message suggests.
        MissingDependency: ``zstd`` is asked for and not installed.

    Example:
        >>> parse("topk:1% | int8").name
        'topk:0.01 | int8:1024'
        >>> parse("topk:1% | in8")
        Traceback (most recent call last):
        ...
        fedloom.errors.UsageError: unknown codec 'in8': did you mean 'int8'? (known: topk, randomk, ...
    """
    transforms: list[Transform] = []
    numbers: list[Quantiser] = []
    last: list[Lossless] = []
    before, reached = "", 0
    for part in text.split("|"):
        name, kind, stage = _stage(part.strip(), text, layout)
        place = _PLACES.index(kind.place)
        if place < reached:
            raise UsageError(f"'{text}': {name} cannot stand behind {before}; {_ORDER}")
        if before and isinstance(stage, matrices.Matrices):
            raise UsageError(f"'{text}': {name} must come first: behind {before} the matrices are no longer there")
        before, reached = name, place
        {"transform": transforms, "numbers": numbers, "lossless": last}[kind.place].append(stage)  # type: ignore[attr-defined]
    for found, what in ((numbers, "numbers"), (last, "lossless")):
        if len(found) > 1:
            raise UsageError(f"'{text}': {' and '.join(s.spec for s in found)}; {_ORDER}, not {_WORDS[what]} twice")
    return Chain(tuple(transforms), numbers[0] if numbers else floats.Float32(), last[0] if last else None)


def _stage(part: str, text: str, layout: Layout | None) -> tuple[str, Kind, Stage]:
    written, *given = (word.strip() for word in part.split(":"))
    if not written:
        raise UsageError(f"'{text}': a codec's name is missing; {_ORDER}")
    digits = re.fullmatch(r"(int)(\d+)", written)
    name = "int" if digits else written
    if name not in CODECS:
        raise _unknown(name)
    kind = CODECS[name]
    values = {option: o.default for option, o in kind.options.items() if o.default is not None}
    if digits:
        values["bits"] = digits[2]
    free = [option for option in kind.options if not (digits and option == "bits")]
    values |= _options(written, given, free)
    for option in kind.options:
        if option not in values:
            example = "int4" if name == "int" else f"{written}:0.01"
            raise UsageError(f"{written}: {option} is missing; write it as in {example}", option=option)
    return written, kind, kind.make(values, layout)


def _options(name: str, given: list[str], free: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in given:
        key, equals, value = word.partition("=")
        key, value = (key.strip(), value.strip()) if equals else (_next(name, word, free, found), word)
        if key not in free:
            raise unknown(f"option of {name}", key, free)
        if key in found:
            raise UsageError(f"{name}: {key} is given twice", option=key)
        found[key] = value
    return found


def _next(name: str, word: str, free: list[str], found: Mapping[str, str]) -> str:
    for option in free:
        if option not in found:
            return option
    takes = f"takes {', '.join(free)}" if free else "has no options"
    raise UsageError(f"{name}: nothing is known about '{word}'; {name} {takes}", found=word)


def _unknown(name: str) -> UsageError:
    known = [n for kind in CODECS for n in ([f"int{b}" for b in range(1, 9)] if kind == "int" else [kind])]
    return unknown("codec", name, known)
