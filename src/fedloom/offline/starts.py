"""Do the members share a start? Their sidecars say so, or their weights tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedloom import files
from fedloom.align import diagnose
from fedloom.errors import FedloomError
from fedloom.layout import Layout
from fedloom.models import io, sidecar
from fedloom.models.model import Model
from fedloom.offline import member as members
from fedloom.offline.collect import SUFFIXES, ModelFile
from fedloom.report import words
from fedloom.report.comparison import Finding

WATCHED = 16
"""More models than this are not looked at, so that a merge needs the same memory for any number of files."""

UNITS, INPUTS = 256, 256
"""How much is kept of each hidden layer of a model that is looked at: so many units, and inputs of each unit."""

TWINS = "Two files are the same model"

BLENDED = (
    "The same feature sits in a different unit of each model, so averaging them blends unrelated units, and no averaging "
    "rule can mend that."
)


@dataclass(frozen=True)
class Verdict:
    """Whether the members share a start, and how that is known.

    Attributes:
        shared: True, False, or None when nothing tells.
        evidence: In words.
        duplicates: Pairs of files that hold the same model.
    """

    shared: bool | None
    evidence: str
    duplicates: tuple[tuple[int, int], ...] = ()


class Watch:
    """Keeps a corner of the first layers of the models that stream past on their way into a merge."""

    def __init__(self, layout: Layout) -> None:
        self._corners = _corners(layout)
        self._layout = _layout_of(self._corners)
        self._heads: list[torch.Tensor] = []
        self._digests: list[str] = []

    def see(self, vector: torch.Tensor) -> torch.Tensor:
        """Look at a model's vector (P,), and pass it on."""
        self._digests.append(sidecar.digest(vector))
        if len(self._heads) < WATCHED:
            self._heads.append(torch.cat([vector[:0], *(corner.of(vector) for corner in self._corners)]))
        return vector

    def _duplicates(self) -> tuple[tuple[int, int], ...]:
        first: dict[str, int] = {}
        pairs = ((first.setdefault(digest, i), i) for i, digest in enumerate(self._digests))
        return tuple(pair for pair in pairs if pair[0] != pair[1])

    def verdict(self, found: Sequence[ModelFile]) -> Verdict:
        """Say whether the files' models share a start; ``found`` in the order in which they were seen."""
        seen = found[: len(self._heads)]
        weights = diagnose.shared_start(self._heads, self._layout, [f.name for f in seen], self._layout.names)
        duplicates = self._duplicates()
        starts = [f.sidecar.start for f in found if f.sidecar and f.sidecar.start]
        if len(starts) < len(found):
            return Verdict(weights.shared, weights.evidence, duplicates)
        if len(set(starts)) == 1:
            text = f"{_all(len(found))} the same start ({starts[0][:8]})"
            return Verdict(True, text, duplicates)
        common, count = Counter(starts).most_common(1)[0]
        others = [f.name for f in found if f.sidecar and f.sidecar.start != common]
        if count == 1:
            text = f"the sidecars name {len(set(starts))} different starts"
        else:
            text = f"{', '.join(others)} began from another start than the other {count}, say the sidecars"
        return Verdict(False, f"{text}; {weights.evidence}", duplicates)


def findings(found: Sequence[ModelFile], verdict: Verdict, parts: str | Path | None = None) -> list[Finding]:
    """Say in words whether the members share a start, and which files are the same model.

    Args:
        found: The members' files.
        verdict: What ``Watch.verdict`` says of them.
        parts: The folder that ``split`` made, where it is known.
    """
    if len(found) < 2:
        return []
    evidence = sentence(verdict.evidence)
    said = []
    if verdict.shared:
        said.append(Finding("good", "The members share a start", evidence))
    elif verdict.shared is None:
        said.append(Finding("info", "It is not known whether the members share a start", evidence))
    else:
        text, command = f"{evidence} {BLENDED} {cure(found, parts)}", cure_command(found, parts)
        said.append(Finding("problem", "The members do not share a start", text, command))
    for i, j in verdict.duplicates:
        text = f"{found[i].path} and {found[j].path} hold the same numbers: one member counts twice."
        said.append(Finding("warning", TWINS, text))
    return said


def before_alignment(found: Sequence[ModelFile], verdict: Verdict) -> list[Finding]:
    """Say why members were aligned, and which files are the same model."""
    told = Finding("info", "The members do not share a start", f"{sentence(verdict.evidence)} {BLENDED}")
    return [told, *(f for f in findings(found, verdict) if f.title == TWINS)]


OTHER_WIDTHS = Finding(
    "info", "The members cannot be averaged as they are", "Their hidden layers have different widths."
)


