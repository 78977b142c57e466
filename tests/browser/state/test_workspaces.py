"""State of a workspace: its files, and its open volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException

from medsam_app.browser.state.comparison import Reference
from medsam_app.browser.state.workspace_files import WorkspaceFiles
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import PromptError, VolumeError
from medsam_app.io.volume import Volume
from medsam_app.session.session import Session


def add(files: WorkspaceFiles, name: str) -> tuple[str, Path]:
    """Store an upload; return its key and path."""
    path = files.new_folder() / name
    path.write_bytes(b"x")
    return files.add(path, name), path


def test_uploads_that_are_read_or_held_are_not_dropped() -> None:
    files = WorkspaceFiles()
    (read, read_path), (held, held_path), (free, free_path) = (add(files, name) for name in ("a", "b", "c"))
    files.hold(held)
    with files.reading(read) as (path, name):
        files.drop()
        assert (path, name) == (read_path, "a") and read_path.exists()
        assert set(files.uploads) == {read, held} and not free_path.parent.exists()
    with pytest.raises(VolumeError, match="choose the file again"), files.reading(free):
        pass
    files.drop(read, held)
    assert set(files.uploads) == {held} and held_path.exists()
    files.hold(None)
    assert files.uploads == {} and not held_path.parent.exists()


def test_closed_files_are_deleted_and_accept_no_uploads() -> None:
    files = WorkspaceFiles()
    _, path = add(files, "a")
    folder, pending = files.folder, files.new_folder()
    files.close()
    assert not folder.exists()
    pending.mkdir(parents=True)  # written after the folder was deleted
    files.discard(pending)
    assert not folder.exists()
    for operation in (files.new_folder, lambda: files.add(path, "a")):
        with pytest.raises(HTTPException) as error:
            operation()
        assert error.value.status_code == 401


def test_another_volume_replaces_the_state_of_the_previous_one() -> None:
    workspace = Workspace()
    workspace.check(7)  # allowed while no volume is open
    with pytest.raises(PromptError, match="No volume is open"):
        workspace.require_open()

    session = Session(Volume.from_array(np.zeros((4, 4, 4), np.uint8), np.eye(4)))
    first = workspace.replace_volume(session, "first", {"ct": True}, notes=["note"])
    assert workspace.require_open() is first and first.header == {"ct": True, "opened": 1}
    assert first.unit == "HU" and first.notes == ["note"]
    first.reference = Reference(1, "other", {})

    second = workspace.replace_volume(session, "second", {"ct": False})
    assert workspace.opened is second and second.number == second.header["opened"] == 2
    assert second.unit == "" and second.reference is None and second.notes == []
    workspace.check(2)
    workspace.check(None)
    with pytest.raises(HTTPException) as error:
        workspace.check(1)
    assert error.value.status_code == 409

    workspace.close()
    assert workspace.opened is None and workspace.array is None and workspace.nbytes == 0
