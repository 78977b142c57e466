"""A server and a browser for benchmarks."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsam_app.browser.app import running
from medsam_app.browser.state.service import Service

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
]


@contextmanager
def serving(roots: Sequence[Path]) -> Iterator[tuple[str, Service]]:
    """Run a server in this process with some folders; yield its address and service."""
    service = Service(roots=roots)
    service.sample()
    with running(service) as url:
        yield url, service


@contextmanager
def browsing() -> Iterator[Any]:
    """Yield a headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No chromium on this machine; install the system's package 'chromium'.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()