def cure(found: Sequence[ModelFile], parts: str | Path | None) -> str:
    """Say how a team gets a shared start."""
    if parts_folder(found, parts) is None:
        return f"Send one file, such as {found[0].path}, to everybody, and let all train again from it."
    return f"Hand out one file, such as {found[0].path}, as everybody's start, and let all train again from it:"


def cure_command(found: Sequence[ModelFile], parts: str | Path | None) -> str:
    """Return the command that hands out one member's model as everybody's start; nothing where no folder is known."""
    folder = parts_folder(found, parts)
    return "" if folder is None else words.command("fedloom", "next-round", f"{folder}/", "--models", found[0].path)


def next_round_command(found: Sequence[ModelFile], parts: str | Path | None) -> str:
    """Return the command that merges these files into the next shared start; nothing where it would be refused."""
    folder = parts_folder(found, parts)
    if folder is None or not (folder / members.MANIFEST).is_file():
        return ""
    number = files.read_json(folder / members.MANIFEST).get("round", 0)
    if any(f.sidecar is None or f.sidecar.round != number for f in found):
        return ""
    own = [
        members.read(described.parent).trained(described.parent)
        for described in folder.glob(f"*/{members.DESCRIPTION}")
    ]
    same = {p.resolve() for p in own} == {f.path.resolve() for f in found}
    named: list[str | Path] = [] if same else ["--models", *(f.path for f in found)]
    return words.command("fedloom", "next-round", f"{folder}/", *named)


def parts_folder(found: Sequence[ModelFile], parts: str | Path | None = None) -> Path | None:
    """Find the folder that ``split`` made: the one given, one around or beside the members' files, or ``parts/``."""
    if parts is not None:
        return Path(parts)
    around = dict.fromkeys([*(f.path.parent.parent for f in found), *(f.path.parent for f in found), Path()])
    candidates = [folder / inner for folder in around for inner in ("", "parts")]
    return next((folder for folder in candidates if (folder / members.MANIFEST).is_file()), None)


def find_start(
    found: Sequence[ModelFile], like: Model, parts: str | Path | None, reference: str | None
) -> torch.Tensor | None:
    """Find the vector that all members started from, by the digest in their sidecars.

    Looked at are the starts in the members' own folders, and the starts and global models in ``parts``.

    Returns:
        The start (P,), or None when the sidecars name none, several, or one that does not lie there.
    """
    wanted = {f.sidecar.start if f.sidecar else "" for f in found}
    if len(wanted) != 1 or wanted == {""}:
        return None
    folders = [f.path.parent for f in found]
    whole = parts_folder(found, parts)
    if whole is not None:
        folders += [described.parent for described in sorted(whole.glob(f"*/{members.DESCRIPTION}"))]
    paths = [path for folder in dict.fromkeys(folders) for path in sorted(folder.glob("start*"))]
    paths += sorted(whole.glob(f"{members.ROUNDS}/round_*")) if whole else []
    copies = {files.sha256(path): path for path in reversed(paths) if path.suffix in SUFFIXES}
    for path in copies.values():
        try:
            candidate = io.load(path, reference)
        except FedloomError:
            continue
        if io.difference(like, candidate) is None and sidecar.digest(candidate.vector()) in wanted:
            return candidate.vector()
    return None


@dataclass(frozen=True)
class _Corner:
    """The first units of one array, and their first inputs."""

    name: str
    where: slice
    units: int
    shape: tuple[int, int]

    def of(self, vector: torch.Tensor) -> torch.Tensor:
        rows = vector[self.where].reshape(self.units, -1)
        return rows[: self.shape[0], : self.shape[1]].flatten()


def _corners(layout: Layout) -> list[_Corner]:
    """Return a corner of each hidden layer; of the first array where there is no such layer."""
    arrays, hidden = list(layout.slices())[: layout.n_trainable or None], diagnose.hidden_arrays(layout)
    telling = [row for row in arrays if row[0] in hidden]
    corners = []
    for name, where, shape in telling or arrays[:1]:
        units = shape[0] if shape else 1
        inputs = math.prod(shape) // units
        corners.append(_Corner(name, where, units, (min(units, UNITS), min(inputs, INPUTS))))
    return corners


def _layout_of(corners: Sequence[_Corner]) -> Layout:
    return Layout(tuple(c.name for c in corners), tuple(c.shape for c in corners), len(corners))


def _all(n: int) -> str:
    return {1: "the sidecar names", 2: "both sidecars name"}.get(n, f"all {n} sidecars name")


def sentence(text: str) -> str:
    """Make a sentence of evidence: a capital in front, a full stop behind."""
    return f"{text[:1].upper()}{text[1:]}."
