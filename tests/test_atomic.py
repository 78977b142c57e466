"""Replacing files: complete at any moment, with the mode of new files, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medsam_app.atomic import DRAFTS, remove_drafts, replace_file, save_whole, write_whole

ROOT = Path(__file__).parents[1]

#: Writers of the package, each of which writes NEW to `path` when called; they are killed before the rename.
WRITERS = {
    "text": "from medsam_app.atomic import write_whole; write_whole(path, 'new')",
    "adapter": (
        "import torch; from medsam_app.models.load import load_model; from medsam_app import Adapter; "
        "Adapter.create('ssf', load_model('sam3d_tiny')).save(path, {'licence': 'MIT', 'spacing': (1, 1, 1)})"
    ),
    "state": (
        "import torch; from medsam_app.training.checkpoint import write_state; "
        "write_state(path.parent, {'model': {'x': torch.ones(3)}}, {'step': 1})"
    ),
    "mask": (
        "import numpy as np; from medsam_app import make_volume, save_mask; "
        "volume = make_volume('v', np.zeros((4, 5, 6), np.float32), np.eye(4)); "
        "save_mask(np.ones((4, 5, 6), bool), volume, path)"
    ),
    "baseline": (
        "import torch; from safetensors.torch import save_file; from medsam_app.atomic import replace_file\n"
        "with replace_file(path) as draft: save_file({'x': torch.ones(3)}, draft)"
    ),
}
#: Ends the process where the complete draft would get its name.
KILLED = """
import os, signal, sys
from pathlib import Path
replace = Path.replace
def kill(self, target):
    print('ready', flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = kill
path = Path(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "name"),
    [
        ("text", "a.json"),
        ("adapter", "a.safetensors"),
        ("state", "state.safetensors"),
        ("mask", "a.nii.gz"),
        ("mask", "a.mhd"),
        ("baseline", "net.safetensors"),
    ],
)
def test_a_killed_writer_leaves_the_earlier_file(tmp_path: Path, writer: str, name: str) -> None:
    path = tmp_path / name
    path.write_text("old")
    script = KILLED + WRITERS[writer]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout.strip()) == (-signal.SIGKILL, "ready"), run.stderr
    assert path.read_text() == "old"
    assert {each.name for each in tmp_path.iterdir() if not each.match(DRAFTS)} == {name}
    remove_drafts(path, older_than=0)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_an_error_leaves_the_earlier_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ValueError, match="not right"), replace_file(path) as draft:
        draft.write_text("new")
        raise ValueError("not right")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

    def prove(draft: Path) -> None:
        assert json.loads(draft.read_text()) == {"a": 1}

    with pytest.raises(AssertionError):
        write_whole(path, '{"a": 2}', prove=prove)
    write_whole(path, '{"a": 1}', prove=prove)
    assert path.read_text() == '{"a": 1}'


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_a_new_file_and_the_umask_stays(tmp_path: Path, umask: int) -> None:
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        # What another thread creates in the meantime has the umask's mode, too.
        number = 0
        while not done.is_set():
            other = tmp_path / f"other-{number}"
            other.touch()
            seen.add(stat.S_IMODE(other.stat().st_mode))
            number += 1

    before = os.umask(umask)
    try:
        thread = threading.Thread(target=watch)
        thread.start()
        for number in range(50):
            save_whole(tmp_path / f"{number}.txt", "x")
            assert stat.S_IMODE((tmp_path / f"{number}.txt").stat().st_mode) == 0o666 & ~umask
    finally:
        done.set()
        thread.join()
        os.umask(before)
    assert seen == {0o666 & ~umask}


def test_several_files_of_one_draft_arrive_together(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a.mhd") as draft:
        draft.write_text("header")
        draft.with_suffix(".raw").write_bytes(b"voxels")
        assert not (tmp_path / "a.raw").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.mhd", "a.raw"]
