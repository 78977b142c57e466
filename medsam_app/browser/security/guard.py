"""Middleware of every route, Gradio's and ours: host, origin, password, headers.

A server on this machine's loopback can be reached by any page that the same browser shows, through a
host name that resolves to 127.0.0.1 or by a form that posts to it. So the Host header must be a name of
the loopback, and what changes something must come from our own page.
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

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
#: Where handlers find the name of who is logged in, in the scope of a request.
LOGIN = "medsam_login"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
#: The page loads nothing from other servers. Gradio's own scripts need inline code and eval.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self'; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'; object-src 'none'"
)

#: Routes of Gradio's that nothing here uses: other hosts, recordings, looks into the server and components.
_CLOSED = re.compile(
    r"^(/gradio_api)?/(proxy=|file=\s*https?:|process_recording|vibe|undo-vibe|profiling|monitoring|run-history|"
    r"runs\b|stream/|component_server|custom_component|dev/reload|deep_link|login\b|openapi\.json)",
    re.IGNORECASE,
)


class Guard:
    """ASGI middleware that refuses strangers.

    Args:
        hosts: names that the Host header may have; None for any.
        auth: (name, password) pairs; None disables the login.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: frozenset[str] | None, auth: Sequence[tuple[str, str]] | None = None
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.accounts = Accounts(auth) if auth else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, or refuse it."""
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
                out = MutableHeaders(scope=message)
                out["Content-Security-Policy"] = _POLICY
                out["X-Content-Type-Options"] = "nosniff"
                out["Referrer-Policy"] = "same-origin"
                if scope["path"].startswith("/medsam/"):
                    out.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self.hosts is not None and host_name(host) not in self.hosts:
            return PlainTextResponse("This server answers only under the name it was started with.", 403)
        origin = headers.get("origin")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        strange = origin is not None and urlsplit(origin).netloc != host
        if changes and (strange or headers.get("sec-fetch-site") == "cross-site"):
            return PlainTextResponse("This request comes from another site and was refused.", 403)
        if self.accounts is not None:
            address = (scope.get("client") or ("",))[0]
            if wait := self.accounts.must_wait(address):
                seconds = str(math.ceil(wait))
                sentence = f"Too many wrong passwords came from this address; try again in {seconds} s."
                return PlainTextResponse(sentence, 429, headers={"Retry-After": seconds})
            name = self.accounts.who(headers.get("authorization", ""), address)
            if name is None:
                ask = {"WWW-Authenticate": 'Basic realm="medsam_app", charset="UTF-8"'}
                return PlainTextResponse("A name and a password are needed.", 401, headers=ask)
            scope[LOGIN] = name
        if _CLOSED.search(scope["path"]):
            return PlainTextResponse("There is nothing here.", 404)
        return None


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
