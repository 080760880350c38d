"""Rounds by hand: put the merged model back as everybody's shared start, without any server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedloom import files
from fedloom.errors import DataError, MergeError, UsageError
from fedloom.merging import Entry, Merged, check_method, merge_vectors
from fedloom.models import io, sidecar
from fedloom.models.model import Model
from fedloom.models.sidecar import Sidecar
from fedloom.offline import member as members
from fedloom.offline import starts
from fedloom.offline.collect import SUFFIXES, ModelFile, check_same, model_files, read_vectors, without_rounds
from fedloom.offline.server_state import read_state, write_state
from fedloom.report.tables import text_html


@dataclass(frozen=True)
class NextRound:
    """What ``next_round`` did.

    Attributes:
        round: The number of rounds merged so far.
        global_model: The file of the new global model.
        folders: The members' folders that hold it as their start now.
        command: The command that trains the first member.
        notes: What the reader should know, in words.
    """

    round: int
    global_model: Path
    folders: tuple[Path, ...]
    command: str
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        names = ", ".join(folder.name for folder in self.folders)
        lines = [f"round {self.round}: {self.global_model}", f"the new shared start of {names}"]
        return text_html("\n".join([*lines, *(f"note: {note}" for note in self.notes)]))


@dataclass(frozen=True)
class Team:
    """The coordinator's view of ``parts/``: the members, the current round and the global model.

    Attributes:
        parts: The folder that ``split`` made.
        folders: The members' folders.
        round: The number of rounds merged so far.
        model: The current global model.
        path: Its file.
    """

    parts: Path
    folders: tuple[Path, ...]
    round: int
    model: Model
    path: Path

    @classmethod
    def read(cls, parts: str | Path, reference: str | None = None) -> Team:
        """Read the state of ``parts``.

        Raises:
            DataError: ``parts`` was not made by ``split``, or is damaged.
        """
        parts = Path(parts)
        found = members.folders(parts)
        number = int(files.read_json(parts / members.MANIFEST).get("round", 0))
        path = _round_file(parts, number, ".keras")
        if number == 0:
            # An interrupted first merge may have handed out its result already, so the folder's current start says nothing.
            path = members.read(found[0]).first_start(found[0])
        else:
            kept = [p for p in path.parent.glob(f"{path.stem}.*") if p.stem == path.stem and p.suffix in SUFFIXES]
            if not kept:
                raise DataError(f"{path.parent}: the global model of round {number} is missing", file=str(path))
            path = kept[0]
        return cls(parts, tuple(found), number, io.load(path, reference), path)

    def merge(
        self,
        method: str,
        entries: Sequence[Entry],
        vectors: Iterable[torch.Tensor],
        options: Mapping[str, float] | None,
    ) -> Merged:
        """Merge the vectors of this round; the server optimiser's memory of the last round is used."""
        before = self.model.vector()
        return merge_vectors(
            method,
            entries,
            vectors,
            layout=self.model.layout,
            previous=before,
            state=read_state(self.path, method, before),
            options=options,
        )

    def advance(self, merged: Merged, method: str, merged_from: Sequence[str]) -> Team:
        """Write the merged model as the start of the next round; the manifest, written last, makes it count.

        ``self.model`` takes the merged weights over.
        """
        number, digest = self.round + 1, sidecar.digest(merged.vector)
        suffix = self.path.suffix
        path = _round_file(self.parts, number, suffix)
        self.model.load(merged.vector)
        io.save(self.model, path)
        what = {"method": method, "members": list(merged_from), "weights": list(merged.weights)}
        record = Sidecar(model=self.model.describe(), start=digest, round=number, merge=what)
        sidecar.write(path, record)
        write_state(path, method, merged)
        for folder in self.folders:
            self._hand_out(folder, path, number, digest)
        manifest = files.read_json(self.parts / members.MANIFEST)
        files.write_json(self.parts / members.MANIFEST, {**manifest, "round": number})
        return Team(self.parts, self.folders, number, self.model, path)

    def _hand_out(self, folder: Path, path: Path, number: int, digest: str) -> None:
        described = members.read(folder)
        start = f"start_{number:03d}{path.suffix}"
        files.copy(path, folder / start)
        described.at_round(number, start, digest).write(folder)
        if described.start not in ("start" + path.suffix, start):
            (folder / described.start).unlink(missing_ok=True)


