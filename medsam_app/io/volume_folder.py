"""Search for volumes in a folder, without reading their voxels."""

from __future__ import annotations

import errno
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsam_app.errors import MachineFault, MedsamError, VolumeError
from medsam_app.io.dicom.series import SeriesInfo
from medsam_app.io.formats import DICOM_SLICES, SINGLE_VOLUMES, file_type, stem
from medsam_app.io.headers import looks_like_dicom
from medsam_app.io.loading import list_series
from medsam_app.system import machine_fault

#: Error numbers of links to missing files or to themselves.
_BROKEN_LINK = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True)
class FoundVolume:
    """Volume of a folder.

    Attributes:
        case: path relative to the folder, without the ending, with '/'; outputs are named after it.
        path: file or folder.
        series: UID of a DICOM series; None if it is not DICOM, or the only series of its folder.
        problem: error message if the volume is known to be unreadable, else empty.
        unread: whether the cause is not the volume itself, for example missing permissions, so that its
            contents are unknown.
    """

    case: str
    path: Path
    series: str | None = None
    problem: str = ""
    unread: bool = False


def find_volumes(folder: Path, *, leave_out: Sequence[Path] = ()) -> list[FoundVolume]:
    """Return all volumes under a folder in the order of their names, without hidden files and folders.

    Every file with the ending of a volume is a volume, regardless of its contents. A folder with DICOM slices
    holds a volume per series, including series in its subfolders. So does a .zip. An unreadable folder is
    returned as a volume with a problem, so that its contents do not go unnoticed. The search continues.

    Args:
        folder: folder to search.
        leave_out: files and folders to skip.

    Raises:
        VolumeError: the folder does not exist, or holds no volume that can be read.
    """
    if folder.is_file():
        raise VolumeError(
            f"'{folder}' is one file; give the folder that holds the volumes, or for one file -o with the "
            "name of its mask."
        )
    if not folder.is_dir():
        raise VolumeError(f"There is no folder '{folder}'; give the folder that holds the volumes.")
    hidden = {path.resolve() for path in (folder, *leave_out)}
    volumes = [
        volume for path, problem in _walk(folder, hidden) for volume in _volumes(path, folder, problem)
    ]
    if volumes and all(volume.unread for volume in volumes):
        raise VolumeError(volumes[0].problem)
    if not volumes:
        raise VolumeError(
            f"The folder '{folder}' holds no volume; give one with {', '.join(SINGLE_VOLUMES)} files or "
            "DICOM slices."
        )
    return sorted(_with_unique_names(volumes), key=lambda volume: volume.case)


def _walk(folder: Path, hidden: set[Path], *, slices: bool = True) -> Iterator[tuple[Path, str]]:
    """Yield volume files and folders with slices; unreadable ones with the reason."""
    files: list[Path] = []
    folders: list[Path] = []
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        yield folder, _closed(folder, error)
        return
    for path in entries:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if error.errno not in _BROKEN_LINK:
                yield path, _closed(path, error)
            continue
        if stat.S_ISDIR(mode):
            folders.append(path)
        elif stat.S_ISREG(mode) and path.resolve() not in hidden:
            files.append(path)
    if slices and any(_is_slice(path) for path in files):
        yield folder, ""
        slices = False  # slices in subfolders belong to series of this folder
    yield from ((path, "") for path in files if path.name.lower().endswith((*SINGLE_VOLUMES, ".zip")))
    for path in folders:
        if path.resolve() not in hidden:
            hidden.add(path.resolve())  # avoid endless loops through links
            yield from _walk(path, hidden, slices=slices)


def _closed(path: Path, error: OSError) -> str:
    why = f"'{path.name}' cannot be looked at ({error.strerror}); change its permissions, or move it away."
    return str(machine_fault(path, error) or why)


def _is_slice(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith(DICOM_SLICES):
        return True
    if file_type(name) is not None or ("." in name and not re.search(r"\.\d+$", name)):
        return False
    try:  # slices often have no ending, or a number as ending
        with path.open("rb") as file:
            return looks_like_dicom(file.read(132))
    except OSError:
        return False


def _volumes(path: Path, root: Path, problem: str) -> list[FoundVolume]:
    name = "/".join((*path.relative_to(root).parts[:-1], stem(path))) if path != root else root.resolve().name
    if problem:
        return [FoundVolume(name, path, problem=problem, unread=True)]
    if path.is_file() and not path.name.lower().endswith(".zip"):
        return [FoundVolume(name, path)]
    try:
        series = list_series(path)
    except MedsamError as error:
        return [FoundVolume(name, path, problem=str(error), unread=isinstance(error, MachineFault))]
    if len(series) == 1:
        return [FoundVolume(name, path)]
    return [
        FoundVolume(f"{name}/{part}", path, info.uid)
        for info, part in zip(series, _names(series), strict=True)
    ]


def _names(series: Sequence[SeriesInfo]) -> list[str]:
    """Return a name per series by its description, or by the end of its UID if that is ambiguous."""
    plain = [re.sub(r"[^\w+-]+", "_", info.description).strip("_")[:60] or "series" for info in series]
    count = Counter(name.lower() for name in plain)
    return [
        name if count[name.lower()] == 1 else f"{name}_{info.uid.rsplit('.', 1)[-1][-12:] or info.number}"
        for name, info in zip(plain, series, strict=True)
    ]


def _with_unique_names(volumes: Sequence[FoundVolume]) -> Iterator[FoundVolume]:
    """Yield the volumes with unique names: those of equal names keep their endings ('a.nii.gz', 'a.nrrd')."""
    by_name: dict[str, list[FoundVolume]] = defaultdict(list)
    for volume in volumes:
        by_name[volume.case.lower()].append(volume)
    for volume in volumes:
        if len(by_name[volume.case.lower()]) == 1 or volume.series is not None:
            yield volume
        else:
            yield replace(volume, case=str(Path(volume.case).with_name(volume.path.name).as_posix()))
