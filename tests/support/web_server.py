"""Local web server that misbehaves on demand, with one scripted response per request."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

#: Response to one request, given the handler and the contents of the served file.
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]

#: Served file: incompressible noise.
CONTENT = np.random.default_rng(0).bytes(900_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Site:
    """A running server for a test.

    Attributes:
        url: address of its only file.
        answers: responses to the next requests, in order; the last one is repeated.
        ranges: Range header of every request so far, '' if it had none.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.answers: list[Answer] = [whole]
        self.ranges: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = site.answers.pop(0) if len(site.answers) > 1 else site.answers[0]
                site.ranges.append(self.headers.get("Range", ""))
                answer(self, site.content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights.pth"


@contextmanager
def serving(content: bytes) -> Iterator[Site]:
    """Run a site in a thread."""
    site = Site(content)
    thread = threading.Thread(target=site.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        _released.set()
        site.server.shutdown()
        site.server.server_close()
        thread.join()
        _released.clear()


def _head(handler: BaseHTTPRequestHandler, code: int, length: int | None, **headers: str) -> None:
    handler.send_response(code)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def whole(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send the whole file, ignoring a requested range."""
    _head(handler, 200, len(content))
    handler.wfile.write(content)


def part(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send the requested range."""
    requested = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if requested is None:
        return whole(handler, content)
    start = int(requested[1])
    _head(
        handler, 206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}"
    )
    handler.wfile.write(content[start:])


def cut(share: float) -> Answer:
    """Break the connection after a fraction of the file."""

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        _head(handler, 200, len(content))
        handler.wfile.write(content[: int(share * len(content))])

    return answer


def truncated(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send half of the file as if it were complete, without a length."""
    _head(handler, 200, None)
    handler.wfile.write(content[: len(content) // 2])


def shorter(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send half of the file as if it were complete, with the half's length."""
    whole(handler, content[: len(content) // 2])


def endless(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send more than the file, without a length."""
    _head(handler, 200, None)
    handler.wfile.write(content * 3)


def other(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send another file of the same size."""
    whole(handler, content[::-1])


def page(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send the login page of a captive portal instead of the file."""
    whole(handler, b"<html>Please sign in</html>")


def status(code: int) -> Answer:
    """Refuse the request."""
    return lambda handler, content: _head(handler, code, 0)


_released = threading.Event()


def hang(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Send half of the file, then stall until the test is over."""
    cut(0.5)(handler, content)
    handler.wfile.flush()
    _released.wait(30)


def silence(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Stall until the test is over."""
    _released.wait(30)


def left(folder: Path) -> list[str]:
    """Return the names of the files that a download left in a folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
