"""Writer of DICOM segmentations (SEG) that refer to their source series.

highdicom makes the object. The file is written in a hidden folder next to its target, read back with
another library, compared voxel by voxel and frame by frame with the label map, the grid and the slices of
the series, and only then moved to its name.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import PYDICOM_ROOT_UID, SegmentationStorage, generate_uid

from medsam_app._version import __version__
from medsam_app.errors import MedsamError, SaveError
from medsam_app.io.dicom.frames import DAMAGED
from medsam_app.io.dicom.seg_reader import (
    frame_places,
    label_map_of,
    read_dicom_seg,
    read_segmentation,
    segment_names,
    short,
)
from medsam_app.io.dicom.seg_source import Source, read_source
from medsam_app.io.dicom.series import Slice
from medsam_app.io.volume import Volume
from medsam_app.io.writing import check_place, smallest_labels, write_proved

__all__ = ["read_dicom_seg", "save_dicom_seg"]

#: Number of the series that segmentations are put into; scanners count from 1.
_SERIES_NUMBER = 300
#: Where the series tells no date of its study: the file is to be the same whenever it is made.
_NO_DATE = "19700101"


def save_dicom_seg(
    label_map: NDArray,
    volume: Volume,
    path: str | Path,
    *,
    label_names: Mapping[int, str] | None = None,
    colours: Mapping[int, str] | None = None,
    algorithm: str = "medsam_app",
    algorithm_version: str = __version__,
    automatic: bool = False,
) -> Path:
    """Write a label map as a binary DICOM segmentation and prove it by reading it back.

    There is a segment for every label that occurs or has a name, in the order of the labels. Where these are
    1 to N a segment has the number of its label; otherwise segments are numbered from 1 and their
    descriptions ("label 7: liver") keep the labels. Slices of which a segment has no voxel get no frame. The
    same label map, series and options give the same bytes: UIDs are hashes and dates are those of the study.

    Args:
        label_map: (i, j, k) whole numbers from 0, or booleans, on the grid of `volume`.
        volume: loaded from a DICOM folder, .zip or file, which is there still.
        path: ends in .dcm.
        label_names: names of label values; viewers show the first 64 characters.
        colours: '#rrggbb' of label values.
        algorithm, algorithm_version: what made the label map, at most 64 characters each.
        automatic: whether it worked without a person's clicks.

    Returns:
        the path written.

    Raises:
        SaveError: wrong labels or shape, an empty mask without names, a series that a segmentation cannot
            refer to, highdicom is not installed, or the file could not be written or did not read back as
            written. What was at `path` before is then still there.
        VolumeError: the series is not there any more.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise SaveError(
            'Saving DICOM segmentations needs the package highdicom; run: pip install "medsam-app[dicom]"'
        ) from error
    path = Path(path).expanduser()
    if path.suffix.lower() != ".dcm":
        raise SaveError(f"A DICOM segmentation cannot be saved as '{path.name}'; let its name end in .dcm.")
    labels = smallest_labels(label_map, volume.shape)
    check_place(path)
    _keep_others(path)
    names = _names(labels, label_names or {})
    source = read_source(volume)
    made = _made(
        labels,
        names,
        source,
        {label: colours[label] for label in names if label in colours} if colours else {},
        (short(algorithm) or "medsam_app", short(algorithm_version) or __version__),
        automatic,
    )

    def write(draft: Path) -> None:
        made.save_as(draft, enforce_file_format=True)
        _prove(path, draft, labels, names, volume, source)

    write_proved(path, volume, write)
    return path


def _keep_others(path: Path) -> None:
    """Refuse to replace a file that is no segmentation: a slice of the series, for one."""
    if path.exists():
        try:
            data = pydicom.dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True)
            kind = data.get("SOPClassUID")
        except (*DAMAGED, EOFError, OSError):
            kind = None
        if kind != SegmentationStorage:
            raise SaveError(
                f"'{path.name}' is there already and is no DICOM segmentation; give the mask another name."
            )


def _names(labels: NDArray, given: Mapping[int, str]) -> dict[int, str]:
    """Names of the labels that occur or are named, in the order of the labels."""
    found = {int(label) for k in range(labels.shape[2]) for label in np.unique(labels[:, :, k])}
    wanted = sorted((found | {int(label) for label in given}) - {0})
    if not wanted:
        raise SaveError(
            "The mask is empty and its labels have no names, but a DICOM segmentation needs at least one "
            "segment; give a name, or save the mask as .nii.gz."
        )
    if wanted[0] < 0 or wanted[-1] > 2**32 - 1 or len(wanted) > 65535:
        raise SaveError("Labels of a DICOM segmentation are 1 to 4294967295, at most 65535 of them.")
    return {label: " ".join(str(given.get(label) or f"label {label}").split())[:900] for label in wanted}


def _numbered(labels: NDArray, wanted: list[int]) -> NDArray:
    """(k, j, i) numbers of segments: the label map itself where these are its labels."""
    if wanted == list(range(1, len(wanted) + 1)):
        return labels.transpose(2, 1, 0)
    known = np.array([0, *wanted])
    out = np.empty(labels.shape[::-1], dtype=np.min_scalar_type(len(wanted)))
    for k in range(len(out)):
        out[k] = np.searchsorted(known, labels[:, :, k].T)
    return out


