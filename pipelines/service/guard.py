"""What never reaches the routes: requests without the token, from other sites, or too large."""

from __future__ import annotations

import hmac
import ipaddress
import json
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = ("/", "/health")  # the page holds nothing, and asks for the token itself


class _TooLargeError(Exception):
    """More bytes came than a request may have."""


class Guard:
    """Wraps an application.

    Args:
        app: to protect.
        token: that requests must bear, "" where only this machine can ask.
        max_bytes: of a request.
    """

    def __init__(self, app: ASGIApp, *, token: str = "", max_bytes: int) -> None:
        self._app, self._token, self._max_bytes = app, token, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        if refused := self._refused(scope["path"], headers):
            await _answer(send, *refused)
            return
        num_bytes, started = 0, False

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if num_bytes <= self._max_bytes or started:  # else the answer is ours
                started = True
                await send(message)

        with suppress(_TooLargeError):
            await self._app(scope, counted, noted)
        if num_bytes > self._max_bytes and not started:
            await _answer(send, 413, self._limit())

    def _refused(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self._token:
            given = headers.get(b"authorization", b"")
            wanted = f"Bearer {self._token}".encode()
            if path not in _OPEN and not hmac.compare_digest(given, wanted):
                return 401, "this service asks for a token: Authorization: Bearer ..."
        elif not is_loopback(_host(headers.get(b"host", b"").decode("latin-1"))):
            return 403, "this service answers requests to this machine's own address alone"
        if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
            return 403, "requests of other sites are refused"
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            return 413, self._limit()
        return None

    def _limit(self) -> str:
        return f"a request may have {self._max_bytes / 2**20:.0f} MiB"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


async def _answer(send: Send, status: int, message: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": message}).encode()})
