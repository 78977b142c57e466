"""Writer of DICOM segmentations (SEG) that refer to their source series.

highdicom builds the segmentation. The file is written in a hidden folder next to its target and read back
with pydicom. Its voxels and frames are compared with the label map, the grid and the slices of the series.
Only then is the file moved to its target.
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

#: Series number of segmentations, larger than those of scanners, which count from 1.
_SERIES_NUMBER = 300
#: Date if the series has no study date. It is fixed, so that equal masks give equal files at any time.
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
    """Write a label map as a binary DICOM segmentation and verify it by reading it back.

    There is a segment for every label that occurs or has a name, in the order of the labels. Segments are
    numbered from 1, and their descriptions ("label 7: liver") record the labels. Slices in which a segment
    has no voxel get no frame. Equal label maps, series and options give equal bytes: UIDs are hashes, and
    dates are those of the study.

    Args:
        label_map: (i, j, k) whole numbers from 0, or booleans, on the grid of `volume`.
        volume: image, loaded from a DICOM folder, .zip or file that still exists.
        path: target; ends in .dcm.
        label_names: names of label values; viewers show the first 64 characters.
        colours: colours of label values as '#rrggbb'.
        algorithm, algorithm_version: program that made the label map, at most 64 characters each.
        automatic: whether the label map was made without clicks of a user.

    Returns:
        The written path.

    Raises:
        SaveError: the labels or the shape are wrong, the mask is empty and has no names, a segmentation
            cannot refer to the series, highdicom is not installed, or the file could not be written or did
            not read back as written. An existing file at `path` is then unchanged.
        VolumeError: the series does not exist any more.
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
    _check_target(path)
    names = _names(labels, label_names or {})
    source = read_source(volume)
    segmentation = _segmentation(
        labels,
        names,
        source,
        {label: colours[label] for label in names if label in colours} if colours else {},
        (short(algorithm) or "medsam_app", short(algorithm_version) or __version__),
        automatic,
    )

    def write(draft: Path) -> None:
        segmentation.save_as(draft, enforce_file_format=True)
        _verify(path, draft, labels, names, volume, source)

    write_proved(path, volume, write)
    return path


def _check_target(path: Path) -> None:
    """Refuse to replace a file that is not a segmentation, for example a slice of the series."""
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


def _names(labels: NDArray, label_names: Mapping[int, str]) -> dict[int, str]:
    """Return the names of the labels that occur or have a name, in the order of the labels."""
    present = {int(label) for k in range(labels.shape[2]) for label in np.unique(labels[:, :, k])}
    labels_to_save = sorted((present | {int(label) for label in label_names}) - {0})
    if not labels_to_save:
        raise SaveError(
            "The mask is empty and its labels have no names, but a DICOM segmentation needs at least one "
            "segment; give a name, or save the mask as .nii.gz."
        )
    if labels_to_save[0] < 0 or labels_to_save[-1] > 2**32 - 1 or len(labels_to_save) > 65535:
        raise SaveError("Labels of a DICOM segmentation are 1 to 4294967295, at most 65535 of them.")
    return {
        label: " ".join(str(label_names.get(label) or f"label {label}").split())[:900]
        for label in labels_to_save
    }


def _segment_numbers(labels: NDArray, segment_labels: list[int]) -> NDArray:
    """Return (k, j, i) segment numbers, without a copy if they equal the labels."""
    if segment_labels == list(range(1, len(segment_labels) + 1)):
        return labels.transpose(2, 1, 0)
    values = np.array([0, *segment_labels])
    numbers = np.empty(labels.shape[::-1], dtype=np.min_scalar_type(len(segment_labels)))
    for k in range(len(numbers)):
        numbers[k] = np.searchsorted(values, labels[:, :, k].T)
    return numbers


def _segmentation(
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
    parameters = [labels.dtype.str, labels.shape, names, colours, algorithm, automatic, __version__]
    slices = [f"{item.uid} {item.frame}" for item in source.slices]
    entropy = [repr(parameters), source.series, *slices, digest.hexdigest()]

    def uid(role: str) -> str:
        return generate_uid(PYDICOM_ROOT_UID, [role, *entropy])

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
            # Names are free text, so the coded category and type are the generic ones.
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
            warnings.simplefilter("ignore")  # about invalid values of the patient's name
            segmentation = highdicom.seg.Segmentation(
                source.stand_ins(),
                _segment_numbers(labels, list(names)),
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
    source.refer(segmentation)
    return _reproducible(segmentation, source, uid("dimensions"))


def _reproducible(segmentation: Any, source: Source, dimensions: str) -> Any:
    """Set UTF-8, and replace the current time and the random UIDs that highdicom inserts."""
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    segmentation.ContentDate = source.header.StudyDate or _NO_DATE
    segmentation.ContentTime = source.header.StudyTime or "000000"
    del segmentation.InstanceCreationDate, segmentation.InstanceCreationTime
    for equipment in segmentation.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return segmentation


def _verify(
    path: Path, draft: Path, labels: NDArray, names: dict[int, str], volume: Volume, source: Source
) -> None:
    """Compare the file with the label map, the grid and the series; raise `SaveError` if they differ."""
    try:
        data = read_segmentation(draft)
        places = frame_places(path, data, volume.grid)
        label_map = label_map_of(draft, data, volume.grid)
        segments = list(segment_names(data).values())
    except (MedsamError, *DAMAGED, IndexError) as error:
        raise SaveError(f"'{path.name}' did not read back ({error}); nothing was saved.") from error
    differing = [k for k in range(labels.shape[2]) if not np.array_equal(label_map[:, :, k], labels[:, :, k])]
    misplaced = [
        k
        for (_, k), group in zip(places, data.PerFrameFunctionalGroupsSequence, strict=True)
        if not _refers_to(group, source, source.slices[k])
    ]
    same = (
        data.StudyInstanceUID == source.header.StudyInstanceUID
        and data.FrameOfReferenceUID == source.header.FrameOfReferenceUID
        and data.ReferencedSeriesSequence[0].SeriesInstanceUID == source.series
        and data.get("PatientID") == source.header.PatientID
    )
    for failed, what in (
        (differing, f"has other voxels in slice {differing[0] if differing else 0}"),
        (misplaced, f"has a frame that refers to another slice than {misplaced[0] if misplaced else 0}"),
        (segments != list(names.items()), "has other labels or names"),
        (not same, "is of another patient, study, series or frame of reference"),
    ):
        if failed:
            raise SaveError(f"'{path.name}' did not read back as written: it {what}; nothing was saved.")


def _refers_to(group: Dataset, source: Source, item: Slice) -> bool:
    """Return whether a frame has the position of a slice of the series, and refers to it."""
    position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    images = group.DerivationImageSequence[0].SourceImageSequence
    number = item.frame + 1 if source.frames[item.uid] else None
    named = [(image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")) for image in images]
    assert item.position is not None
    return named == [(item.uid, number)] and np.allclose(position, item.position, rtol=0, atol=1e-4)