def _made(
    labels: NDArray,
    names: dict[int, str],
    source: Source,
    colours: dict[int, str],
    algorithm: tuple[str, str],
    automatic: bool,
) -> Any:
    """Return the segmentation as a highdicom object, independent of time."""
    import highdicom

    digest = hashlib.sha256()
    for k in range(labels.shape[2]):
        digest.update(np.ascontiguousarray(labels[:, :, k].T).data)
    said = [labels.dtype.str, labels.shape, names, colours, algorithm, automatic, __version__]
    slices = [f"{item.uid} {item.frame}" for item in source.slices]
    entropy = [repr(said), source.series, *slices, digest.hexdigest()]

    def uid(what: str) -> str:
        return generate_uid(PYDICOM_ROOT_UID, [what, *entropy])

    method = highdicom.AlgorithmIdentificationSequence(
        name=algorithm[0], version=algorithm[1], family=codes.DCM.ArtificialIntelligence
    )
    segments = []
    for number, (label, name) in enumerate(names.items(), start=1):
        try:
            rgb = bytes.fromhex(colours[label].removeprefix("#")) if label in colours else None
            colour = highdicom.color.CIELabColor.from_rgb(*rgb) if rgb else None
        except (ValueError, TypeError) as error:
            raise SaveError(f"'{colours[label]}' is no colour; give it as '#rrggbb'.") from error
        item = highdicom.seg.SegmentDescription(
            number,
            short(name) or f"label {label}",
            # names are free text: the category viewers show for a segment without one
            codes.SCT.Tissue,
            codes.SCT.Tissue,
            "AUTOMATIC" if automatic else "SEMIAUTOMATIC",
            method,
            display_color=colour,
        )
        item.SegmentDescription = f"label {label}: {name}"
        segments.append(item)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it thinks of the patient's name
            made = highdicom.seg.Segmentation(
                source.stand_ins(),
                _numbered(labels, list(names)),
                "BINARY",
                segments,
                series_instance_uid=uid("series"),
                series_number=_SERIES_NUMBER,
                sop_instance_uid=uid("instance"),
                instance_number=1,
                manufacturer="medsam_app",
                manufacturer_model_name="medsam_app",
                software_versions=__version__,
                device_serial_number="0",
                content_label="SEGMENTATION",
                series_description=short(f"Segmentation of {source.description or 'series'}"),
            )
    except (*DAMAGED, IndexError) as error:
        raise SaveError(
            f"The series of '{source.name}' cannot be referred to by a DICOM segmentation ({error}); save "
            "the mask as .nii.gz."
        ) from error
    source.refer(made)
    return _timeless(made, source, uid("dimensions"))


def _timeless(made: Any, source: Source, dimensions: str) -> Any:
    """In UTF-8, and without the time and the random UID that the library puts in."""
    made.SpecificCharacterSet = "ISO_IR 192"
    made.ContentDate = source.header.StudyDate or _NO_DATE
    made.ContentTime = source.header.StudyTime or "000000"
    del made.InstanceCreationDate, made.InstanceCreationTime
    for equipment in made.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return made


def _prove(
    path: Path, draft: Path, labels: NDArray, names: dict[int, str], volume: Volume, source: Source
) -> None:
    """Hold the file against the label map, the grid and the series; `SaveError` when it is not the same."""
    try:
        data = read_segmentation(draft)
        places = frame_places(path, data, volume.grid)
        found = label_map_of(draft, data, volume.grid)
        said = list(segment_names(data).values())
    except (MedsamError, *DAMAGED, IndexError) as error:
        raise SaveError(f"'{path.name}' did not read back ({error}); nothing was saved.") from error
    wrong = [k for k in range(labels.shape[2]) if not np.array_equal(found[:, :, k], labels[:, :, k])]
    strays = [
        k
        for (_, k), group in zip(places, data.PerFrameFunctionalGroupsSequence, strict=True)
        if not _belongs(group, source, source.slices[k])
    ]
    same = (
        data.StudyInstanceUID == source.header.StudyInstanceUID
        and data.FrameOfReferenceUID == source.header.FrameOfReferenceUID
        and data.ReferencedSeriesSequence[0].SeriesInstanceUID == source.series
        and data.get("PatientID") == source.header.PatientID
    )
    for failed, what in (
        (wrong, f"has other voxels in slice {wrong[0] if wrong else 0}"),
        (strays, f"has a frame that refers to another slice than {strays[0] if strays else 0}"),
        (said != list(names.items()), "has other labels or names"),
        (not same, "is of another patient, study, series or frame of reference"),
    ):
        if failed:
            raise SaveError(f"'{path.name}' did not read back as written: it {what}; nothing was saved.")


def _belongs(group: Dataset, source: Source, item: Slice) -> bool:
    """Return whether a frame lies where a slice of the series lies, and names it."""
    position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    images = group.DerivationImageSequence[0].SourceImageSequence
    number = item.frame + 1 if source.frames[item.uid] else None
    named = [(image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")) for image in images]
    assert item.position is not None
    return named == [(item.uid, number)] and np.allclose(position, item.position, rtol=0, atol=1e-4)
