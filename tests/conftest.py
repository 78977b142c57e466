"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real volumes that is not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no real volumes here: {folder} is absent")
    return folder
