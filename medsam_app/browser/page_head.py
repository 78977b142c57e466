"""Insertion of HTML into the page's head, before Gradio's own scripts."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadInsertion:
    """ASGI middleware that inserts HTML into the head of the page at '/'.

    Args:
        html: HTML to insert directly after the `<head>` tag.
    """

    def __init__(self, app: ASGIApp, *, html: str) -> None:
        self.app = app
        self.html = html.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; insert the HTML if it is for the page."""
        if scope["type"] != "http" or scope["path"] != f"{scope.get('root_path', '')}/":
            await self.app(scope, receive, send)
            return
        # The body is edited, so it must not be compressed.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message = {}
        body = b""

        async def collect(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            response_headers = MutableHeaders(scope=start)
            if response_headers.get("content-type", "").startswith("text/html"):
                body = body.replace(b"<head>", b"<head>" + self.html, 1)
                if "content-length" in response_headers:
                    response_headers["content-length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self.app({**scope, "headers": headers}, receive, collect)
