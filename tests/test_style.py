"""The linter and the type checker, so that one command checks everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

#: Numpy declares its own types, and declared them otherwise in every release before this one.
TYPES = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.4.0", reason="types are checked against numpy 2.4 or newer"
)


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], pytest.param(["mypy"], marks=TYPES)],
    ids=["lint", "format", "types"],
)
def test_clean(command: list[str]) -> None:
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
