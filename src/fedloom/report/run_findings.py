"""What happened in a run, in plain words, and what may help; only what the log shows is said."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean
from typing import Final

from fedloom.events import number
from fedloom.records import RoundRecord
from fedloom.report import words
from fedloom.report.comparison import Finding
from fedloom.report.run_protected import protected
from fedloom.report.run_reading import RunLog
from fedloom.report.run_words import KIND_WORDS, client, listed, size

ORDER: Final = ("problem", "warning", "good", "info")
"""Levels of findings, the most serious first."""
FALL: Final = 0.02
JUMP: Final = 0.03
UNFAIR: Final = 0.2
RISING: Final = 0.005
LITTLE: Final = 0.5
_FEW: Final = 10
_SKEWED: Final = ("labels", "shards", "dirichlet")


def explain(run: RunLog) -> list[Finding]:
    """Say what the log of a run shows; the most serious comes first."""
    told = [*_unfinished(run), *_broken(run), *_learning(run), *_target(run), *_clients(run), *_failures(run)]
    told += [*protected(run), *_spread(run), *_time(run), *_log(run)]
    return sorted(told, key=lambda finding: ORDER.index(finding.level))


def _unfinished(run: RunLog) -> Iterator[Finding]:
    if run.end:
        return
    over = (
        f"{len(run.rounds)} of {words.many(run.planned, 'round')}"
        if run.planned
        else words.many(len(run.rounds), "round")
    )
    text = (
        f"The log holds {over} and no end: the run still goes on, or was stopped. Started again with --resume it "
        "goes on from its last checkpoint, and ends with the same numbers as if nothing had happened."
    )
    command = words.command("fedloom", "simulate", str(run.folder), "--resume")
    yield Finding("warning", "The run is not finished", text, command)


def _broken(run: RunLog) -> Iterator[Finding]:
    """Report a global model whose loss is no number any more."""
    wrong = [r.round for r in run.evaluated if not math.isfinite(r.loss)]
    if wrong:
        text = (
            "Its loss is not a number any more: the weights have grown out of all bounds. A smaller local learning rate "
            "(--lr), fewer local epochs or a smaller server learning rate prevent that."
        )
        yield Finding("problem", f"The global model broke down in round {wrong[0]}", text)


def _learning(run: RunLog) -> Iterator[Finding]:
    final, best = run.final, run.best
    if final is None or best is None or run.alone:
        return
    if best.accuracy < LITTLE and len(run.rounds) >= _FEW:
        yield _little(run, best)
        return
    if best.accuracy - final.accuracy > FALL:
        lost = f"{100 * (best.accuracy - final.accuracy):.1f} points"
        text = (
            f"It reached {words.percent(best.accuracy)} in round {best.round} and ended at {words.percent(final.accuracy)}, "
            f"{lost} lower. The best model is kept in the run's folder as best.*. A learning rate that shrinks over the "
            "rounds (lr_decay), fewer local epochs or more clients per round make the end steadier."
        )
        yield Finding("warning", "The accuracy fell after its best round", text)
    elif (gain := _gain(run)) > RISING:
        text = (
            f"Over the last fifth of the rounds the accuracy still rose by {100 * gain:.1f} points. More rounds will "
            "probably bring more: resume the run with a larger number of --rounds."
        )
        yield Finding("info", "It was still getting better", text)
    if (jump := _jump(run)) > JUMP:
        skewed = str(run.setting("data", "scheme", "")).startswith(_SKEWED)
        why = (
            "The clients hold different classes, so every round's choice of clients pulls another way. "
            if skewed
            else ""
        )
        text = (
            f"Near the end it changes by {100 * jump:.1f} points on average from one evaluation to the next. {why}Do not "
            "compare two runs by their last rounds alone; more clients per round or a smaller learning rate calm it down."
        )
        yield Finding("info", "The accuracy jumps from round to round", text)


def _little(run: RunLog, best: RoundRecord) -> Finding:
    text = f"After {words.many(len(run.rounds), 'round')} it is right in only {words.percent(best.accuracy)} of all cases. "
    skewed = str(run.setting("data", "scheme", "")).startswith(_SKEWED)
    if run.algorithm == "scaffold" and skewed:
        text += (
            "SCAFFOLD corrects each client by a memory of its last gradients; where every client holds few classes and comes "
            "by rarely, that memory is old and points the wrong way. This is a known weakness, and need not be a fault of "
            "this run: the non-IID benchmark of Li et al., as reproduced with Flower, has 33.80 % for it on Fashion-MNIST "
            "with two classes per client, and 78.10 % for FedAvg. "
            "A smaller learning rate, fewer local epochs, more clients per round, or FedAvg help."
        )
    else:
        text += "Try another learning rate first (a tenth, or three times as much), then more local epochs."
    return Finding("problem", "The global model has learned little", text)


def _gain(run: RunLog) -> float:
    """Return how much the accuracy rose over the last fifth of the rounds, as means of its first and last halves."""
    last = [r.accuracy for r in run.evaluated[-max(4, len(run.evaluated) // 5) :]]
    if len(run.evaluated) < _FEW:
        return 0.0
    half = len(last) // 2
    return fmean(last[half:]) - fmean(last[:half])


def _jump(run: RunLog) -> float:
    """Return the mean change between evaluations over the last third of the rounds."""
    last = [r.accuracy for r in run.evaluated[-max(5, len(run.evaluated) // 3) :]]
    if len(run.evaluated) < _FEW:
        return 0.0
    return fmean(abs(b - a) for a, b in pairwise(last))


def _target(run: RunLog) -> Iterator[Finding]:
    if not math.isfinite(run.target) or run.best is None or run.alone:
        return
    goal = words.percent(run.target)
    if run.reached is not None:
        i = run.rounds.index(run.reached)
        extra = f", after {size(run.traffic[i])} were sent" if run.traffic[i] else ""
        extra += f" and {words.duration(run.reached.clock)} of simulated time" if run.reached.clock else ""
        yield Finding(
            "good",
            f"The target of {goal} was reached in round {run.reached.round}",
            f"That is the first evaluation at {goal} or more{extra}.",
        )
        return
    text = (
        f"The best round reached {words.percent(run.best.accuracy)}. More rounds (--rounds), more clients per round "
        "(--per-round), more local work (--epochs) or another learning rate (--lr) may do it."
    )
    yield Finding("warning", f"The target of {goal} was not reached", text)


def _clients(run: RunLog) -> Iterator[Finding]:
    """Name the clients that diverged, and the rounds without any update."""
    diverged = run.failed().get("diverged", {})
    if diverged:
        often = sorted(diverged, key=lambda name: -len(diverged[name]))
        named = listed([f"{client(name)} ({_in_rounds(diverged[name])})" for name in often])
        text = (
            f"Their weights or losses became too large for a number, and their updates were left out: {named}. Usually the "
            "learning rate is too high for the data that they hold: lower --lr, or look at their samples."
        )
        yield Finding("problem", f"{words.many(len(diverged), 'client')} diverged", text)
    empty = [r.round for r in run.rounds if not r.clients]
    if empty:
        text = (
            f"In {_in_rounds(empty)} not one update arrived, so the model stayed as it was. More clients per round, some in "
            "reserve (over_selection) or a later deadline make that rarer."
        )
        yield Finding("warning", f"{words.many(len(empty), 'round')} had nothing to merge", text)


def _failures(run: RunLog) -> Iterator[Finding]:
    found = {kind: who for kind, who in run.failed().items() if kind != "diverged"}
    asked = sum(r.asked for r in run.rounds)
    if not found:
        return
    counts = {kind: sum(map(len, who.values())) for kind, who in found.items()}
    named = listed([f"{n:,} {KIND_WORDS.get(kind, kind)}" for kind, n in counts.items()], 8)
    text = f"Of {words.many(asked, 'request')} to clients, {named}. The rounds went on without them."
    if reasons := _refusals(run):
        text += f" The server's reason for refusing: {reasons}."
    missing = sum(n for kind, n in counts.items() if kind != "surplus")
    if not missing:
        yield Finding("info", "Clients were asked in reserve", text)
        return
    level = "warning" if asked and missing > asked / 3 else "info"
    yield Finding(level, f"{words.many(missing, 'time')} a client sent nothing that could be used", text)


def _refusals(run: RunLog) -> str:
    return next((f.reason.rstrip(".") for r in run.rounds for f in r.failures if f.kind == "refused"), "")


def _spread(run: RunLog) -> Iterator[Finding]:
    if run.alone:
        text = (
            "Every client trains a model of its own on its own samples. The global model stays as it was at the start, so "
            f"only the clients' own models count{_advice(run)}."
        )
        yield Finding("info", "Nothing is shared in this run", text)
    if not run.spreads:
        return
    if run.own and run.at_home and not run.alone:
        own, shared = run.own[-1], run.at_home[-1]
        text = (
            f"On samples that the clients kept apart their own models have {words.percent(own.mean)} on average, the global "
            f"model {words.percent(shared.mean)}. A client's own samples hold few classes when the data are skewed, which "
            "makes them easier for a model of its own."
        )
        yield Finding("info", f"The clients' own models do {'better' if own.mean > shared.mean else 'no better'}", text)
    last = (run.own or run.at_home)[-1]
    if last.mean - last.worst > UNFAIR:
        text = (
            f"In round {last.round} the clients have {words.percent(last.mean)} on average, the worst tenth only "
            f"{words.percent(last.worst)}. A mean over all hides them: q-FedAvg (q-fedavg) gives weak clients more weight, "
            "and personal models (ditto, fedper, fedrep) fit each client."
        )
        yield Finding("warning", "Some clients are left behind", text)


def _advice(run: RunLog) -> str:
    """Say how to see the clients' own models, where nothing shows them yet."""
    if run.own:
        return ""
    if number(run.setting("data", "holdout")) > 0:
        return ": they are evaluated after the last round, and every few rounds with clients_every"
    return ": set holdout, such as 0.2, to see how good they are"


def _time(run: RunLog) -> Iterator[Finding]:
    training = math.fsum(r.training_seconds for r in run.rounds)
    evaluation = math.fsum(r.evaluation_seconds for r in run.rounds)
    if evaluation > training > 0 and evaluation > 2:
        text = (
            f"Evaluating took {words.duration(evaluation)}, training {words.duration(training)}. Evaluate every few rounds "
            "only (--evaluate-every)."
        )
        yield Finding("info", "Evaluation took longer than training", text)


def _log(run: RunLog) -> Iterator[Finding]:
    if run.damaged:
        text = (
            "They are left out of this page. One that is cut off at the end means that the run was stopped as it wrote."
        )
        yield Finding("info", f"{words.many(run.damaged, 'line')} of the log could not be read", text)
    if run.rounds and not run.config:
        yield Finding(
            "info",
            "The configuration could not be read",
            "config.toml is missing or damaged, so settings are not shown.",
        )


def _in_rounds(rounds: list[int]) -> str:
    return f"round{'s' if len(rounds) > 1 else ''} {listed([str(r) for r in rounds], 4).replace('others', 'more')}"
