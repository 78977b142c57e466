"""Files of weights within other installed packages, found without importing these packages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from medsam_app.models.table import Checkpoint


def packaged_path(checkpoint: Checkpoint) -> Path | None:
    """Return the path of a checkpoint within the package that contains it.

    The path comes from the list of files that the installer stored. No code of the package runs, and the
    file is not verified.

    Returns:
        None if no package contains the checkpoint, or the package is not installed or does not list the file.
    """
    if checkpoint.package is None:
        return None
    try:
        files = metadata.distribution(checkpoint.package.name).files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix() == checkpoint.package.path:
            return Path(str(file.locate()))
    return None
