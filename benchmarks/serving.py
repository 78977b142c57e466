"""A server and a browser for benchmarks."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from benchmarks.page_latency import FLAGS
from medsam_app.browser.app import _listen, create_app
from medsam_app.browser.service import Service


@contextmanager
def serving(roots: Sequence[Path]) -> Iterator[tuple[str, Service]]:
    """Address and service of a server in this process, which shows some folders."""
    service = Service(roots=roots)
    service.sample()
    listener = _listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(service, port=port), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}/", service
    finally:
        server.should_exit = True
        thread.join(20)
        service.close()


@contextmanager
def browsing() -> Iterator[Any]:
    """A Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No chromium on this machine; install the system's package 'chromium'.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()