def next_round(
    parts: str | Path,
    models: Sequence[str | Path] | None = None,
    method: str = "fedavg",
    *,
    options: Mapping[str, float] | None = None,
    model: str | None = None,
    allow_stale: bool = False,
) -> NextRound:
    """Merge the members' models and hand the result out as the next shared start.

    The new model lies in ``parts/rounds/`` and, numbered, in every member's folder. Interrupted anywhere, the same call
    does it again.

    One model file alone is handed out as it is, whatever it was trained from: so a team whose members began from
    different starts gets a shared one.

    Args:
        parts: The folder that ``split`` made.
        models: The members' files or patterns; the members' folders are searched when left out.
        method: A name of ``fedloom.merging.METHODS``, other than ``ensemble``; ``weighted`` has no place here.
        options: Of the method.
        model: The code of the model, for PyTorch factories.
        allow_stale: Also take models that were trained from another round's start.

    Raises:
        MergeError: The models were trained from another start than this round's.
        ArchitectureError: They do not fit the shared start.
        DataError: A folder or file is missing or damaged.
        UsageError: An unknown method, or one that has no place here.
    """
    if check_method(method).family == "ensemble":
        raise MergeError("an ensemble cannot be trained on: choose a method that gives one model, such as fedavg")
    if method == "weighted":
        raise UsageError("a round weighs its members by their samples: choose fedavg, or merge with weights first")
    team = Team.read(parts, model)
    found = without_rounds(model_files(models)) if models else _trained(team)
    first, vectors = read_vectors(found, model)
    check_same(team.model, first, str(team.path), str(found[0].path))
    watch = starts.Watch(first.layout)
    notes: tuple[str, ...]
    if len(found) == 1 < len(team.folders):
        merged, notes = Merged(next(vectors), (1.0,)), (f"{found[0].path} becomes everybody's start as it is",)
    else:
        _check_starts(team, found, allow_stale)
        merged = team.merge(method, [f.entry for f in found], map(watch.see, vectors), options)
        notes = _notes(found, watch)
    after = team.advance(merged, method, [f.path.name for f in found])
    command = members.read(team.folders[0]).train_command(team.folders[0])
    return NextRound(after.round, after.path, after.folders, command, (*notes, *merged.notes))


def _trained(team: Team) -> list[ModelFile]:
    """Find the file that each member trained, in its own folder."""
    paths = []
    for folder in team.folders:
        described = members.read(folder)
        path = described.trained(folder)
        if not path.is_file():
            raise DataError(
                f"{path} is missing: '{described.train_command(folder)}' makes it, or pass --models", file=str(path)
            )
        paths.append(path)
    return model_files(paths)


def _check_starts(team: Team, found: Sequence[ModelFile], allow_stale: bool) -> None:
    digest = sidecar.digest(team.model.vector())
    stale = [(f, f.sidecar) for f in found if f.sidecar and f.sidecar.start not in ("", digest)]
    if allow_stale or not stale:
        return
    (file, known), others = stale[0], [f.name for f, _ in stale[1:]]
    where = f"round {known.round}" if known.round != team.round else "a start of its own (--fresh-start?)"
    too = f" (likewise: {', '.join(others)})" if others else ""
    raise MergeError(
        f"{file.path} was not trained from the start of round {team.round}, but from {where}{too}; train again, or pass "
        "--allow-stale",
        file=str(file.path),
    )


def _notes(found: Sequence[ModelFile], watch: starts.Watch) -> tuple[str, ...]:
    """Say what the sidecars could not tell, and what the weights tell instead."""
    unknown = [f for f in found if not (f.sidecar and f.sidecar.start)]
    if not unknown:
        return ()
    others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    reason = unknown[0].reason or "its sidecar names no start"
    note = f"{unknown[0].path}{others}: {reason}, so its start could not be checked"
    verdict = watch.verdict(found)
    return (note,) if verdict.shared is not False else (note, verdict.evidence)


def _round_file(parts: Path, number: int, suffix: str) -> Path:
    return parts / members.ROUNDS / f"round_{number:03d}{suffix}"


__all__ = ["NextRound", "Team", "next_round"]
