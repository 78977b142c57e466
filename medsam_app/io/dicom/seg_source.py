"""Attributes that a DICOM segmentation copies from its source series.

The slices are read and ordered as in the loader, so that slice k of a label map is slice k of the series: a
file, or a frame of a multi-frame file. The first slice provides patient and study.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage
from pydicom.valuerep import DSfloat

from medsam_app.errors import SaveError, VolumeError
from medsam_app.grid.geometry import Grid
from medsam_app.io.archive import unpacked
from medsam_app.io.dicom import series as dicom
from medsam_app.io.dicom import stack as dicom_stack
from medsam_app.io.dicom.frames import DAMAGED
from medsam_app.io.dicom.series import Slice
from medsam_app.io.headers import find_format
from medsam_app.io.volume import Volume

#: Copied attributes, in addition to the groups of patient and clinical trial.
_COPIED = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator", "Manufacturer",
    "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "InstitutionName",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
#: Attributes that must be present, with or without a value.
_REQUIRED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Source:
    """Source series of a label map.

    Attributes:
        name: name of the folder or file, for messages.
        slices: slices in the order of k.
        header: attributes common to all slices: patient, study, frame of reference, equipment.
        description: description of the series.
        series: UID of the series.
        thickness: thickness of a slice in mm.
        distance: distance between slices along their normal in mm.
        frames: number of frames of each file by its UID, 0 for a file with a single slice.
    """

    name: str
    slices: list[Slice]
    header: Dataset
    description: str
    series: str
    thickness: float
    distance: float
    frames: dict[str, int]

    def stand_ins(self) -> list[Dataset]:
        """Return a header for each slice, in their order, as if the series had single-slice files.

        highdicom accepts single-slice files, or one multi-frame file with all of its frames. Each slice is
        therefore represented by a header with the UID 2.25.(k + 1). `refer` replaces these UIDs by the real
        references.
        """
        headers = []
        for number, source in enumerate(self.slices, start=1):
            header = Dataset()
            header.update(self.header)
            header.SOPClassUID = CTImageStorage
            header.SOPInstanceUID = f"2.25.{number}"
            header.SeriesInstanceUID = self.series
            header.Columns, header.Rows = source.size[:2]
            header.ImagePositionPatient = _decimals(source.position)
            header.ImageOrientationPatient = _decimals(self.slices[0].axes)
            header.PixelSpacing = _decimals(self.slices[0].spacing)[::-1]
            header.SliceThickness = DSfloat(self.thickness, auto_format=True)
            header.SpacingBetweenSlices = DSfloat(self.distance, auto_format=True)
            headers.append(header)
        return headers

    def refer(self, data: Dataset) -> None:
        """Replace the UIDs of `stand_ins` in a segmentation by references to the real slices and frames."""
        files = {item.uid: item for item in self.slices}
        frames_of_file: dict[str, list[int]] = {uid: [] for uid in files}
        for item in self.slices:
            frames_of_file[item.uid].append(item.frame + 1)
        images = [
            _reference(item, frames_of_file[uid] if len(frames_of_file[uid]) < self.frames[uid] else [])
            for uid, item in files.items()
        ]
        data.SourceImageSequence = images
        data.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [
            _reference(item, []) for item in files.values()
        ]
        for group in data.PerFrameFunctionalGroupsSequence:
            for image in group.DerivationImageSequence[0].SourceImageSequence:
                stand_in = UID(image.ReferencedSOPInstanceUID)
                if stand_in.startswith("2.25.") and stand_in not in files:
                    item = self.slices[int(stand_in.removeprefix("2.25.")) - 1]
                    image.update(_reference(item, [item.frame + 1] if self.frames[item.uid] else []))


def _reference(item: Slice, frames: list[int]) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = item.sop_class, item.uid
    if frames:
        reference.ReferencedFrameNumber = frames if len(frames) > 1 else frames[0]
    return reference


def _decimals(values: object) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in np.ravel(np.asarray(values))]


def read_source(volume: Volume) -> Source:
    """Return the series that a volume was read from.

    Raises:
        SaveError: the volume was not read from DICOM, its series lacks attributes that a segmentation must
            refer to, or the series was changed.
    """
    path = volume.source
    if path is None or find_format(path) != "dicom":
        what = "This volume" if path is None else f"'{path.name}'"
        raise SaveError(
            f"{what} is not DICOM, but a DICOM segmentation lies on a DICOM series; save the mask as .nii.gz."
        )
    if not volume.series:
        raise _missing_attribute(path.name, "series UID")
    try:
        with unpacked(path) as (folder, files):
            originals = dicom.pick_series(path.name, dicom.scan(path.name, folder, files)[0], volume.series)
            stack = dicom_stack.stack(path.name, originals)
            slices = stack.frames[volume.frame] if volume.frame < len(stack.frames) else []
            grid = Grid((*originals[0].size[:2], len(slices)), stack.affine)
            difference = volume.grid.difference(grid)
            if difference:
                raise SaveError(
                    f"The series of '{path.name}', to whose slices a DICOM segmentation refers, is not the "
                    f"one that was loaded ({difference}); load it anew, or save the mask as .nii.gz."
                )
            return _source(path.name, slices, {item.uid: item.size[2] for item in originals})
    except (VolumeError, *DAMAGED, OSError, RuntimeError) as error:
        reason = f": {error}" if isinstance(error, VolumeError) else "."
        raise SaveError(
            f"The slices of '{path.name}', to which a DICOM segmentation refers, could not be read "
            f"again{reason} Load the series anew, or save the mask as .nii.gz."
        ) from error


def _source(name: str, slices: list[Slice], counts: dict[str, int]) -> Source:
    keywords = ["StudyInstanceUID", "FrameOfReferenceUID"]
    uids: dict[str, set[str]] = {keyword: set() for keyword in keywords}
    for path in dict.fromkeys(item.path for item in slices):
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(keywords), force=True)
        for keyword in keywords:
            uids[keyword].add(str(data.get(keyword) or ""))
    for keyword, singular, plural in (
        (keywords[0], "study UID", "studies"),
        (keywords[1], "frame of reference", "frames of reference"),
    ):
        if "" in uids[keyword]:
            raise _missing_attribute(name, singular)
        if len(uids[keyword]) > 1:
            raise SaveError(
                f"The slices of '{name}' name {len(uids[keyword])} {plural}, so no DICOM segmentation "
                "can lie on them; save the mask as .nii.gz."
            )
    if not all(item.uid and item.sop_class for item in slices):
        raise _missing_attribute(name, "SOP instance or class UID in every slice")
    first = slices[0]
    data = pydicom.dcmread(first.path, stop_before_pixels=True, force=True)
    assert first.axes is not None and first.position is not None and slices[-1].position is not None
    normal = np.cross(first.axes[0], first.axes[1])
    distance = abs(float(normal @ (slices[-1].position - first.position))) / (len(slices) - 1)
    thickness = dicom.numbers(str(data.get("SliceThickness") or ""), 1)
    enhanced = "PerFrameFunctionalGroupsSequence" in data
    return Source(
        name=name,
        slices=slices,
        header=_header(data),
        description=str(data.get("SeriesDescription") or ""),
        series=first.series,
        thickness=float(thickness[0]) if thickness is not None and thickness[0] > 0 else distance,
        distance=distance,
        frames={uid: count if enhanced or count > 1 else 0 for uid, count in counts.items()},
    )


def _missing_attribute(name: str, what: str) -> SaveError:
    return SaveError(
        f"The series of '{name}' names no {what}, which a DICOM segmentation must refer to; save the mask "
        "as .nii.gz."
    )


def _header(data: Dataset) -> Dataset:
    """Return patient, study and equipment, without values that violate the DICOM standard."""
    header = Dataset()
    tags = {tag_for_keyword(name) for name in _COPIED}
    for tag in list(data.keys()):
        if tag in tags or (tag.group in (0x10, 0x12) and not tag.is_private):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    element = data[tag]
                if element.keyword != "PatientSex" or element.value in ("M", "F", "O"):
                    header.add(
                        DataElement(tag, element.VR, element.value, validation_mode=pydicom.config.RAISE)
                    )
            except DAMAGED:
                continue
    for name in _REQUIRED:
        if name not in header:
            setattr(header, name, "")
    return header
