"""Who may take part: a first time by invitation, from then on by key. A name belongs to one key for good."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
from pathlib import Path
from typing import Any

from fedloom import files
from fedloom.deploy.seam import Refused
from fedloom.deploy.trust.identity import KEY
from fedloom.deploy.trust.invitation import TOKEN
from fedloom.errors import DataError, UsageError

_NAME = re.compile(r"\w[\w .@+-]{0,39}")


class Admission:
    """The list of members and of open invitations, in a file; tokens are kept as their SHA-256 only.

    Args:
        path: The file; it is made on the first change.

    Raises:
        DataError: The file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        self._members: dict[str, str] = {}
        self._open: dict[str, int] = {}
        self._expelled: set[str] = set()
        self._used: dict[str, str] = {}
        if self._path.exists():
            self._load(files.read_json(self._path))

    @property
    def members(self) -> dict[str, bytes]:
        """Members' public keys by name."""
        with self._lock:
            return {name: bytes.fromhex(key) for name, key in self._members.items()}

    def invite(self, uses: int = 1) -> bytes:
        """Make an invitation's token, 16 bytes; so many clients may use it.

        Raises:
            UsageError: ``uses`` is below 1.
        """
        if uses < 1:
            raise UsageError(f"an invitation can be used once or more often, not {uses} times")
        token = secrets.token_bytes(TOKEN)
        with self._lock:
            self._save(self._members, {**self._open, _digest(token): uses}, self._expelled)
        return token

    def admit(self, key: bytes, name: str = "", token: bytes = b"") -> str:
        """Admit the owner of a key, who has proven to be it, and return its name.

        A known key needs no token; that of a new one is used up.

        Raises:
            Refused: The key was expelled, the name is another's or none, or the invitation was used already.
        """
        public = key.hex()
        with self._lock:
            if public in self._expelled:
                raise Refused("this client was sent away by the server")
            known = next((n for n, k in self._members.items() if k == public), None)
            if known is not None:
                if name not in ("", known):
                    raise Refused(f"this client is known as '{known}', and cannot become '{name}'")
                return known
            left = self._open.get(_digest(token), 0)
            if not token or left < 1:
                raise Refused("the invitation is unknown, or was used already: ask for a new one")
            if len(key) != KEY or not _NAME.fullmatch(name):
                raise Refused(
                    "a client's name has 1 to 40 letters, digits, blanks or . @ + - _: choose one with --name"
                )
            if any(name.casefold() == n.casefold() for n in self._members):
                raise Refused(f"the name '{name}' belongs to another client: choose one with --name")
            rest = {t: n for t, n in self._open.items() if t != _digest(token)}
            remaining = {**rest, _digest(token): left - 1} if left > 1 else rest
            self._save({**self._members, name: public}, remaining, self._expelled, {**self._used, name: _digest(token)})
            return name

    def give_back(self, key: bytes) -> None:
        """Forget a member whose place is free again, so that its invitation can be used once more."""
        public = key.hex()
        with self._lock:
            name = next((n for n, k in self._members.items() if k == public), None)
            if name is None or public in self._expelled:
                return
            members = {n: k for n, k in self._members.items() if n != name}
            token, used = self._used.get(name), {n: t for n, t in self._used.items() if n != name}
            again = {} if token is None else {token: self._open.get(token, 0) + 1}
            self._save(members, {**self._open, **again}, self._expelled, used)

    def is_member(self, key: bytes) -> bool:
        """Say whether a key was admitted, and not expelled since."""
        with self._lock:
            return key.hex() in self._members.values() and key.hex() not in self._expelled

    @property
    def expelled(self) -> list[str]:
        """Who was sent away; invitations that are older than the last of them are void."""
        with self._lock:
            return [name for name, key in self._members.items() if key in self._expelled]

    def was_expelled(self, key: bytes) -> bool:
        """Say whether a member was sent away for good."""
        with self._lock:
            return key.hex() in self._expelled

    def check(self, name: str) -> None:
        """Check that there is a member of that name.

        Raises:
            UsageError: There is none.
        """
        if name not in self._members:
            raise UsageError(f"there is no client '{name}' (known: {', '.join(self._members) or 'none'})")

    def expel(self, name: str) -> None:
        """Send a member away for good; its name stays taken, and invitations that are out are void: it knows one.

        Raises:
            UsageError: There is no such member.
        """
        with self._lock:
            self.check(name)
            if self._members[name] in self._expelled:
                return  # invitations are newer
            self._save(self._members, {}, self._expelled | {self._members[name]}, {})

    def _save(
        self, members: dict[str, str], tokens: dict[str, int], expelled: set[str], used: dict[str, str] | None = None
    ) -> None:
        used = self._used if used is None else used
        value = {"version": 1, "members": members, "invitations": tokens, "expelled": sorted(expelled), "used": used}
        files.write_json(self._path, value)  # first, so that nobody is admitted whom a restart would forget
        self._members, self._open, self._expelled, self._used = members, tokens, expelled, used

    def _load(self, value: dict[str, Any]) -> None:
        members, tokens, expelled = (value.get(k) for k in ("members", "invitations", "expelled"))
        whole = isinstance(members, dict) and isinstance(tokens, dict) and isinstance(expelled, list)
        if not whole or not all(isinstance(k, str) and re.fullmatch(r"[0-9a-f]{64}", k) for k in members.values()):  # type: ignore[union-attr]
            raise DataError(f"{self._path}: the list of clients is damaged", file=str(self._path))
        if not all(type(n) is int for n in tokens.values()):  # type: ignore[union-attr]
            raise DataError(f"{self._path}: the list of invitations is damaged", file=str(self._path))
        used = value.get("used", {})
        if not isinstance(used, dict) or not all(isinstance(text, str) for text in used.values()):
            raise DataError(f"{self._path}: the list of invitations is damaged", file=str(self._path))
        self._members, self._open, self._expelled = dict(members), dict(tokens), set(expelled)  # type: ignore[arg-type]
        self._used = dict(used)


def _digest(token: bytes) -> str:
    return hashlib.sha256(b"fedloom invitation" + token).hexdigest()
