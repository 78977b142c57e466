"""Attributes that a DICOM segmentation copies from its source series.

The slices are found as the loader found them, in its order, so that slice k of a label map is slice k of
the series: a file, or a frame of a multi-frame file. Patient and study are those of the first slice.
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

#: Beside the groups of patient and clinical trial.
_TAKEN = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator", "Manufacturer",
    "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "InstitutionName",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
#: Must be there, with or without a value.
_EXPECTED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Source:
    """The series under a label map.

    Attributes:
        name: of its folder or file, for messages.
        slices: slice k of the volume.
        header: what is the same for all of them: patient, study, frame of reference, equipment.
        description: of the series.
        series: its UID.
        thickness, distance: mm; of a slice, and between slices along their normal.
        frames: for each file (by UID), the frames it holds, or 0 where it is a single slice.
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
        """A header for each slice, as of a series of single slices, in the order of the slices.

        The library that writes segmentations takes single slices or one multi-frame file, all of whose
        frames must be meant. A frame therefore stands in as a slice of its own, called 2.25.(k + 1);
        `refer` puts the real references in their places.
        """
        made = []
        for number, item in enumerate(self.slices, start=1):
            header = Dataset()
            header.update(self.header)
            header.SOPClassUID = CTImageStorage
            header.SOPInstanceUID = f"2.25.{number}"
            header.SeriesInstanceUID = self.series
            header.Columns, header.Rows = item.size[:2]
            header.ImagePositionPatient = _decimals(item.position)
            header.ImageOrientationPatient = _decimals(self.slices[0].axes)
            header.PixelSpacing = _decimals(self.slices[0].spacing)[::-1]
            header.SliceThickness = DSfloat(self.thickness, auto_format=True)
            header.SpacingBetweenSlices = DSfloat(self.distance, auto_format=True)
            made.append(header)
        return made

    def refer(self, data: Dataset) -> None:
        """Replace the stand-ins in a segmentation by the slices and frames they represent."""
        files = {item.uid: item for item in self.slices}
        used: dict[str, list[int]] = {uid: [] for uid in files}
        for item in self.slices:
            used[item.uid].append(item.frame + 1)
        images = [
            _reference(item, used[uid] if len(used[uid]) < self.frames[uid] else [])
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
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = item.sop_class, item.uid
    if frames:
        made.ReferencedFrameNumber = frames if len(frames) > 1 else frames[0]
    return made


def _decimals(values: object) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in np.ravel(np.asarray(values))]


def read_source(volume: Volume) -> Source:
    """Find the series that a volume was read from.

    Raises:
        SaveError: it was not read from DICOM, or its series lacks what a segmentation must refer to, or is
            not the same any more.
    """
    path = volume.source
    if path is None or find_format(path) != "dicom":
        what = "This volume" if path is None else f"'{path.name}'"
        raise SaveError(
            f"{what} is not DICOM, but a DICOM segmentation lies on a DICOM series; save the mask as .nii.gz."
        )
    if not volume.series:
        raise _lacks(path.name, "series UID")
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
    names = ["StudyInstanceUID", "FrameOfReferenceUID"]
    found: dict[str, set[str]] = {each: set() for each in names}
    for path in dict.fromkeys(item.path for item in slices):
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(names), force=True)
        for each in names:
            found[each].add(str(data.get(each) or ""))
    for each, what, several in (
        (names[0], "study UID", "studies"),
        (names[1], "frame of reference", "frames of reference"),
    ):
        if "" in found[each]:
            raise _lacks(name, what)
        if len(found[each]) > 1:
            raise SaveError(
                f"The slices of '{name}' name {len(found[each])} {several}, so no DICOM segmentation "
                "can lie on them; save the mask as .nii.gz."
            )
    if not all(item.uid and item.sop_class for item in slices):
        raise _lacks(name, "SOP instance or class UID in every slice")
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


def _lacks(name: str, what: str) -> SaveError:
    return SaveError(
        f"The series of '{name}' names no {what}, which a DICOM segmentation must refer to; save the mask "
        "as .nii.gz."
    )


def _header(data: Dataset) -> Dataset:
    """Return patient, study and equipment; values that violate DICOM are left out."""
    made = Dataset()
    taken = {tag_for_keyword(name) for name in _TAKEN}
    for tag in list(data.keys()):
        if tag in taken or (tag.group in (0x10, 0x12) and not tag.is_private):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = data[tag]
                if found.keyword != "PatientSex" or found.value in ("M", "F", "O"):
                    made.add(DataElement(tag, found.VR, found.value, validation_mode=pydicom.config.RAISE))
            except DAMAGED:
                continue
    for name in _EXPECTED:
        if name not in made:
            setattr(made, name, "")
    return made
