"""Serve: a run over gRPC, as ``fedloom serve`` starts it."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from fedloom import events, files
from fedloom.config import Config
from fedloom.deploy.admission import Admission
from fedloom.deploy.host import NOTHING, USUAL, Terms, finished, host, served
from fedloom.deploy.invitation import Invitation
from fedloom.deploy.server import Server
from fedloom.deploy.settling import settled
from fedloom.deploy.tls import Certificates
from fedloom.deploy.transport_grpc import Listener, listen
from fedloom.errors import UsageError
from fedloom.simulation.folder import CONFIG
from fedloom.simulation.run import Run
from fedloom.simulation.simulate import base_of

SECRETS, ADMISSION, ADDRESS, AUDIT = "server", "admission.json", "address.json", "audit.jsonl"


@dataclass(frozen=True)
class Place:
    """Where a server listens.

    Attributes:
        listen: ``host:port``; port 0 for any that is free.
        name: What clients call this machine; found out when left out.
        insecure: No TLS, on this machine only.
        certificate: Your own certificate chain, as PEM; a self-signed authority is made when left out.
        key: Its private key, as PEM.
    """

    listen: str = "127.0.0.1:8443"
    name: str = ""
    insecure: bool = False
    certificate: Path | None = None
    key: Path | None = None


HERE = Place()


@dataclass
class _Door:
    """What a run's folder knows of how it is reached."""

    path: Path
    place: Place
    count: int
    say: Callable[[str], None]
    _said: int = field(default=-1)

    @contextmanager
    def open(self, server: Server) -> Iterator[Callable[[int], None]]:
        """Listen while the block runs; see :data:`fedloom.deploy.host.Listen`."""
        secrets = self.path / SECRETS
        admission = Admission(secrets / ADMISSION)
        with _Log(self.path / AUDIT) as log:
            heard = listen(
                server, admission, self._address(secrets), self._certificates(secrets), folder=secrets, audit=log
            )
            try:
                files.write_json(secrets / ADDRESS, {"listen": f"{_split(self.place.listen)[0]}:{heard.port}"})
                self.say(f"listening on {_split(self.place.listen)[0]}:{heard.port}")
                yield self._teller(heard)
            finally:
                heard.stop()

    def _teller(self, heard: Listener) -> Callable[[int], None]:
        invited: list[Invitation] = []

        def tell(count: int) -> None:
            left = self.count - count
            if left and not invited:
                invited.append(heard.invite(self._name(), uses=left))
            if left:
                self.say(f"waiting for {left} of {self.count} clients; each joins with:")
                self.say(f"  fedloom join {invited[0].text()} --data MY_DATA")
            else:
                self.say(f"all {self.count} clients are there")

        return tell

    def _address(self, secrets: Path) -> str:
        """Return where to listen: where the run did before, if any port will do."""
        address, port = _split(self.place.listen)
        if port == 0 and (secrets / ADDRESS).is_file():
            before = str(files.read_json(secrets / ADDRESS).get("listen", ""))
            if _split(before)[0] == address:
                return before
        return self.place.listen

    def _certificates(self, secrets: Path) -> Certificates | None:
        said = self.place
        if said.insecure:
            return None
        if said.certificate is None or said.key is None:
            if said.certificate or said.key:
                raise UsageError("a certificate and its key go together: pass both --certificate and --key")
            return Certificates.own(secrets)
        return Certificates.given(said.key, said.certificate)

    def _name(self) -> str:
        address = _split(self.place.listen)[0]
        if self.place.name or address not in ("0.0.0.0", "::", "[::]"):
            return self.place.name or address.removeprefix("[").removesuffix("]")
        return _own_address()


class _Log:
    """The audit log: who called when, and with which bytes."""

    def __init__(self, path: Path) -> None:
        self._file, self._lock = path.open("a", encoding="utf-8"), threading.Lock()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._file.close()

    def __call__(self, row: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            if not self._file.closed:
                self._file.write(events.line({"event": "call", "time": now, **row}))
                self._file.flush()


def serve(
    what: str | Path | Config,
    place: Place = HERE,
    terms: Terms = USUAL,
    *,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
    progress: bool = True,
    **flags: Any,
) -> Run:
    """Coordinate a run whose clients join over the network. Started again with the same words, it goes on where it was.

    Args:
        what: A TOML file, the folder of a run that was served, a data set or a ``Config``.
        place: Where to listen.
        terms: How long rounds wait, what is evaluated on.
        out: The folder to write; ``runs/NAME-served-N`` when left out.
        say: Told what people should know, a line at a time.
        progress: Show how it gets on.
        **flags: As for :func:`fedloom.simulate`.

    Returns:
        The run: its folder, records and models.

    Raises:
        UsageError: A configuration that contradicts itself, or needs what a network does not have.
        MissingDependency: ``grpcio`` or ``cryptography`` is not installed.
        TrainingError: A client cannot take part.
    """
    base, _ = base_of(what, chosen=[name for name, value in flags.items() if value is not None])
    config = served(base.override(**flags))
    if config.data.source == NOTHING and terms.test is None:
        say("note: the server has no data, so that no round is evaluated (pass --test to give it some)")
    path = Path(out) if out is not None else _free(what, config)
    door = _Door(path, place, config.data.clients, say)
    with _ended_by_sigterm(), settled():
        return host(config, path, door.open, terms, say=say, progress=progress)


def _free(what: str | Path | Config, config: Config) -> Path:
    """Return the folder of the run: one that was begun and is not over is gone on with."""
    if isinstance(what, str | Path) and (Path(what) / CONFIG).is_file():
        return Path(what)
    stem = Path(what).stem if isinstance(what, str | Path) else config.algorithm.name
    number = 1
    while finished(path := Path("runs") / f"{stem}-served-{number}"):
        number += 1
    return path


def _split(address: str) -> tuple[str, int]:
    """Split ``host:port``.

    Raises:
        UsageError: There is no port.
    """
    name, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not name:
        raise UsageError(f"--listen {address}: an address and a port are expected, such as 0.0.0.0:8443")
    return name, int(port)


def _own_address() -> str:
    """Return the address that others in this network know this machine by; nothing is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C would: what is open goes on when the server is started again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal wants it
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
