"""Fixtures: a server on a free port and a headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medsam_app.browser.app import running
from medsam_app.browser.state.service import Service
from medsam_app.synthetic.torso import torso_phantom
from tests.e2e.page import PATIENCE, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",  # WebGL without a graphics card
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Running:
    """A server that runs in this process."""

    url: str
    service: Service


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Yield the app as `serve` starts it, with one folder to browse."""
    folder: Path = tmp_path_factory.mktemp("data")
    service = Service(roots=[folder])
    with running(service) as url:
        yield Running(url, service)


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """Yield a Chromium browser; skip the test if Playwright or Chromium is missing."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install the system's package 'chromium'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium) -> Iterator[object]:
    """Yield a fresh browser context without storage or cookies."""
    browser_context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    browser_context.set_default_timeout(PATIENCE)
    yield browser_context
    browser_context.close()


@pytest.fixture
def opened(server: Running, context) -> Page:
    """Return the page with the sample volume open."""
    return Page(context, server.url)


@pytest.fixture(scope="session")
def phantom():
    return torso_phantom()
