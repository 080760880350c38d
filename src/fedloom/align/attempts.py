"""Attempts: everything that is tried to make one model of members that were trained apart, scored as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fedloom import rng
from fedloom.align import matching
from fedloom.align.candidates import Candidate, merit
from fedloom.align.distil import distil
from fedloom.align.fisher import fisher
from fedloom.align.fusion import Goal, goals, least_squares, recalibrate, repair
from fedloom.align.probes import inversion, synthetic
from fedloom.align.regmean import regmean
from fedloom.align.soup import greedy_soup
from fedloom.align.stages import Sample, results, sample, stages, standard
from fedloom.align.symmetry.graph import Symmetry
from fedloom.models.model import Model
from fedloom.training.evaluate import predict
from fedloom.training.shard import Shard

SYNTHETIC = 1000
"""How many synthetic inputs are made where no others are given, and a quarter more to judge by."""

MATCHED = 1000
"""More inputs than this do not make the matching better."""

JUDGED = 500
"""At most so many inputs, and at most a fifth of them, are kept apart to judge by."""

POSITIONS = 40_000
"""How many positions of a convolution's results are fitted, 8 to 32 of every input."""

MEMORY = 1 << 29
"""Bytes that one layer's results may take while it is fitted: fewer inputs are used where they would take more."""

