"""Teaching in the background: stopping, resuming, and offering better adapters."""

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
from medsam_app.worklist.teaching_job import JOB, Teaching
from medsam_app.worklist.teaching_state import Example, TeachingState
from tests.support.teaching_folder import write_balls

SMALL = ["--steps", "2", "--set", "batch=2", "--set", "window=[16,16,16]", "--set", "spacing=2"]
SMALL += ["--no-preflight"]
PATIENCE = 400.0
ROOT = Path(__file__).parents[2]


def examples(folder: Path) -> list[Example]:
    return [Example(case=case.case, image=case.image, label=case.label) for case in find_cases(folder).cases]


def wait(teaching: Teaching) -> TeachingState:
    """Wait until a run has ended, and return its state."""
    end = time.monotonic() + PATIENCE
    while teaching.running and time.monotonic() < end:
        time.sleep(0.05)
    assert teaching.job is not None
    return teaching.job


@pytest.mark.slow
def test_a_run_is_stopped_resumed_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = examples(write_balls(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)  # relative paths must work although the processes run in another folder
    teaching = Teaching(Path("teaching"), device="cpu", options=SMALL)
    assert teaching.job is None
    job = teaching.start(cases, minutes=1, names={1: "larger ball", 2: "smaller ball"})
    assert (len(job.learned), len(job.kept)) == (3, 1)
    with pytest.raises(SettingsError, match="under way"):
        teaching.start(cases)
    teaching.cancel()
    assert teaching.job is not None and teaching.job.stage == "cancelled"
    teaching.close()
    assert "Traceback" not in teaching.log()
    # Another server resumes the run.
    second = Teaching(tmp_path / "teaching", device="cpu", options=SMALL)
    assert second.job is not None and second.job.stage == "cancelled"
    second.resume()
    ended = wait(second)
    assert ended.stage in ("offered", "no better"), (ended.message, second.log())
    assert ended.before is not None and ended.after is not None
    assert (ended.stage == "offered") == (ended.after.mean < ended.before.mean)
    assert "clicks to a Dice of 0.85" in ended.message
    header = read_header(second.adapter)
    assert header.labels == {1: "larger ball", 2: "smaller ball"}
    assert TeachingState.model_validate_json((tmp_path / "teaching" / JOB).read_text()) == ended


@pytest.mark.slow
def test_runs_that_cannot_start_or_fail_give_a_message(tmp_path: Path) -> None:
    cases = examples(write_balls(tmp_path / "data"))
    teaching = Teaching(tmp_path / "teaching", device="cpu", options=SMALL)
    with pytest.raises(SettingsError, match="at least 4 accepted cases"):
        teaching.start(cases[:2])
    with pytest.raises(SettingsError, match="no teaching to go on with"):
        teaching.resume()
    missing = [Example(case=case.case, image=case.image, label=tmp_path / "gone.nii.gz") for case in cases]
    teaching.start(missing)
    job = wait(teaching)
    assert job.stage == "failed" and "Traceback" not in job.message and len(job.message) > 30
    # The state of a run whose server was killed: the next server reports the interruption.
    job.stage = "teaching"
    (tmp_path / "teaching" / JOB).write_text(job.model_dump_json())
    reopened = Teaching(tmp_path / "teaching").job
    assert reopened is not None and reopened.stage == "interrupted"


#: Program that starts teaching, prints the process number, and waits.
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
    # A second server reports the run and does not interfere.
    second = Teaching(tmp_path / "teaching")
    assert second.job is not None and second.job.stage == "teaching" and not second.running
    for begin in (second.resume, lambda: second.start(examples(data))):
        with pytest.raises(SettingsError, match="Another server teaches"):
            begin()
    second.close()
    assert second.job.stage == "teaching" and _alive(pid)
    server.kill()
    server.wait()
    end = time.monotonic() + 60
    while _alive(pid):
        assert time.monotonic() < end
        time.sleep(0.1)
    third = Teaching(tmp_path / "teaching")
    assert third.job is not None and third.job.stage == "interrupted" and "go on" in third.job.message


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
