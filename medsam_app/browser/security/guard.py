"""Middleware for all routes, Gradio's included: host, origin, login and headers.

Any page in the same browser can reach a server on the loopback address: through a host name that resolves to
127.0.0.1, or with a form that posts to it. Therefore the Host header must be a loopback name, and requests
that change something must come from our own page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsam_app.browser.security.accounts import Accounts

#: Host names of the loopback address.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: Key of the user's login name in the scope of a request.
LOGIN = "medsam_login"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
#: Content security policy: nothing from other servers. Gradio's own scripts need inline code and eval.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'"
)

#: Unused routes of Gradio: proxies to other hosts, recordings, monitoring and custom components.
_CLOSED = re.compile(
    r"^(/gradio_api)?/(proxy=|file=\s*https?:|process_recording|vibe|undo-vibe|profiling|monitoring|run-history|"
    r"runs\b|stream/|component_server|custom_component|dev/reload|deep_link|login\b|openapi\.json)",
    re.IGNORECASE,
)


class Guard:
    """ASGI middleware that refuses requests with a foreign host or origin, or without login.

    Args:
        hosts: allowed names in the Host header; None for any.
        auth: (name, password) pairs; None disables the login.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: frozenset[str] | None, auth: Sequence[tuple[str, str]] | None = None
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.accounts = Accounts(auth) if auth else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request if it is allowed; refuse it otherwise."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                response_headers = MutableHeaders(scope=message)
                response_headers["Content-Security-Policy"] = _POLICY
                response_headers["X-Content-Type-Options"] = "nosniff"
                response_headers["Referrer-Policy"] = "same-origin"
                if scope["path"].startswith("/medsam/"):
                    response_headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self.hosts is not None and host_name(host) not in self.hosts:
            return PlainTextResponse("This server answers only under the name it was started with.", 403)
        origin = headers.get("origin")
        may_change = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        foreign = origin is not None and urlsplit(origin).netloc != host
        if may_change and (foreign or headers.get("sec-fetch-site") == "cross-site"):
            return PlainTextResponse("This request comes from another site and was refused.", 403)
        if self.accounts is not None:
            address = (scope.get("client") or ("",))[0]
            if wait := self.accounts.must_wait(address):
                seconds = str(math.ceil(wait))
                sentence = f"Too many wrong passwords came from this address; try again in {seconds} s."
                return PlainTextResponse(sentence, 429, headers={"Retry-After": seconds})
            name = self.accounts.authenticate(headers.get("authorization", ""), address)
            if name is None:
                challenge = {"WWW-Authenticate": 'Basic realm="medsam_app", charset="UTF-8"'}
                return PlainTextResponse("A name and a password are needed.", 401, headers=challenge)
            scope[LOGIN] = name
        if _CLOSED.search(scope["path"]):
            return PlainTextResponse("There is nothing here.", 404)
        return None


def host_name(host: str) -> str:
    """Return the name in a Host header in lower case, without port and brackets; empty if it is invalid."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
