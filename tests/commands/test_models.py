"""The commands `medsam-app models`, `models show` and `models download`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medsam_app.cli.app import main
from medsam_app.models import download as store
from medsam_app.models.table import MODELS, ModelEntry
from tests.support import web_server as web
from tests.support.web_server import CONTENT, SHA256, left

pytestmark = pytest.mark.usefixtures("downloads")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def row(shown: str, name: str) -> str:
    return next(line for line in shown.splitlines() if line.split()[:1] == [name])


def test_command_downloads_once(entry: ModelEntry, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0
    assert row(capsys.readouterr().out, "sam_vit_b").split()[-3:] == ["0.9", "MB", "no"]
    assert run("models", "show", "sam_vit_b") == 0
    assert "no; 'medsam-app models download sam_vit_b' puts them at" in capsys.readouterr().out
    path = store.checkpoint_path(entry)
    for sentence in ("Downloaded and verified", "are here already and right"):
        assert run("models", "download", "sam_vit_b") == 0
        shown = capsys.readouterr()
        assert sentence in shown.out and str(path) in shown.out and shown.err == ""
    assert run("models") == 0
    assert row(capsys.readouterr().out, "sam_vit_b").split()[-1] == "yes"
    assert run("models", "show", "sam_vit_b") == 0
    shown = capsys.readouterr().out
    for fact in (SHA256, "900000 bytes", "MIT", "its page", "arXiv:2304.02643", f"{path} (verified)"):
        assert fact in shown
    path.write_bytes(CONTENT[:-1])
    assert run("models") == 0
    assert row(capsys.readouterr().out, "sam_vit_b").split()[-1] == "damaged"
    assert run("models", "show", "sam_vit_b") == 0
    assert "damaged; " in capsys.readouterr().out
    assert run("models", "download", "sam_vit_b") == 0
    assert "Warning: the file that lay there was damaged" in capsys.readouterr().err


def test_command_takes_a_file(entry: ModelEntry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes(CONTENT[::-1])
    assert run("models", "download", "sam_vit_b", "--file", source) == 2
    assert capsys.readouterr().err.count("Error: ") == 1
    source.write_bytes(CONTENT)
    assert run("models", "download", "sam_vit_b", "--file", source) == 0
    assert "Copied and verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["download", "sam_vit_x"], "There is no model 'sam_vit_x'"),
        (["show", "sam_vit_x"], "There is no model 'sam_vit_x'"),
        (["download", "sam_med2d_b"], "give it with --weights FILE"),
        (["download", "sam3d_tiny", "--file", "x"], "part of the package"),
        (["fetch"], "No such command 'fetch'"),
    ],
)
def test_errors_of_the_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("models", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("Error: ") == 1


def test_every_model_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for entry in MODELS.values():
        assert run("models", "show", entry.name) == 0
        shown = capsys.readouterr().out
        assert entry.reference in shown and entry.checkpoint.page in shown
        assert entry.normalisation.text in shown


def test_ctrl_c_while_downloading(downloads: Path, entry: ModelEntry, site: web.Site) -> None:
    """Interrupt the program while it waits for a server that hangs after half of the file."""
    site.answers = [web.hang]
    code = (
        # Background jobs of a script ignore Ctrl-C by default.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from dataclasses import replace; from medsam_app.models.table import MODELS; "
        "from medsam_app.cli.app import main; entry = MODELS['sam_vit_b']; checkpoint = replace("
        f"entry.checkpoint, url={site.url!r}, size={len(CONTENT)}, sha256={SHA256!r}); "
        "MODELS['sam_vit_b'] = replace(entry, checkpoint=checkpoint); "
        "sys.exit(main(['models', 'download', 'sam_vit_b']))"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while not left(downloads) and time.monotonic() < deadline and program.poll() is None:
        time.sleep(0.02)
    (unfinished,) = left(downloads)
    program.send_signal(signal.SIGINT)
    _, shown = program.communicate(timeout=90)
    assert unfinished.startswith(".saving-sam_vit_b_01ec64.pth-") and left(downloads) == []
    assert program.returncode == 130 and shown.strip() == "Stopped."
