"""Volumes of a folder, as they are found before any of them is read."""

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

#: Message for a link to nothing, or to itself.
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True)
class FoundVolume:
    """Volume of a folder.

    Attributes:
        case: its path within the folder without the ending, with '/': what its outputs are named after.
        path: file or folder.
        series: UID of a DICOM series; None for a volume that is none, or the only series of its folder.
        problem: a sentence where it is known already that it cannot be read.
        unread: whether that is no fault of its own: nobody knows what is in it.
    """

    case: str
    path: Path
    series: str | None = None
    problem: str = ""
    unread: bool = False


def find_volumes(folder: Path, *, leave_out: Sequence[Path] = ()) -> list[FoundVolume]:
    """All volumes under a folder, in the order of their names; hidden files and folders are left out.

    A file with the ending of a volume is one, whatever it holds. A folder with DICOM slices holds a volume
    for each of its series, those in folders below among them; so does a .zip. A folder that may not be looked
    into is a volume with a problem, so that what is in it is missed; it keeps nobody from the others.

    Args:
        leave_out: files and folders that are skipped.

    Raises:
        VolumeError: no such folder, nothing in it, or nothing that can be read.
    """
    if folder.is_file():
        raise VolumeError(
            f"'{folder}' is one file; give the folder that holds the volumes, or for one file -o with the "
            "name of its mask."
        )
    if not folder.is_dir():
        raise VolumeError(f"There is no folder '{folder}'; give the folder that holds the volumes.")
    hidden = {path.resolve() for path in (folder, *leave_out)}
    found = [each for path, problem in _walk(folder, hidden) for each in _volumes(path, folder, problem)]
    if found and all(each.unread for each in found):
        raise VolumeError(found[0].problem)
    if not found:
        raise VolumeError(
            f"The folder '{folder}' holds no volume; give one with {', '.join(SINGLE_VOLUMES)} files or "
            "DICOM slices."
        )
    return sorted(_told_apart(found), key=lambda each: each.case)


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
            if error.errno not in _NOTHING:
                yield path, _closed(path, error)
            continue
        if stat.S_ISDIR(mode):
            folders.append(path)
        elif stat.S_ISREG(mode) and path.resolve() not in hidden:
            files.append(path)
    if slices and any(_is_slice(path) for path in files):
        yield folder, ""
        slices = False  # those below are series of this folder
    yield from ((path, "") for path in files if path.name.lower().endswith((*SINGLE_VOLUMES, ".zip")))
    for path in folders:
        if path.resolve() not in hidden:
            hidden.add(path.resolve())  # a link back to where it lies would never end
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
    try:  # slices often have no ending, or a number for one
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


def _told_apart(found: Sequence[FoundVolume]) -> Iterator[FoundVolume]:
    """Volumes of one name keep their endings: 'a.nii.gz' and 'a.nrrd' of one folder."""
    same: dict[str, list[FoundVolume]] = defaultdict(list)
    for each in found:
        same[each.case.lower()].append(each)
    for each in found:
        if len(same[each.case.lower()]) == 1 or each.series is not None:
            yield each
        else:
            yield replace(each, case=str(Path(each.case).with_name(each.path.name).as_posix()))
