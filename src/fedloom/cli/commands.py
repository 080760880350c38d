"""The commands of the journey of the files. No arithmetic: each parses, calls one function and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedloom.cli import dashboard, deployment, leakage, options, show, simulation
from fedloom.cli.options import PATH
from fedloom.errors import unknown


@click.command(short_help="Split data into a folder per member, with one shared start.")
@click.argument("data")
@click.option("-n", "--clients", type=int, help="The number of members.")
@click.option("--names", help="Their names, separated by commas.")
@click.option(
    "--scheme", default="stratified", show_default=True, help="How to split; 'fedloom list schemes' explains."
)
@click.option("--out", type=PATH, default="parts", show_default=True, help="The folder to make.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The seed of the split and of the initial weights."
)
@click.option("--model", help="A zoo name, file.py:function, module:name or a Keras file; 'fedloom list models'.")
@click.option("--format", "model_format", help="The format of the model files: keras, h5, safetensors or pt.")
@click.option("--alpha", type=float, help="dirichlet: the concentration; small is skewed.")
@click.option("--per-client", type=int, help="shards, labels: how many of them per client.")
@click.option("--sizes", "distribution", help="quantity: lognormal or powerlaw.")
@click.option("--sigma", type=float, help="quantity, lognormal: the spread.")
@click.option("--exponent", type=float, help="quantity, powerlaw: the exponent.")
@click.option("--min-size", type=int, help="dirichlet, quantity: the fewest samples of a client.")
@click.option("--column", help="by-column: the column that says whose a row is.")
@click.option(
    "--test-fraction", type=float, default=0.2, show_default=True, help="Held out when the data bring no test."
)
@click.option("--overwrite", is_flag=True, help="Replace a folder that an earlier split made.")
@options.data_dir
def split(data: str, names: str | None, column: str | None, **given: Any) -> None:
    """Split DATA into one folder per member, each with the same initial model.

    DATA is digits, mnist, fashion-mnist or a path: data.npz, x.npy,y.npy, data.csv:label=species,
    data.parquet:label=species, data.h5:x=images,y=labels, or a folder of images per class.
    """
    from fedloom.offline.split import split as run
    from fedloom.report import class_table

    chosen = {name: given.pop(name) for name in _SCHEME_OPTIONS}
    made = run(
        options.with_column(data, column),
        given.pop("clients"),
        names=options.several(names),
        options={name: value for name, value in chosen.items() if value is not None},
        **given,
    )
    show.table(class_table(made.class_counts, made.class_names))
    show.line(f"{len(made.members)} folders in {made.out}; every one holds the same start ({made.model})")
    show.line(f"picture: {made.picture}")
    show.line(f"next:    {made.command}")


_SCHEME_OPTIONS = ("alpha", "per_client", "distribution", "sigma", "exponent", "min_size")


@click.command(short_help="Train the shared model on one member's data.")
@click.argument("folder", type=PATH)
@click.option("--epochs", type=int, default=5, show_default=True, help="Passes over the member's samples.")
@click.option("--optimizer", default="adam", show_default=True, help="sgd, adam or adamw.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="0 for all samples in one step.")
@click.option("--momentum", type=float, default=0.0, show_default=True, help="The momentum of SGD, 0 to 1.")
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Pull of the weights towards 0.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--prox-mu", type=float, default=0.0, show_default=True, help="FedProx: the pull to the start.")
@click.option("--fresh-start", is_flag=True, help="Random weights of its own; such models cannot be averaged.")
@click.option("--out", type=PATH, help="The model file: .keras, .h5, .safetensors or .pt.")
@click.option("--seed", type=int, help="The seed of batch orders and dropout; the split's when left out.")
@options.model_code
@options.device
@options.quiet
def train(folder: Path, quiet: bool, **given: Any) -> None:
    """Train the shared model on the data in FOLDER, a member's folder."""
    from fedloom.offline.train import train as run

    made = run(folder, progress=not quiet, **given)
    show.line(made.report)
    show.notes(made.notes)
    show.line(f"test accuracy {made.accuracy:.2%}   {made.path}")