Rule = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Attempts:
    """What is known while a team is fused; every candidate is scored as it comes."""

    model: Model
    rows: list[Tensor]
    names: list[str]
    symmetry: Symmetry
    seed: int
    on_stage: Callable[[str], None]
    rule: Rule
    candidates: list[Candidate] = field(default_factory=list)
    seconds: float = 0.0
    objective: float = 0.0
    probe: str = ""
    judge: str = ""
    own: bool = True
    leaning: list[str] = field(default_factory=list)

    def prepare(self, x: Tensor | None, labels: Tensor | None, passes: int) -> None:
        """Settle the inputs to fit on and those to judge by, and what the members say of them."""
        self.on_stage("probe")
        self.own = x is not None
        if x is None:
            self._synthesise(passes)
        else:
            self._divide(x, labels)
        self.said = torch.stack([self._logits(row, self.judged) for row in self.rows])
        self.reference = self.said.softmax(2).mean(0).argmax(1) if self.truth is None else self.truth

    def _synthesise(self, passes: int) -> None:
        team = [replace(self.model, module=deepcopy(self.model.module)).load(row) for row in self.rows]
        made = synthetic.inputs(team, SYNTHETIC + SYNTHETIC // 4, rng.derive(self.seed, "probe"))
        made = inversion.towards_statistics(self.model, self.symmetry.trace, self.rows, made, passes, self.seed)
        self.fitted, self.judged = made[:SYNTHETIC], made[SYNTHETIC:]
        self.truth: Tensor | None = None
        self.known: Tensor | None = None
        self.probe = f"{SYNTHETIC:,} synthetic inputs, no data"
        self.judge = "agreement with the ensemble on synthetic inputs"

    def _divide(self, x: Tensor, labels: Tensor | None) -> None:
        order = torch.from_numpy(rng.stream(self.seed, "probe").permutation(len(x)))
        kept = min(JUDGED, len(x) // 5) or 1
        self.judged, self.fitted = x[order[:kept]], x[order[kept:]]
        self.truth, self.known = (None, None) if labels is None else (labels[order[:kept]], labels[order[kept:]])
        self.probe = f"{len(x):,} {'labelled' if labels is not None else 'unlabelled'} inputs"
        what = "accuracy" if labels is not None else "agreement with the ensemble"
        self.judge = f"{what} on {kept:,} inputs that were kept apart"

    def match(self, effort: str) -> None:
        """Bring the members' units into a common order: by responses, then by weights."""
        widest = max((group.size for group in self.symmetry.groups), default=0)
        slow = matching.seconds(widest)
        self.on_stage("matching" if slow < 1 else f"matching {widest:,} units, about {slow:.0f} s per assignment")
        began = time.perf_counter()
        seen = sample(self.symmetry.trace, self.fitted[:MATCHED], rng.derive(self.seed, "positions"))
        alike = matching.by_activations(self._responses(seen))
        starts: list[matching.Orders | None] = [alike.orders or None]
        if effort == "best":
            starts += [None, *([self._shuffled(i) for i in range(2)])]
        found = matching.best_of([partial(self._by_weights, k, start) for k, start in enumerate(starts)])
        self.aligned = torch.stack([self.symmetry.apply(r, o) for r, o in zip(self.rows, found.orders, strict=True)])
        self.objective, self.seconds = found.objective, time.perf_counter() - began

    def _by_weights(self, attempt: int, start: matching.Orders | None) -> matching.Matching:
        generator = torch.Generator().manual_seed(rng.derive(self.seed, "matching", attempt))
        return matching.by_weights(self.symmetry, self.rows, generator, start)

    def _shuffled(self, attempt: int) -> matching.Orders:
        generator = torch.Generator().manual_seed(rng.derive(self.seed, "start", attempt))
        return [self.symmetry.random(generator) for _ in self.rows]

    def _responses(self, seen: Sample) -> list[list[Tensor]]:
        """Return what the units of every group and member respond, standardised: float32 (m, units)."""
        features = [self._results(row, seen) for row in self.rows]
        made = []
        for group in self.symmetry.groups:
            taps = [(value, at[:, 0]) for value, at in group.taps if value in features[0]]
            # What no stage hands on (an embedding) is matched by its weights alone.
            nothing = [] if taps else [torch.zeros(1, group.size)]
            made.append([torch.cat([standard(f[value][:, at]) for value, at in taps] + nothing) for f in features])
        return made

    def try_merges(self, leanings: Sequence[float]) -> None:
        """Average as they are, aligned, repaired, and fitted."""
        traced, seed = self.symmetry.trace, rng.derive(self.seed, "fit")
        self.add("plain mean", "plain", lambda: self.rule(torch.stack(self.rows)))
        mean = self.rule(self.aligned)
        self.add("aligned mean", "merge", lambda: mean)
        inputs = self.fitted[: _affordable(self.symmetry, len(self.fitted))]
        self.sampled = sample(traced, inputs, seed, min(32, max(8, POSITIONS // len(inputs))))
        features = [self._results(row, self.sampled) for row in self.aligned]
        everyone = goals(features)
        self.add("REPAIR", "merge", lambda: self._fit(repair, mean, everyone))
        self.add("least squares", "merge", lambda: self._fit(least_squares, mean, everyone))
        most = self._central()
        own = goals([features[most]])
        for share in leanings:
            start = torch.lerp(mean, self.aligned[most], share)
            goal = {v: g if v == self._end else g.towards(own[v], share) for v, g in everyone.items()}
            name = f"least squares, {share:.0%} {self.names[most]}"
            self.leaning.append(name)
            self.add(name, "merge", partial(self._fit, least_squares, start, goal))

    def _central(self) -> int:
        """Return the member that agrees most with the ensemble."""
        shares = [self._judge(said)[0] for said in self.said]
        return max(range(len(shares)), key=lambda i: shares[i])

    @property
    def _end(self) -> int:
        return self.symmetry.trace.steps[-1].target

    def _fit(self, how: Callable[..., None], start: Tensor, goal: dict[int, Goal]) -> Tensor:
        self.model.load(start)
        how(self.model, self.symmetry.trace, self.sampled, goal)
        return self.model.vector()

    def try_others(self) -> None:
        """Try the other published ways to combine aligned members."""
        traced = self.symmetry.trace
        few = sample(traced, self.fitted[:MATCHED], rng.derive(self.seed, "fit"))
        self.add(
            "RegMean", "merge", lambda: self._recalibrated(regmean(self.model, self.symmetry, list(self.aligned), few))
        )
        self.add("Fisher", "merge", lambda: self._recalibrated(fisher(self.model, list(self.aligned), self.fitted)))
        soup = greedy_soup(list(self.aligned), lambda row: self._on_fitted(self._recalibrated(row)))
        kind = "merge" if len(soup.used) > 1 else "baseline"
        used = ", ".join(self.names[i] for i in soup.used)
        self.add("greedy soup", kind, lambda: self._recalibrated(soup.vector), note=f"made of {used}")

    def _recalibrated(self, vector: Tensor) -> Tensor:
        self.model.load(vector)
        recalibrate(self.model, self.symmetry.trace, self.fitted[:MATCHED])
        return self.model.vector()

    def try_distillation(self) -> None:
        """Train the best merge so far, for a few epochs, to say what the ensemble says."""
        start = max((c for c in self.candidates if c.name.startswith("least squares")), key=merit)
        teacher = torch.stack([self._logits(row, self.fitted) for row in self.rows]).mean(0)
        vector = start.vector
        assert vector is not None
        name = f"{start.name}, distillation"
        self.add(name, "merge", lambda: distil(self.model, vector, self.fitted, teacher, seed=self.seed))

    def eligible(self) -> list[Candidate]:
        """Return the candidates that may be chosen.

        Synthetic inputs favour what was fitted to them. With BatchNorm, where they resemble real ones least, only fits
        that lean on one member are trusted: on the development sets they were 0.8 to 12 points better.
        """
        merges = [c for c in self.candidates if c.kind == "merge"]
        if self.own or not any(step.op == "BatchNormalization" for step in self.symmetry.trace.steps):
            return merges
        return [c for c in merges if c.name in self.leaning] or merges

    def try_baselines(self) -> None:
        """Score what a merge has to beat."""
        self.on_stage("baselines")
        chances = self.said.softmax(2).mean(0)
        note = f"runs all {len(self.rows)} members"
        self.candidates.append(Candidate("ensemble", "baseline", *self._judge(chances.log()), 0.0, None, note))
        for name, row, said in zip(self.names, self.rows, self.said, strict=True):
            self.candidates.append(Candidate(name, "member", *self._judge(said), 0.0, row))
        if any(stage.last for stage in stages(self.symmetry.trace)):
            best = self._central()
            self.add(f"{self.names[best]}, new last layer", "baseline", lambda: self._new_head(self.rows[best]))

    def _new_head(self, row: Tensor) -> Tensor:
        mean = torch.stack([self._results(r, self.sampled)[self._end] for r in self.rows]).mean(0)
        wanted = Goal(mean, mean.mean(0), (mean - mean.mean(0)).square().mean(0).sqrt())
        return self._fit(least_squares, row, {self._end: wanted})

    def add(self, name: str, kind: str, make: Callable[[], Tensor], note: str = "") -> None:
        """Make a candidate, and score it."""
        self.on_stage(name)
        began = time.perf_counter()
        vector = make()
        seconds = time.perf_counter() - began
        scored = self._judge(self._logits(vector, self.judged))
        self.candidates.append(Candidate(name, kind, *scored, seconds, vector, note))

    def _judge(self, logits: Tensor) -> tuple[float, float]:
        """Return the share of right answers, and the mean cross-entropy, on the inputs that are judged by."""
        right = (logits.argmax(1) == self.reference).float().mean()
        return float(right), float(functional.cross_entropy(logits, self.reference))

    def _on_fitted(self, vector: Tensor) -> float:
        """Return the share of the first fitted inputs on which a model is right: as the labels or the ensemble say."""
        few = self.fitted[:JUDGED]
        if self.known is None:
            truth = torch.stack([self._logits(row, few) for row in self.rows]).softmax(2).mean(0).argmax(1)
        else:
            truth = self.known[:JUDGED]
        return float((self._logits(vector, few).argmax(1) == truth).float().mean())

    def _logits(self, vector: Tensor, x: Tensor) -> Tensor:
        shard = Shard("probe", x, torch.zeros(len(x), dtype=torch.int64), 1.0)
        return predict(self.model.load(vector), shard)

    def _results(self, vector: Tensor, seen: Sample) -> dict[int, Tensor]:
        return results(self.model.load(vector), self.symmetry.trace, seen)


def mean(rows: Tensor) -> Tensor:
    """Return the mean of aligned members (n, P)."""
    return rows.mean(0)


def _affordable(symmetry: Symmetry, n: int) -> int:
    """Return how many of n inputs can be fitted at once."""
    largest = max(torch.Size(shape).numel() for shape in symmetry.trace.shapes)
    return max(min(n, MEMORY // (4 * largest)), 1)
