"""What stands between the network and gradio: sessions by cookie, files of one's own, nothing from elsewhere.

Gradio serves any file that it received or made to whoever knows its address, and has addresses that this page has no
use for: fetching from other servers, monitoring, histories. Here a path is refused unless it is listed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits
from .sessions import SECRET, Sessions

COOKIE = "bdg_fast_session"
IN_COOKIES = re.compile(rf"(?:^|;)\s*{COOKIE}=({SECRET})\s*(?:;|$)", re.ASCII)
API = "/gradio_api/"
PAGES = ("/", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json")
FOLDERS = ("/assets/", "/static/")
CALLS = ("queue/join", "queue/data", "upload", "upload_progress", "cancel", "startup-events", "theme.css")
FILE, ALIVE, JOIN = f"{API}file=", f"{API}heartbeat/", f"{API}queue/join"
OVERHEAD = 100_000
"""Bytes of a request, beside the file in it."""
HEADERS = {
    # a page that nothing is loaded from elsewhere for; gradio's scripts stand within it and make code of text
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def secret_of(cookies: str | None) -> str | None:
    """The session's secret in a request's ``Cookie``; None if there is none that could be."""
    found = IN_COOKIES.search(cookies or "")  # http.cookies gives none if other servers of the host set ill-formed ones
    return found[1] if found else None


class Guard:
    """ASGI middleware around gradio."""

    def __init__(self, app: ASGIApp, sessions: Sessions, limits: Limits) -> None:
        """Requests go to ``app`` if they may."""
        self.app, self.sessions, self.limits = app, sessions, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        found = secret_of(headers.get("cookie"))
        secret = found or self.sessions.new()
        if found is None:  # so that what is called finds it, too
            others = headers.get("cookie")
            cookie = f"{COOKIE}={secret}" + (f"; {others}" if others else "")
            kept = [(name, value) for name, value in scope["headers"] if name != b"cookie"]
            scope = {**scope, "headers": [*kept, (b"cookie", cookie.encode("latin-1"))]}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer.update(HEADERS)
                if path.startswith(FILE):
                    answer["Cache-Control"] = "private, no-store"
                if found is None:
                    secure = "; Secure" if scope["scheme"] == "https" else ""
                    answer.append("Set-Cookie", f"{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Lax{secure}")
            await send(message)

        refused = await self._refused(scope["method"], path, headers, secret)
        if refused is not None:
            status, why = refused
            await PlainTextResponse(why, status)(scope, receive, send_guarded)
        elif path == f"{API}upload":
            await self._upload(secret, scope, receive, send_guarded)
        elif path == JOIN:
            await self._join(secret, scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    async def _refused(self, method: str, path: str, headers: Headers, secret: str) -> tuple[int, str] | None:
        """Status and reason, unless the request may go on."""
        if path.startswith(FILE):
            own = await run_in_threadpool(self.sessions.owns, secret, Path(path.removeprefix(FILE)))
            return None if own else (403, "This file is not yours, or it is gone.")
        uploads = path == f"{API}upload"
        if method not in ("GET", "HEAD"):
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "A request must tell its size."
            if int(length) > OVERHEAD + self.limits.bytes * uploads:
                return 413, f"This is too large: files of at most {self.limits.megabytes:g} MB are taken."
        if uploads:
            if await run_in_threadpool(self.sessions.size) > self.limits.gigabytes * 1e9:
                return 507, "There is no room for more pictures at the moment: please come back later."
            return None
        listed = path in PAGES or path.startswith((*FOLDERS, ALIVE))
        return None if listed or path.removeprefix(API) in CALLS else (404, "Nothing is here.")

    async def _upload(self, secret: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Remember whose the received files are, before their paths are told."""
        begun: list[Message] = []
        body = b""

        async def send_told(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                begun.append(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            if begun[0]["status"] == 200:
                for path in _paths(body):
                    self.sessions.uploaded(secret, path)
            await send(begun[0])
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, send_told)

    async def _join(self, secret: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a job know this session's files alone: gradio fetches any address and copies any file that it names."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            told = await run_in_threadpool(self._own, secret, json.loads(body))
            body = json.dumps(told).encode()
        except (ValueError, RecursionError):
            await PlainTextResponse("A job must be JSON.", 400)(scope, receive, send)
            return
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        scope = {**scope, "headers": [*kept, (b"content-length", str(len(body)).encode())]}
        rest: list[Message] = [{"type": "http.request", "body": body}]

        async def receive_own() -> Message:
            return rest.pop() if rest else await receive()

        await self.app(scope, receive_own, send)

    def _own(self, secret: str, value: Any) -> Any:
        """``value`` with None for every file that is another's, at any depth."""
        if isinstance(value, dict):
            if "path" in value and not self.sessions.owns(secret, Path(str(value["path"]))):
                return None
            return {key: self._own(secret, inner) for key, inner in value.items()}
        return [self._own(secret, inner) for inner in value] if isinstance(value, list) else value


def _paths(answer: bytes) -> list[Path]:
    """Of the received files, as gradio tells them."""
    found: Any = json.loads(answer)
    return [Path(path) for path in found]
