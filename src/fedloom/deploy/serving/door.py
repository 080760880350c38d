"""Door: how a run is reached: its address, certificates, invitations and audit log; and its page, on the same port."""

from __future__ import annotations

import secrets as chance
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedloom import events, files
from fedloom.addresses import bound, is_loopback, joined, own_address, split
from fedloom.deploy.carrier.front import Front
from fedloom.deploy.carrier.greeting import CLIENTS, WEB
from fedloom.deploy.carrier.limits import Limits
from fedloom.deploy.carrier.transport_grpc import Listener, listen
from fedloom.deploy.serving import expulsion
from fedloom.deploy.serving.server import Server
from fedloom.deploy.trust import secret_files
from fedloom.deploy.trust.admission import Admission
from fedloom.deploy.trust.invitation import INSECURE, Invitation
from fedloom.deploy.trust.locking import alone
from fedloom.deploy.trust.tls import SERVER_FILE, Certificates
from fedloom.errors import DataError, UsageError

SECRETS, ADMISSION, ADDRESS, AUDIT = "server", "admission.json", "address.json", "audit.jsonl"
TOKEN = "dashboard.token"
INSIDE = "127.0.0.1:0"


@dataclass(frozen=True)
class Place:
    """Where a server listens.

    Attributes:
        listen: ``host:port``; port 0 for any that is free.
        name: What clients call this machine; found out when left out.
        insecure: No TLS, on this machine only.
        certificate: Your own certificate chain, as PEM; a self-signed authority is made when left out.
        key: Its private key, as PEM.
        dashboard: Whether the run's page is shown on the same port, to people with its token.
    """

    listen: str = "127.0.0.1:8443"
    name: str = ""
    insecure: bool = False
    certificate: Path | None = None
    key: Path | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for what contradicts itself; nothing has been written then."""
        host, port = split(self.listen)
        if self.dashboard:
            from fedloom.dashboard import needs

            needs.check()
        if self.insecure and not is_loopback(host):
            raise UsageError(f"{self.listen}: without TLS a server may listen on 127.0.0.1 only")
        if self.name:
            Invitation(self.name, port or 1, INSECURE if self.insecure else "0" * 64)
        if (self.certificate is None) != (self.key is None):
            raise UsageError("a certificate and its key go together: pass both --certificate and --key")
        if self.insecure and self.certificate is not None:
            raise UsageError("--insecure goes without --certificate and --key: leave it out")


@dataclass
class Door:
    """What a run's folder knows of how it is reached.

    Attributes:
        path: The folder.
        place: Where to listen.
        count: How many clients are waited for.
        say: Told what people should know.
        invited: Told the invitation.
        opened: Whether it listened already.
    """

    path: Path
    place: Place
    count: int
    say: Callable[[str], None]
    invited: Callable[[str], None] = lambda _: None
    opened: bool = field(default=False)

    @contextmanager
    def open(self, server: Server) -> Iterator[Callable[[int], None]]:
        """Listen while the block runs; see :data:`fedloom.deploy.serving.host.Listen`."""
        secrets, host = self.path / SECRETS, split(self.place.listen)[0]
        with ExitStack() as stack:
            stack.enter_context(alone(secrets, f"{self.path}: another 'fedloom serve' runs with this folder"))
            made, address = self._certificates(secrets), self._address(secrets)
            admission = Admission(secrets / ADMISSION)
            server.parted = admission.give_back
            stack.enter_context(expulsion.heard(secrets, admission, server.expel))
            log = stack.enter_context(AuditLog(self.path / AUDIT, self.say))
            if self.place.dashboard:
                heard, port = self._both(stack, server, admission, made, address, log)
            else:
                limits = Limits.of(self.count)
                heard = listen(
                    *(server, admission, address, made, limits), folder=secrets, audit=log, largest=server.largest
                )
                stack.callback(heard.stop)
                port = heard.port
            here = joined(host, port)
            files.write_json(secrets / ADDRESS, {"listen": here})
            self.opened = True
            self.say(f"listening on {here}")
            if self.place.dashboard:
                self.say(f"dashboard: {self._page_address(port)}")
            yield self._teller(heard, port, admission)

    def _both(
        self,
        stack: ExitStack,
        server: Server,
        admission: Admission,
        made: Certificates | None,
        address: str,
        log: Callable[[Mapping[str, Any]], None],
    ) -> tuple[Listener, int]:
        """Listen for clients and for browsers, behind one port."""
        from fedloom.dashboard.app import make
        from fedloom.dashboard.server import Background
        from fedloom.dashboard.sources import Board, FolderSource

        secrets, fronts = self.path / SECRETS, list[Front]()
        public = bound(*split(address))
        stack.callback(public.close)
        heard = listen(
            *(server, admission, INSIDE, made, Limits.of(self.count)),
            folder=secrets,
            audit=log,
            largest=server.largest,
            whence=lambda port: fronts[0].address(port) if fronts else "",
        )
        stack.callback(heard.stop)
        shown, key = (None, None) if made is None else (self.place.certificate, self.place.key)
        if made is not None and shown is None:
            shown = key = secrets / SERVER_FILE
        app = make(Board(more=[FolderSource(self.path)]), self._token())
        page = stack.enter_context(Background(app, bound(*split(INSIDE)), shown, key))
        fronts.append(Front(public, {WEB: page.port, CLIENTS: heard.port}))
        stack.callback(fronts[0].stop)
        return heard, fronts[0].port

    def _token(self) -> str:
        """Return what visitors of the page must show; it is made on the first start."""
        path = self.path / SECRETS / TOKEN
        found = secret_files.read(path)
        if found is None:
            found = chance.token_urlsafe(24).encode()
            secret_files.write(path, found)
        text = found.decode("ascii", "replace").strip()
        if len(text) < 16 or not all(c.isalnum() or c in "-_" for c in text):
            raise DataError(f"{path}: damaged; delete it to make a new one", file=str(path))
        return text

    def _page_address(self, port: int) -> str:
        return f"http{'' if self.place.insecure else 's'}://{joined(self._name(), port)}/?token={self._token()}"

    def _teller(self, heard: Listener, port: int, admission: Admission) -> Callable[[int], None]:
        invited: list[Invitation] = []
        gone = admission.expelled

        def tell(count: int) -> None:
            nonlocal gone
            left = self.count - count
            if left and not (invited and gone == admission.expelled):
                gone = admission.expelled
                invited[:] = [heard.invite(self._name(), uses=self.count if gone else left, port=port)]
                self.invited(invited[0].text())
            if left:
                self.say(f"waiting for {left} of {self.count} clients; each joins with:")
                self.say(f"  fedloom join {invited[0].text()} --data MY_DATA")
            else:
                self.say(f"all {self.count} clients are there")

        return tell

    def _address(self, secrets: Path) -> str:
        """Return where to listen: where the run did before, if any port will do."""
        address, port = split(self.place.listen)
        if port == 0 and (secrets / ADDRESS).is_file():
            before = str(files.read_json(secrets / ADDRESS).get("listen", ""))
            if split(before)[0] == address:
                return before
        return self.place.listen

    def _certificates(self, secrets: Path) -> Certificates | None:
        said = self.place
        if said.insecure:
            return None
        if said.certificate is None or said.key is None:
            return Certificates.own(secrets)
        return Certificates.given(said.key, said.certificate, self._name())

    def _name(self) -> str:
        address = split(self.place.listen)[0]
        if self.place.name or address not in ("0.0.0.0", "::"):
            return self.place.name or address
        return own_address()


class AuditLog:
    """The audit log: who called when, and with which bytes."""

    def __init__(self, path: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self._path, self._say, self._full = path, say, False
        try:
            self._file, self._lock = path.open("a", encoding="utf-8"), threading.Lock()
        except OSError as error:
            raise files.storage_error(path, error) from error

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._file.close()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take note of a call."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.write(events.line({"event": "call", "time": now, **row}))
                self._file.flush()
            except OSError as error:  # the run itself says when it cannot go on
                if not self._full:
                    self._say(str(files.storage_error(self._path, error)))
                self._full = True