@click.command()
@click.argument("models", nargs=-1, required=True)
@options.method
@click.option("--out", type=PATH, required=True, help="The file to write; its suffix chooses the format.")
@click.option(
    "--weights", help="For weighted: shares (0.6,0.4,...), whole numbers (240,160,...), or 'accuracy' with --data."
)
@click.option("--data", help="Validation data with labels: for --weights accuracy, and to judge aligned merges by.")
@click.option("--previous", type=PATH, help="The global model that the members started from.")
@click.option(
    "--align", default="auto", show_default=True, help="Members without a shared start: auto, always or none."
)
@click.option("--effort", default="quick", show_default=True, help="How much alignment tries: quick or best.")
@options.unlabelled
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of alignment.")
@options.rule
@options.model_code
@options.data_dir
@options.quiet
def merge(
    models: tuple[str, ...],
    method: str,
    weights: str | None,
    settings: tuple[str, ...],
    quiet: bool,
    **given: Any,
) -> None:
    """Merge MODELS, the members' model files, into one.

    Models that were trained from different random starts are aligned first: their hidden units are brought into a
    common order, and the merge is fitted to what the members say, on --unlabelled inputs or on synthetic ones.
    """
    from fedloom.offline.merge import merge as run

    chosen, values = options.numbers_or_word(weights), options.settings_of(settings)
    made = run(models, method, weights=chosen, options=values, progress=not quiet, **given)
    if made.aligned:
        show.candidates(made.aligned.fused)
    show.findings(made.findings)
    if made.weights:
        shares = zip(made.members, made.weights, strict=True)
        show.line("weights: " + ", ".join(f"{Path(name).stem} {weight:.3f}" for name, weight in shares))
    show.line(f"{made.method} of {len(made.members)} models: {made.out}")


@click.command(short_help="Compare members, methods and central training.")
@click.argument("models", nargs=-1, required=True)
@click.option("--data", required=True, help="The test set: a name, a path, or x_test.npy,y_test.npy.")
@click.option("--train-central", "central", type=PATH, help="The split's folder: train on all parts together, too.")
@click.option("--methods", help="The methods to try, separated by commas; all when left out.")
@click.option("--start", type=PATH, help="The model that the members started from.")
@click.option(
    "--align", default="auto", show_default=True, help="Align members first: auto (no shared start), always, none."
)
@options.unlabelled
@click.option("--out", type=PATH, default="comparison", show_default=True, help="The folder of the report.")
@options.model_code
@options.data_dir
@options.device
@options.quiet
def compare(models: tuple[str, ...], methods: str | None, quiet: bool, **given: Any) -> None:
    """Compare MODELS, every way to merge them, and central training, on the same test set."""
    from fedloom.offline.compare import compare as run

    made = run(models, methods=options.several(methods), progress=not quiet, **given)
    show.comparison(made)
    show.line(f"report: {given['out'] / 'report.html'}")


@click.command(short_help="Say what a merged model really is.")
@click.argument("model", metavar="GLOBAL", type=PATH)
@click.argument("members", nargs=-1, required=True)
@click.option("--model", "model_code", help="The model's code (file.py:function) where a file holds only arrays.")
def explain(model: Path, members: tuple[str, ...], model_code: str | None) -> None:
    """Say what GLOBAL, a merged model, is made of: its best combination of MEMBERS, the members' model files."""
    from fedloom.offline.explain import explain as run

    show.explanation(run(model, members, model_code=model_code))


@click.command("next-round", short_help="Merge, and hand the result out as the next shared start.")
@click.argument("parts", type=PATH)
@click.option("--models", multiple=True, help="The members' files; their folders are searched when left out.")
@click.argument("more", nargs=-1, metavar="")
@options.method
@click.option("--allow-stale", is_flag=True, help="Also take models from another round's start.")
@options.rule
@options.model_code
def next_round(
    parts: Path, models: tuple[str, ...], more: tuple[str, ...], settings: tuple[str, ...], **given: Any
) -> None:
    """Merge the members' models and hand the result out as the next shared start of PARTS."""
    from fedloom.offline.next_round import next_round as run

    # A shell turns "--models *.keras" into one value of the option and more arguments.
    made = run(parts, [*models, *more] or None, options=options.settings_of(settings), **given)
    show.notes(made.notes)
    show.line(f"round {made.round}: {made.global_model}, and as start in {len(made.folders)} folders")
    show.line(f"next:    {made.command}")


@click.command(short_help="Show the whole journey in about a minute.")
@click.option("--dataset", default="digits", show_default=True, help="digits, mnist or fashion-mnist.")
@click.option("--out", type=PATH, default="fedloom-demo", show_default=True, help="The folder to write.")
@click.option("--model", help="A zoo name.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of everything.")
@options.data_dir
@options.device
@options.quiet
def demo(quiet: bool, **given: Any) -> None:
    """Show the whole journey: six members, every method, ten rounds, a report."""
    from fedloom.offline.demo import demo as run

    made = run(progress=not quiet, **given)
    show.comparison(made.comparison)
    show.line(f"report: {made.report}")


_LISTS = ("methods", "schemes", "models", "algorithms", "attacks", "networks", "plans", "codecs", "privacy")


@click.command("list")
@click.argument("what", metavar="|".join(_LISTS))
def listing(what: str) -> None:
    """List what can be named: merging methods, schemes, models; algorithms, attacks, networks, plans, codecs, privacy."""
    if what not in _LISTS:
        raise unknown("list", what, _LISTS)
    from fedloom.cli import catalogue

    show.table(catalogue.table(what))


ALL = (
    split,
    train,
    merge,
    explain,
    compare,
    next_round,
    *simulation.ALL,
    *deployment.ALL,
    *dashboard.ALL,
    *leakage.ALL,
    demo,
    listing,
)
