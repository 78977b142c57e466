"""Teaching in the background: it is stopped and goes on, and an adapter is offered only where it helps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medsam_app.adapters.header import read_header
from medsam_app.datasets.find import find_cases
from medsam_app.errors import SettingsError
from medsam_app.worklist.teaching_job import JOB, Example, Teaching, TeachingState
from tests.support.teaching_folder import write_balls

SMALL = ["--steps", "2", "--set", "batch=2", "--set", "window=[16,16,16]", "--set", "spacing=2"]
SMALL += ["--no-preflight"]
PATIENCE = 400.0
ROOT = Path(__file__).parents[2]


def examples(folder: Path) -> list[Example]:
    return [Example(case=each.case, image=each.image, label=each.label) for each in find_cases(folder).cases]


def wait(teaching: Teaching) -> TeachingState:
    """Until a run has ended."""
    end = time.monotonic() + PATIENCE
    while teaching.running and time.monotonic() < end:
        time.sleep(0.05)
    assert teaching.job is not None
    return teaching.job


@pytest.mark.slow
def test_a_run_is_stopped_goes_on_and_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examples(write_balls(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)  # paths may be relative, though the work is done elsewhere
    teaching = Teaching(Path("teaching"), device="cpu", options=SMALL)
    assert teaching.job is None
    job = teaching.start(found, minutes=1, names={1: "larger ball", 2: "smaller ball"})
    assert (len(job.learned), len(job.kept)) == (3, 1)
    with pytest.raises(SettingsError, match="under way"):
        teaching.start(found)
    teaching.cancel()
    assert teaching.job is not None and teaching.job.stage == "cancelled"
    teaching.close()
    assert "Traceback" not in teaching.log()
    # Another server finds it, and goes on.
    again = Teaching(tmp_path / "teaching", device="cpu", options=SMALL)
    assert again.job is not None and again.job.stage == "cancelled"
    again.resume()
    ended = wait(again)
    assert ended.stage in ("offered", "no better"), (ended.message, again.log())
    assert ended.before is not None and ended.after is not None
    assert (ended.stage == "offered") == (ended.after.mean < ended.before.mean)
    assert "clicks to a Dice of 0.85" in ended.message
    card = read_header(again.adapter)
    assert card.labels == {1: "larger ball", 2: "smaller ball"}
    assert TeachingState.model_validate_json((tmp_path / "teaching" / JOB).read_text()) == ended


@pytest.mark.slow
def test_what_cannot_be_taught_is_a_sentence(tmp_path: Path) -> None:
    found = examples(write_balls(tmp_path / "data"))
    teaching = Teaching(tmp_path / "teaching", device="cpu", options=SMALL)
    with pytest.raises(SettingsError, match="at least 4 accepted cases"):
        teaching.start(found[:2])
    with pytest.raises(SettingsError, match="no teaching to go on with"):
        teaching.resume()
    gone = [Example(case=each.case, image=each.image, label=tmp_path / "gone.nii.gz") for each in found]
    teaching.start(gone)
    job = wait(teaching)
    assert job.stage == "failed" and "Traceback" not in job.message and len(job.message) > 30
    # A server that was killed left it at work: the next one says so.
    job.stage = "teaching"
    (tmp_path / "teaching" / JOB).write_text(job.model_dump_json())
    after = Teaching(tmp_path / "teaching").job
    assert after is not None and after.stage == "interrupted"


#: Starts to teach, says so, and waits.
SERVER = """
import sys, time
from pathlib import Path
from tests.worklist.test_teaching_job import SMALL, Teaching, examples
teaching = Teaching(Path(sys.argv[2]), device="cpu", options=[*SMALL, "--steps", "100000"])
teaching.start(examples(Path(sys.argv[1])), minutes=60)
while teaching._process is None:
    time.sleep(0.05)
print(teaching._process.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="processes are looked for as POSIX has them")
def test_teaching_stops_with_a_server_that_is_killed(tmp_path: Path) -> None:
    data = write_balls(tmp_path / "data")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(data), str(tmp_path / "teaching")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    # A second server sees it at work, and lets it.
    beside = Teaching(tmp_path / "teaching")
    assert beside.job is not None and beside.job.stage == "teaching" and not beside.running
    for begin in (beside.resume, lambda: beside.start(examples(data))):
        with pytest.raises(SettingsError, match="Another server teaches"):
            begin()
    beside.close()
    assert beside.job.stage == "teaching" and _alive(pid)
    server.kill()
    server.wait()
    end = time.monotonic() + 60
    while _alive(pid):
        assert time.monotonic() < end
        time.sleep(0.1)
    again = Teaching(tmp_path / "teaching")
    assert again.job is not None and again.job.stage == "interrupted" and "go on" in again.job.message


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
