"""DICOM series: grouping of the slices of a folder or .zip.

SimpleITK (GDCM) reads the files. This module selects the images and groups them into series.
`medsam_app.io.dicom.stack` checks whether a series forms a volume.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_app.atomic import is_text
from medsam_app.errors import SeriesChoice, VolumeError
from medsam_app.io.headers import looks_like_dicom, sitk_reader

#: SOP classes that are not images: segmentations, presentation states, reports, radiotherapy, directories,
#: raw data.
_NOT_IMAGES = re.compile(
    r"1\.2\.840\.10008\."
    r"(1\.3\.10|5\.1\.4\.1\.1\.(66|88|11|104|481\.[2-9]|9)(\.|$)|5\.1\.4\.(34|38|39|43|44|45))"
)


@dataclass(frozen=True, eq=False)
class Slice:
    """One DICOM file with pixels, or one frame of it.

    Attributes:
        path: the file.
        uid: SOP instance UID.
        series: UID of the series.
        sop_class: SOP class UID.
        tags: values of `TAGS` that the file has, by tag.
        size: columns, rows, frames.
        pixel: pixel type of SimpleITK.
        components: values per pixel.
        axes: (2, 3) unit vectors in LPS along increasing column and row index, or None if missing.
        position: (3,) centre of the first voxel, mm in LPS, or None if missing.
        spacing: (2,) mm between columns and between rows, or None if missing.
        frame: number from 0 in a multi-frame file.
        rescale: factor and offset to apply to the values that SimpleITK returns.
    """

    path: Path
    uid: str
    series: str
    sop_class: str
    tags: dict[str, str]
    size: tuple[int, int, int]
    pixel: int
    components: int
    axes: NDArray[np.float64] | None
    position: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    frame: int = 0
    rescale: tuple[float, float] = (1.0, 0.0)


@dataclass(frozen=True)
class SeriesInfo:
    """Series that can be opened.

    Attributes:
        uid: UID of the series.
        number: number from 1 in the list of series, an alternative to `uid` for choosing it.
        description: description of the series.
        modality: DICOM modality.
        slices: number of files, or of frames in multi-frame files.
        columns, rows: size of a slice.
    """

    uid: str
    number: int
    description: str
    modality: str
    slices: int
    columns: int
    rows: int

    @property
    def label(self) -> str:
        """One line for a list of choices."""
        name = _readable(self.description) or "without description"
        size = f"{self.slices} slices of {self.columns} x {self.rows}"
        return f"{self.modality or 'unknown modality'}, {name}, {size}"


def _readable(text: str) -> str:
    """Return the text of a tag; bytes that are not UTF-8 are read as Latin 1."""
    return text if is_text(text) else text.encode("utf-8", "surrogateescape").decode("latin-1")


def scan(
    name: str, folder: Path, files: Iterable[Path] | None = None
) -> tuple[dict[str, list[Slice]], tuple[str, ...]]:
    """Return the slices of every image series under a folder, by UID, and notes on skipped files.

    Args:
        name: name of the folder or .zip, for messages.
        folder: folder to scan.
        files: files to read instead of the whole folder.

    Raises:
        VolumeError: there is no DICOM image, or an image cannot be read.
    """
    series: dict[str, list[Slice]] = {}
    skipped: Counter[str] = Counter()
    other_files: Counter[str] = Counter()
    seen: set[str] = set()
    copies = 0
    for path in sorted(folder.rglob("*") if files is None else files):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            start = file.read(4096)
        if not looks_like_dicom(start[:132]):
            other_files[path.suffix or "other"] += 1
            continue
        # The first UID of the DICOM standard in the file is the SOP class.
        kind = re.search(rb"1\.2\.840\.10008\.[\d.]+", start[128:])
        if kind and _NOT_IMAGES.match(kind[0].decode().rstrip(".")):
            skipped["segmentation" if b".66.4" in kind[0] else "object without image"] += 1
            continue
        item = _read_tags(path)
        if item.tags.get("0008|0060") in ("SEG", "RTSTRUCT", "SR", "PR"):
            skipped["segmentation" if item.tags["0008|0060"] == "SEG" else "object without image"] += 1
            continue
        if item.uid and item.uid in seen:
            copies += 1
            continue
        seen.add(item.uid)
        series.setdefault(item.series, []).append(item)
    skipped_text = ", ".join(
        f"{count} {name}{'s' if count > 1 else ''}" for name, count in sorted(skipped.items())
    )
    if not series:
        contents = (
            skipped_text
            or ", ".join(f"{count} {name} file(s)" for name, count in other_files.most_common(4))
            or "nothing"
        )
        raise VolumeError(
            f"'{name}' holds no DICOM images (found: {contents}); give the folder or .zip that holds the "
            "slices, "
            "or a single .nii.gz, .nrrd, .mha or .mhd file."
        )
    notes = [f"Passed over beside the images: {skipped_text}."] if skipped_text else []
    if copies:
        notes.append(f"{copies} files are copies of slices already there and were left out.")
    return series, tuple(notes)


TAGS = {
    "series": "0020|000e", "uid": "0008|0018", "class": "0008|0016", "modality": "0008|0060",
    "description": "0008|103e", "position": "0020|0032", "orientation": "0020|0037", "spacing": "0028|0030",
    "instance": "0020|0013", "acquisition": "0020|0012", "time": "0008|0032", "echo": "0018|0081",
    "photometric": "0028|0004",
}  # fmt: skip


def _read_tags(path: Path) -> Slice:
    reader = sitk_reader(path, "dicom")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(
            f"The DICOM slice '{path.name}' cannot be read: it is cut short, damaged or compressed in an "
            "unknown way; "
            "export the series again."
        ) from error
    tags = {key: reader.GetMetaData(key).strip(" \0") for key in TAGS.values() if reader.HasMetaDataKey(key)}
    size = [*(int(n) for n in reader.GetSize()), 1, 1][:3]
    position = numbers(tags.get(TAGS["position"]), 3)
    cosines = numbers(tags.get(TAGS["orientation"]), 6)
    spacing = reader.GetSpacing()
    return Slice(
        path=path,
        uid=tags.get(TAGS["uid"], ""),
        series=tags.get(TAGS["series"], ""),
        sop_class=tags.get(TAGS["class"], ""),
        tags=tags,
        size=(size[0], size[1], size[2]),
        pixel=reader.GetPixelIDValue(),
        components=reader.GetNumberOfComponents(),
        axes=None if cosines is None else cosines.reshape(2, 3),
        position=position,
        spacing=(float(spacing[0]), float(spacing[1])) if TAGS["spacing"] in tags else None,
    )


def numbers(text: str | None, count: int) -> NDArray[np.float64] | None:
    """Parse a DICOM string of numbers; None if their count differs."""
    try:
        values = np.array([float(part) for part in (text or "").split("\\")])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def series_list(series: dict[str, list[Slice]]) -> list[SeriesInfo]:
    """Return the series to choose from, in the order of their UIDs."""
    infos = []
    for number, (uid, slices) in enumerate(sorted(series.items()), start=1):
        first = slices[0]
        infos.append(
            SeriesInfo(
                uid=uid,
                number=number,
                description=first.tags.get(TAGS["description"], ""),
                modality=first.tags.get(TAGS["modality"], ""),
                slices=sum(item.size[2] for item in slices),
                columns=first.size[0],
                rows=first.size[1],
            )
        )
    return infos


def pick_series(name: str, series: dict[str, list[Slice]], chosen: str | None) -> list[Slice]:
    """Return the slices of the chosen series, or of the only one.

    Args:
        name: name of the folder or .zip, for messages.
        series: slices by series UID.
        chosen: UID or number of the series; None for the only one.

    Raises:
        SeriesChoice: there are several series and none is chosen, or the chosen one does not exist.
    """
    infos = series_list(series)
    choices = [(info.uid or str(info.number), f"{info.number}: {info.label}") for info in infos]
    if chosen is None:
        if len(series) == 1:
            return next(iter(series.values()))
        listing = "; ".join(text for _, text in choices[:8]) + ("; ..." if len(choices) > 8 else "")
        raise SeriesChoice(
            f"'{name}' holds {len(series)} series; choose one by its number or UID "
            f"with the option 'series': {listing}.",
            option="series",
            choices=choices,
        )
    for info in infos:
        if chosen in (info.uid, str(info.number)):
            return series[info.uid]
    raise SeriesChoice(
        f"'{name}' has no series '{chosen}'; it has " + "; ".join(text for _, text in choices[:8]) + ".",
        option="series",
        choices=choices,
    )
