"""A web server on this machine that misbehaves as it is told, one answer a request."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

#: What is done about one request: the handler, and the file that the server has.
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]

#: What it has in the tests: noise, of which pieces of a connection are a part.
CONTENT = np.random.default_rng(0).bytes(900_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Site:
    """The server as a test sees it.

    Attributes:
        url: of its only file.
        answers: what is done about the requests to come, in order; the last one about all after it.
        ranges: the Range header of every request so far, '' where there was none.
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
    """A site that runs in a thread."""
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
    """All of the file, whatever part was asked for."""
    _head(handler, 200, len(content))
    handler.wfile.write(content)


def part(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The part that was asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if asked is None:
        return whole(handler, content)
    start = int(asked[1])
    _head(
        handler, 206, len(content) - start, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}"
    )
    handler.wfile.write(content[start:])


def cut(share: float) -> Answer:
    """A connection that breaks after a share of the file."""

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        _head(handler, 200, len(content))
        handler.wfile.write(content[: int(share * len(content))])

    return answer


def truncated(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Half of the file as if that were all, and no length."""
    _head(handler, 200, None)
    handler.wfile.write(content[: len(content) // 2])


def shorter(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Half of the file as if that were all, with its length."""
    whole(handler, content[: len(content) // 2])


def endless(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """More than the file, and no length."""
    _head(handler, 200, None)
    handler.wfile.write(content * 3)


def other(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Another file of the same size."""
    whole(handler, content[::-1])


def page(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The page of a hotel's network instead of the file."""
    whole(handler, b"<html>Please sign in</html>")


def status(code: int) -> Answer:
    """A refusal."""
    return lambda handler, content: _head(handler, code, 0)


_released = threading.Event()


def hang(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Half of the file, then nothing until the test is over."""
    cut(0.5)(handler, content)
    handler.wfile.flush()
    _released.wait(30)


def silence(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """No answer until the test is over."""
    _released.wait(30)


def left(folder: Path) -> list[str]:
    """Names of the files that a download left in a folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
