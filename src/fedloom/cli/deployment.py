"""The commands of a federation over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedloom.cli import fleet, options, show
from fedloom.cli.options import PATH
from fedloom.cli.simulation import settings_of
from fedloom.errors import UsageError

_SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the algorithm (mu=0.1), or any key with its table (run.rounds=5).",
)
INTERRUPTED = 130


@click.command(short_help="Coordinate a federation over the network.")
@click.argument("what", metavar="EXP.TOML|FOLDER")
@click.option("--listen", default="127.0.0.1:8443", show_default=True, help="Address and port; 0.0.0.0:8443 for all.")
@click.option("--address", default="", help="What clients call this machine. [its address in the network]")
@click.option("--clients", metavar="N", help="The number of clients, in place of the file's.")
@click.option("--out", type=PATH, help="The folder of the run. [runs/NAME-served-N]")
@click.option(
    "--test", metavar="DATA", help="What to evaluate on; 'none' for nothing. [the test set of the file's data]"
)
@click.option(
    "--deadline",
    type=float,
    default=600.0,
    show_default=True,
    help="Seconds that a round waits, and getting ready before the first; 0 for as long as it takes.",
)
@click.option(
    "--away", type=float, default=60.0, show_default=True, help="Seconds of silence of a client that is lost."
)
@click.option("--quorum", type=int, default=1, show_default=True, help="The fewest updates of a round.")
@click.option("--enough", type=int, default=0, help="Go on as soon as a round has so many updates. [all]")
@click.option(
    "--late",
    type=click.Choice(["refuse", "buffer"]),
    default="refuse",
    show_default=True,
    help="Late updates: refuse them, or count them in the round that is open.",
)
@click.option("--log", metavar="NAME", help="Write every round to tensorboard or mlflow, too.")
@click.option("--norm-bound", type=float, help="The longest update that is taken, in L2 norm.")
@click.option("--dry-run", is_flag=True, help="Every client trains one batch and reports, before round 1.")
@click.option("--insecure", is_flag=True, help="No TLS; on this machine only.")
@click.option("--certificate", type=PATH, help="Your own certificate chain (PEM).")
@click.option("--key", type=PATH, help="Its private key (PEM).")
@click.option("--dashboard", is_flag=True, help="Show the run's page on the same port, to people with its token.")
@fleet.engine
@fleet.superlink
@_SET
@options.data_dir
@options.quiet
def serve(
    what: str, settings: tuple[str, ...], quiet: bool, clients: str | None, engine: str, superlink: str, **given: Any
) -> None:
    """Coordinate the run of an experiment file; clients train on their own machines, and their data stay there.

    It prints the line that clients join with. Started again with the same words after a crash, it goes on with the round
    that was interrupted.

    \b
    fedloom serve exp.toml --listen 0.0.0.0:8443
    fedloom serve exp.toml --clients 4 --deadline 3600 --quorum 3
    fedloom serve exp.toml --engine flower --superlink production
    """  # noqa: D301 - click knows a paragraph that keeps its lines by this character
    from fedloom.deploy.serving.frugal import frugal
    from fedloom.deploy.serving.host import Terms
    from fedloom.deploy.serving.patience import Patience
    from fedloom.deploy.serving.serve import Place
    from fedloom.deploy.serving.serve import serve as run

    if superlink and engine != fleet.FLOWER:
        raise UsageError("--superlink goes with --engine flower")
    frugal()
    deadline = float("inf") if given["deadline"] == 0 else given["deadline"]
    patience = Patience(deadline, given["away"], given["quorum"], given["enough"], given["late"])
    longest = float("inf") if given["norm_bound"] is None else given["norm_bound"]
    terms = Terms(patience, longest, given["test"], given["dry_run"], given["data_dir"])
    place = Place(
        *(given[name] for name in ("listen", "address", "insecure", "certificate", "key", "dashboard")),
    )
    flags = settings_of(settings) | {"clients": clients, "log": given["log"]}
    try:
        if engine == fleet.FLOWER:
            fleet.serve(what, superlink, terms, given["out"], flags)
            return
        made = run(what, place, terms, out=given["out"], say=show.line, progress=not quiet, **flags)
    except KeyboardInterrupt:
        show.line("stopped; the same command goes on")
        raise click.exceptions.Exit(INTERRUPTED) from None
    for text in made.lines():
        show.line(text)
    if made.stopped == "interrupted":
        show.line(f"stopped after round {len(made.records)}; the same command goes on")
        raise click.exceptions.Exit(INTERRUPTED)


@click.command(short_help="Take part in a federation over the network.")
@click.argument("invitation", required=False)
@click.option("--data", required=True, metavar="DATA", help="Your samples: data.npz, data.csv:label=y, a folder, ...")
@click.option("--name", help="What to be called. [your user name]")
@click.option("--yes", is_flag=True, help="Agree without being asked, for services.")
@click.option("--state", type=PATH, help="The folder for your key and your log. [~/.fedloom/NAME]")
@click.option("--number", type=int, help="The number among the clients to ask for.")
@click.option("--model", help="The model's code (file.py:function or module:function), where the run needs it.")
@click.option(
    "--authority", type=PATH, help="Your organisation's authority (PEM), where the server has its certificate."
)
@click.option("--patience", type=float, default=3600.0, show_default=True, help="Seconds to wait for a lost server.")
@fleet.engine
@options.device
@options.data_dir
@options.quiet
def join(invitation: str | None, data: str, yes: bool, quiet: bool, patience: float, engine: str, **given: Any) -> None:
    """Train for a run on this machine, with your own DATA, which stay here.

    INVITATION is what 'fedloom serve' printed. You are shown what is trained, with which privacy, and what leaves this
    machine, and asked before anything begins. With --engine flower there is no invitation, and this machine's SuperNode
    trains.

    \b
    fedloom join 192.168.1.7:8443/... --data my_part.npz
    fedloom join 192.168.1.7:8443/... --data parts/ana --name ana --yes
    fedloom join --engine flower --data my_part.npz --state /srv/fedloom
    """  # noqa: D301 - click knows a paragraph that keeps its lines by this character
    from fedloom.deploy.joining.agreement import Agreement
    from fedloom.deploy.joining.client import Manners
    from fedloom.deploy.joining.join import join as run

    def agree(found: Agreement, lines: list[str] | None = None) -> bool:
        for text in lines or found.lines():
            show.line(text)
        if yes:
            return True
        try:
            return click.confirm("take part?", default=False)
        except click.Abort:  # Ctrl-C, or nobody is there to answer
            show.line()
            return False

    def say(text: str) -> None:
        if not quiet:
            show.line(text)

    if not patience >= 0:
        raise UsageError(f"--patience {patience:g}: seconds are expected, 0 or more")
    try:
        if engine == fleet.FLOWER:
            fleet.join(data, agree, patience, given)
            return
        if invitation is None:
            raise UsageError("an invitation is missing: copy the line that 'fedloom serve' printed")
        folder: Path | None = given.pop("state")
        reason = run(invitation, data, agree=agree, state=folder, manners=Manners(patience=patience), say=say, **given)
    except KeyboardInterrupt:
        show.line("stopped; the same command joins again")
        raise click.exceptions.Exit(INTERRUPTED) from None
    show.line(f"over: {reason}")


@click.command(short_help="Send a client of a served run away for good.")
@click.argument("run", type=PATH)
@click.argument("name")
def expel(run: Path, name: str) -> None:
    """Send the client NAME of the served run RUN away for good, on the machine that serves it.

    A server that runs does so within a second, and prints a new invitation while places are free; the one before is void.
    Rounds go on without the client, as they do without one that has left.

    \b
    fedloom expel runs/exp-served-1 ana
    """  # noqa: D301 - click knows a paragraph that keeps its lines by this character
    from fedloom.deploy.serving.door import ADMISSION, SECRETS
    from fedloom.deploy.serving.expulsion import ask

    ask(run / SECRETS, run / SECRETS / ADMISSION, name)
    show.line(f"{name} is sent away, at the latest when the run is served again")


ALL = (serve, join, expel)
