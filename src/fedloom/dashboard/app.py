"""App: the dashboard as an ASGI application, to be served by itself or behind another front."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedloom import files
from fedloom.dashboard import metrics, pages
from fedloom.dashboard.door import YEAR, Door, cookie_name
from fedloom.dashboard.sources import Board
from fedloom.dashboard.stream import messages

MOST_PAGES: Final = 100
"""So many pages may be open at once."""
_CHOSEN: Final = 20
_SHORT: Final = 4096
_HEADERS: Final = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_NOTHING: Final = "default-src 'none'; frame-ancestors 'none'"

Answer = Callable[[Request], Awaitable[Response]]


def make(board: Board, token: str = "") -> ASGIApp:
    """Make the application.

    Args:
        board: The runs that it shows.
        token: What visitors must show, once as ``?token=...`` in the address or as a Bearer header; empty for a page that
            only this machine can reach, and that answers to its name alone.

    Returns:
        An ASGI application with the page at ``/``, its events at ``/events``, ``/runs`` (JSON), ``/report``, ``/metrics``.
    """
    shown = _Shown(board, Door(token))
    routes = [
        Route("/", shown.page, methods=["GET"]),
        Route("/enter", shown.enter, methods=["POST"]),
        Route("/events", shown.guarded(shown.events), methods=["GET"]),
        Route("/runs", shown.guarded(shown.runs), methods=["GET"]),
        Route("/report", shown.guarded(shown.report), methods=["GET"]),
        Route("/metrics", shown.guarded(shown.metrics), methods=["GET"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Headers)])


class _Shown:
    """What the addresses answer."""

    def __init__(self, board: Board, door: Door) -> None:
        self._board, self._door, self._open = board, door, 0

    def guarded(self, answer: Answer) -> Answer:
        """Let only those in who may look."""

        async def checked(request: Request) -> Response:
            if not self._door.opens(request):
                return PlainTextResponse("the token is missing or wrong\n", 401, {"www-authenticate": "Bearer"})
            return await answer(request)

        return checked

    async def page(self, request: Request) -> Response:
        """Show the page; a token in the address moves into a cookie."""
        token = request.query_params.get("token", "")
        if self._door.fits(token):
            return self._entered(request, token)
        if self._door.opens(request):
            return _page()
        return HTMLResponse(pages.door(bool(token)), 401, {"content-security-policy": pages.policy("door")})

    async def enter(self, request: Request) -> Response:
        """Take the token out of the form."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _SHORT:
                return PlainTextResponse("too long\n", 413)
        name, _, value = body.decode("latin-1").partition("=")
        if name == "token" and self._door.fits(value.strip()):
            return self._entered(request, value.strip())
        return HTMLResponse(pages.door(True), 401, {"content-security-policy": pages.policy("door")})

    def _entered(self, request: Request, token: str) -> Response:
        answer = _page()
        secure = request.url.scheme == "https"
        answer.set_cookie(
            cookie_name(request), token, max_age=YEAR, httponly=True, secure=secure, samesite="strict", path="/"
        )
        return answer

    async def events(self, request: Request) -> Response:
        """Tell a page what changes, from now on."""
        if self._open >= MOST_PAGES:
            return PlainTextResponse("too many pages are open\n", 503, {"retry-after": "10"})
        chosen = request.query_params.getlist("run")[:_CHOSEN]

        async def body() -> AsyncIterator[str]:
            self._open += 1
            try:
                async for text in messages(self._board, chosen):
                    yield text
            finally:
                self._open -= 1

        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(body(), media_type="text/event-stream", headers=headers)

    async def runs(self, _: Request) -> Response:
        """Return the facts of all runs, as JSON."""
        looks = await asyncio.to_thread(self._board.look)
        return JSONResponse(files.finite({name: look.facts for name, look in looks.items()}))

    async def report(self, request: Request) -> Response:
        """Return the report that a run has written."""
        await asyncio.to_thread(self._board.look)
        source = self._board.source(request.query_params.get("run", ""))
        path = source.report() if source is not None else None
        if path is None:
            return PlainTextResponse("this run has no report (yet)\n", 404)
        text = await asyncio.to_thread(path.read_text, encoding="utf-8")
        return HTMLResponse(text, headers={"content-security-policy": "sandbox allow-scripts"})

    async def metrics(self, _: Request) -> Response:
        """Return the figures for Prometheus."""
        looks = await asyncio.to_thread(self._board.look)
        return Response(metrics.text(looks), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Headers:
    """Adds the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                more = _HEADERS | {"content-security-policy": _NOTHING}
                message["headers"] += [(k.encode(), v.encode()) for k, v in more.items() if k.encode() not in there]
            await send(message)

        await self._app(scope, receive, with_headers)


def _page() -> Response:
    return HTMLResponse(pages.page(), headers={"content-security-policy": pages.policy("page")})
