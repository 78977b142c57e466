"""A worklist whose server is killed."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from medsam_app.worklist.store import Worklist
from tests.browser.routes.test_worklist import ROOT, User, make_folder
from tests.support.forked_cli import ForkedCli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "shown" / "data").parent


class Process:
    """Server started from the command line, by default on a free port."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        command = ["serve", "--no-open", "--port", port, "--root", folder, *options]
        self.run = ForkedCli(command, cwd=ROOT)
        url = next(word for word in self.run.line_with("http://").split() if word.startswith("http://"))
        self.client = httpx.Client(base_url=url.rstrip("/"), timeout=120)

    def kill(self) -> None:
        self.run.kill()
        self.run.wait()


@pytest.mark.forked
@pytest.mark.slow
def test_a_killed_server_loses_no_answered_action(folder: Path) -> None:
    first = Process(folder)
    ada = User(first.client)
    ada.open("a")
    ada.click(12, 11, 10)
    answer = ada.click(2, 2, 2, positive=False)
    bits = ada.bits
    first.kill()
    with pytest.raises(httpx.HTTPError):
        ada.click(3, 3, 3)
    second = Process(folder)
    try:
        again = User(second.client)
        assert again.row("a")["state"] == "in progress" and again.row("a")["version"] == 2
        opened = again.open("a")
        assert [item["prompts"] for item in opened["state"]["objects"]] == [
            item["prompts"] for item in answer["state"]["objects"]
        ]
        assert opened["state"]["objects"][0]["volume_ml"] == answer["state"]["objects"][0]["volume_ml"]
        assert again.bits[-200:] == bits[-200:]
    finally:
        second.kill()
    worklist = Worklist(folder / "data")
    assert [work.who for work in worklist.works("a")] == ["ada", "ada"]
    worklist.close()
