"""Safe access to DICOM files in a folder, a .zip or a single file."""

from __future__ import annotations

import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medsam_app.errors import VolumeError
from medsam_app.io.headers import looks_like_dicom
from medsam_app.system import format_bytes, machine_fault, no_temporary_folder

#: Largest unpacked size of a .zip, in bytes.
MAX_UNPACKED = 8 * 10**9
#: Largest number of files in a .zip.
MAX_FILES = 50_000


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, list[Path] | None]]:
    """Yield the folder of the DICOM files at a path, and the list of files if the path is a single file.

    A .zip is unpacked into a temporary folder, which is removed on exit.

    Raises:
        VolumeError: the .zip is damaged, locked, too large, or would write outside its folder, or
            (MachineFault) there is no room to unpack it.
    """
    if path.is_dir():
        yield path, None
    elif path.suffix.lower() != ".zip":
        yield path.parent, [path]
    else:
        with _temporary(path) as folder:
            try:
                _extract(path, Path(folder))
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError) as error:
                raise VolumeError(
                    f"'{path.name}' is not a .zip file or is damaged; make it again."
                ) from error
            except OSError as error:
                fault = machine_fault(path, error, done="unpacked")
                if fault is None:
                    raise
                raise fault from error
            yield Path(folder), None


def _temporary(path: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="dicom-")
    except OSError as error:
        raise no_temporary_folder(path, error) from error


def _extract(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        items = [item for item in archive.infolist() if not item.is_dir()]
        if len(items) > MAX_FILES:
            raise VolumeError(f"'{path.name}' holds {len(items)} files; at most {MAX_FILES} are unpacked.")
        total = sum(item.file_size for item in items)
        if total > MAX_UNPACKED:
            raise VolumeError(
                f"'{path.name}' would unpack to {format_bytes(total)}, but at most "
                f"{format_bytes(MAX_UNPACKED)} is "
                "unpacked; put one series in it, or give the unpacked folder."
            )
        for number, item in enumerate(items):
            name = PurePosixPath(item.filename.replace("\\", "/"))
            if (
                name.is_absolute()
                or ".." in name.parts
                or ":" in name.parts[0]
                or stat.S_ISLNK(item.external_attr >> 16)
            ):
                raise VolumeError(
                    f"'{path.name}' holds a file that would land outside its folder ('{item.filename}'); "
                    "make the .zip again from the folder of slices."
                )
            if item.flag_bits & 1:
                raise VolumeError(f"'{path.name}' is locked with a password; give the unpacked folder.")
            with archive.open(item) as source:
                start = source.read(132)
                # Files that are not DICOM become empty files, so that error messages can list them. The
                # numbered folders ensure that no name in the archive decides where data is written.
                target = folder / f"{number:05d}" / name.name
                target.parent.mkdir()
                with target.open("wb") as file:
                    if looks_like_dicom(start):
                        file.write(start)
                        # `ZipExtFile` never returns more than the size summed above
                        while block := source.read(1 << 20):
                            file.write(block)
