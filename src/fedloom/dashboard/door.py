"""Door: who may look. A token, shown once in an address and kept in a cookie; or this machine alone."""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, Final

from fedloom.addresses import is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request

YEAR: Final = 365 * 24 * 3600


def new_token() -> str:
    """Return a token that nobody can guess: 192 bits from the operating system."""
    return secrets.token_urlsafe(24)


class Door:
    """Decides who may look.

    Args:
        token: What visitors must show; empty where only this machine can reach the page.
    """

    def __init__(self, token: str = "") -> None:
        self._token = token

    def opens(self, request: Request) -> bool:
        """Say whether a request may be answered."""
        if not self._token:  # a web site may have its own name lead here; a browser tells which name it was
            return is_loopback(request.url.hostname or "")
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        bearer = shown.strip() if scheme.lower() == "bearer" else ""
        return any(self.fits(text) for text in (bearer, request.cookies.get(cookie_name(request), "")))

    def fits(self, text: str) -> bool:
        """Say whether a text is the token; the time that takes does not tell how near it is."""
        return bool(self._token) and hmac.compare_digest(text.encode(), self._token.encode())


def cookie_name(request: Request) -> str:
    """Name the cookie by the port, since a browser gives a cookie to every port of a machine."""
    return f"fedloom_{request.url.port or (443 if request.url.scheme == 'https' else 80)}"
