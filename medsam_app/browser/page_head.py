"""Beginning of the page's head, which must precede Gradio's own scripts."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class FirstInHead:
    """ASGI middleware that adds to the page at '/'.

    Args:
        html: goes right behind the tag that opens the head.
    """

    def __init__(self, app: ASGIApp, *, html: str) -> None:
        self.app = app
        self.html = html.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Insert the beginning of the head into Gradio's page."""
        if scope["type"] != "http" or scope["path"] != f"{scope.get('root_path', '')}/":
            await self.app(scope, receive, send)
            return
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
            out = MutableHeaders(scope=start)
            if out.get("content-type", "").startswith("text/html"):
                body = body.replace(b"<head>", b"<head>" + self.html, 1)
                if "content-length" in out:
                    out["content-length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self.app({**scope, "headers": headers}, receive, collect)
