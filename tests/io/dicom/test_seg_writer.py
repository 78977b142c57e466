"""DICOM segmentations: voxels and references agree with the series."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medsam_app.errors import GridMismatch, SaveError, VolumeError
from medsam_app.grid.geometry import Grid
from medsam_app.io.dicom.seg_writer import read_dicom_seg, save_dicom_seg
from medsam_app.io.loading import list_series, load_volume
from medsam_app.io.volume import Volume
from tests.support import dicom_seg_series
from tests.support.dicom_seg_series import (
    SERIES,
    VOXELS,
    enhanced,
    labels_for,
    series,
    tilted,
)


def read_by_hand(path: Path, volume: Volume) -> np.ndarray:
    """Return (i, j, k, segments) masks of a segmentation, with all voxels mapped through mm to the grid."""
    data = pydicom.dcmread(path)
    masks = np.zeros((*volume.shape, len(data.SegmentSequence)), bool)
    shared = data.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = (float(mm) for mm in shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = data.pixel_array.reshape(data.NumberOfFrames, data.Rows, data.Columns)
    for frame, group in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):
        row, column = np.nonzero(frame)
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        lps = corner + np.outer(column * columns, orientation[:3]) + np.outer(row * rows, orientation[3:])
        ijk = volume.grid.to_voxel(lps * [-1, -1, 1])
        assert np.abs(ijk - np.rint(ijk)).max(initial=0) < 0.1
        segment = (group.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[0]
        masks[(*np.rint(ijk).astype(int).T, segment.ReferencedSegmentNumber - 1)] = True
    return masks


def source_pixels(reference: pydicom.Dataset, folder: Path) -> tuple[np.ndarray, list[float]]:
    """Return the values and the position of the slice or frame that a reference names."""
    for file in folder.rglob("*.dcm"):
        data = pydicom.dcmread(file)
        if data.SOPInstanceUID == reference.ReferencedSOPInstanceUID:
            assert data.SOPClassUID == reference.ReferencedSOPClassUID
            if "PerFrameFunctionalGroupsSequence" not in data:
                assert "ReferencedFrameNumber" not in reference
                return data.pixel_array, data.ImagePositionPatient
            number = int(reference.ReferencedFrameNumber) - 1
            group = data.PerFrameFunctionalGroupsSequence[number]
            frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
            return frames[number], group.PlanePositionSequence[0].ImagePositionPatient
    raise AssertionError("the segmentation names a slice that is not there")


@pytest.mark.parametrize("make", SERIES.values(), ids=SERIES.keys())
def test_every_voxel_and_every_reference_read_by_hand(tmp_path, make):
    volume = make(tmp_path / "series")
    labels = labels_for(volume.shape)
    path = save_dicom_seg(labels, volume, tmp_path / "mask.dcm", label_names={1: "liver"})
    masks = read_by_hand(path, volume)
    assert np.array_equal(masks, labels[..., None] == np.array([1, 2, 3]))

    data = pydicom.dcmread(path)
    assert data.NumberOfFrames == sum((labels[:, :, k] == n).any() for k in range(5) for n in (1, 2, 3)) == 11
    for group in data.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        values, position = source_pixels(reference, tmp_path / "series")
        corner = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(np.array(corner, float), np.array(position, float), atol=1e-6)
        k = round(volume.grid.to_voxel(np.array(corner, float) * [-1, -1, 1])[2])
        assert np.array_equal(values.astype(int).T - 1024, volume.array[:, :, k])
    first = pydicom.dcmread(next((tmp_path / "series").rglob("*.dcm")))
    assert data.StudyInstanceUID == first.StudyInstanceUID == "1.2.3"
    assert data.FrameOfReferenceUID == "1.2.3.7" and data.SeriesInstanceUID != volume.series
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == volume.series
    files = {item.ReferencedSOPInstanceUID for item in data.SourceImageSequence}
    assert len(files) == len(data.SourceImageSequence) == (1 if (tmp_path / "series/one.dcm").exists() else 5)
    assert {
        item.ReferencedSOPInstanceUID for item in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    } == files

    label_map, names = read_dicom_seg(path, volume.grid)
    assert np.array_equal(label_map, labels) and label_map.dtype == np.uint8
    assert names == {1: "liver", 2: "label 2", 3: "label 3"}


@pytest.mark.parametrize("make", [series, tilted, enhanced])
def test_other_readers_give_the_same_masks(tmp_path, monkeypatch, make):
    # A frame must fill whole bytes: GDCM loses the end of other frames.
    monkeypatch.setattr(dicom_seg_series, "VOXELS", np.concatenate([VOXELS, VOXELS[:1]]))
    volume = make(tmp_path / "series")
    labels = labels_for(volume.shape)
    path = save_dicom_seg(labels, volume, tmp_path / "mask.dcm")
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))  # GDCM: all frames as one block
    assert np.array_equal(frames != 0, pydicom.dcmread(path).pixel_array != 0)
    if make is not tilted:  # highdicom combines planes only on a regular grid
        segmentation = highdicom.seg.segread(path).get_volume(combine_segments=True, rtol=1e-3)
        reoriented = segmentation.match_geometry(
            highdicom.Volume(
                np.zeros(volume.shape),
                np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine,
                coordinate_system="PATIENT",
            )
        )
        assert np.array_equal(reoriented.array, labels)


def test_labels_with_holes_keep_their_values(tmp_path):
    volume = series(tmp_path / "series")
    labels = np.array([0, 7, 2, 70000])[labels_for(volume.shape)]
    names = {0: "air", 70000: " Grüße\\肝 " + "x" * 80, 7: "spleen", 40: "absent"}
    colours = {7: "#ff0000", 999: "#00ff00"}
    path = save_dicom_seg(
        labels, volume, tmp_path / "m.dcm", label_names=names, colours=colours, algorithm="two\\fold",
        algorithm_version="3", automatic=True,
    )  # fmt: skip
    segments = pydicom.dcmread(path).SegmentSequence
    assert [item.SegmentNumber for item in segments] == [1, 2, 3, 4]
    assert [item.SegmentLabel for item in segments] == ["label 2", "spleen", "absent", "Grüße 肝 " + "x" * 56]
    assert [item.SegmentDescription.split(":")[0] for item in segments] == [
        "label 2", "label 7", "label 40", "label 70000",
    ]  # fmt: skip
    assert {item.SegmentAlgorithmType for item in segments} == {"AUTOMATIC"}
    assert {item.SegmentAlgorithmName for item in segments} == {"two fold"}
    lab = segments[1].RecommendedDisplayCIELabValue
    assert highdicom.color.CIELabColor.from_dicom_value(lab).to_rgb() == (255, 0, 0)
    assert "RecommendedDisplayCIELabValue" not in segments[0]
    label_map, label_names = read_dicom_seg(path, volume.grid)
    assert np.array_equal(label_map, labels)
    assert label_names == {2: "label 2", 7: "spleen", 40: "absent", 70000: names[70000].strip()}


def test_a_segment_renamed_by_other_software(tmp_path):
    volume = series(tmp_path / "series")
    labels = labels_for(volume.shape) * 2
    path = save_dicom_seg(labels, volume, tmp_path / "m.dcm", label_names={2: "liver"})
    data = pydicom.dcmread(path)
    data.SegmentSequence[0].SegmentLabel = "left lobe"
    data.save_as(path)
    assert read_dicom_seg(path, volume.grid)[1] == {2: "left lobe", 4: "label 4", 6: "label 6"}
    for item in data.SegmentSequence:  # as other software writes it
        item.SegmentDescription = "Tissue"
    data.save_as(path)
    label_map, names = read_dicom_seg(path, volume.grid)
    assert np.array_equal(label_map, labels // 2) and names == {1: "left lobe", 2: "label 4", 3: "label 6"}


@pytest.mark.parametrize(
    "labels", [np.zeros((7, 6, 5), bool), np.eye(7, 6, dtype=bool)[..., None].repeat(5, 2)]
)
def test_boolean_masks_with_and_without_voxels(tmp_path, labels):
    volume = series(tmp_path / "series")
    path = save_dicom_seg(labels, volume, tmp_path / "m.dcm", label_names={1: "tumour"})
    assert np.array_equal(read_by_hand(path, volume)[..., 0], labels)
    assert read_dicom_seg(path, volume.grid)[1] == {1: "tumour"}


def test_equal_masks_give_equal_bytes_and_different_masks_different_uids(tmp_path, monkeypatch):
    volume = series(tmp_path / "series", StudyDate="20240229", StudyTime="101112")
    labels = labels_for(volume.shape)

    class Later(highdicom.base.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2, 3, 4, 5)

    first = save_dicom_seg(labels, volume, tmp_path / "one.dcm", label_names={1: "a"})
    monkeypatch.setattr(highdicom.base.datetime, "datetime", Later)
    second = save_dicom_seg(
        np.asfortranarray(labels.astype(float)), volume, tmp_path / "two.dcm", label_names={1: "a"}
    )
    assert first.read_bytes() == second.read_bytes() and b"2031" not in first.read_bytes()
    assert pydicom.dcmread(first).ContentDate == "20240229"
    labels[0, 0, 0] = 3 - labels[0, 0, 0]
    changed = pydicom.dcmread(save_dicom_seg(labels, volume, second, label_names={1: "a"}))
    assert changed.SOPInstanceUID != pydicom.dcmread(first).SOPInstanceUID
    renamed = pydicom.dcmread(save_dicom_seg(labels, volume, second, label_names={1: "b"}))
    assert renamed.SOPInstanceUID != changed.SOPInstanceUID


def test_patient_and_study_in_any_script_and_with_invalid_values(tmp_path):
    volume = series(
        tmp_path / "series", SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen", PatientID="p 1",
        PatientSex="F", PatientAge="044Y", StudyDescription="Schädel", Manufacturer="Röntgen & Söhne",
        ClinicalTrialProtocolID="trial", InstitutionName="Klinik",
    )  # fmt: skip
    for file in (tmp_path / "series").iterdir():
        data = pydicom.dcmread(file)
        with pydicom.config.disable_value_validation():
            data.PatientSex, data.PatientBirthDate, data.StudyID = "female", "around 1980", "x" * 40
            data.save_as(file)
    data = pydicom.dcmread(save_dicom_seg(labels_for(volume.shape), volume, tmp_path / "m.dcm"))
    assert (data.PatientName, data.PatientID, data.PatientAge) == ("Müller^Jürgen", "p 1", "044Y")
    assert (data.StudyDescription, data.ClinicalTrialProtocolID) == ("Schädel", "trial")
    assert (data.PatientSex, data.PatientBirthDate, data.StudyID) == ("", "", "")
    assert data.ContributingEquipmentSequence[0].Manufacturer == "Röntgen & Söhne"
    assert data.Modality == "SEG" and data.SeriesDescription == "Segmentation of made for a test"


def test_next_to_its_series_it_is_skipped_and_may_be_replaced(tmp_path):
    volume = series(tmp_path / "series")
    path = tmp_path / "series" / "mask.dcm"
    for seed in (1, 2):
        save_dicom_seg(labels_for(volume.shape, seed=seed), volume, path)
    assert np.array_equal(read_dicom_seg(path, volume.grid)[0], labels_for(volume.shape, seed=2))
    assert len(list_series(tmp_path / "series")) == 1
    assert np.array_equal(load_volume(tmp_path / "series").array, volume.array)
    before = (tmp_path / "series" / "002.dcm").read_bytes()
    with pytest.raises(SaveError, match=r"002\.dcm' is there already and is no DICOM segmentation"):
        save_dicom_seg(labels_for(volume.shape), volume, tmp_path / "series" / "002.dcm")
    assert (tmp_path / "series" / "002.dcm").read_bytes() == before


def test_unsuitable_segmentations_are_refused(tmp_path):
    volume = series(tmp_path / "series")
    path = save_dicom_seg(labels_for(volume.shape), volume, tmp_path / "m.dcm")
    for move, sentence in (
        (5 * np.eye(4, k=3), "from the nearest slice"),
        (np.diag([0.1, 0, 0, 0]), "turned"),
    ):
        with pytest.raises(GridMismatch, match=sentence):
            read_dicom_seg(path, Grid(volume.shape, volume.affine + move))
    with pytest.raises(GridMismatch, match="7 x 6 instead of 6 x 7"):
        read_dicom_seg(path, Grid((6, 7, 5), volume.affine))
    mirrored = volume.affine.copy()
    mirrored[:3, 3] += 6 * mirrored[:3, 0]
    mirrored[:3, 0] *= -1
    with pytest.raises(GridMismatch):
        read_dicom_seg(path, Grid(volume.shape, mirrored))
    data = pydicom.dcmread(path)
    data.PixelData = b"\xff" * len(data.PixelData)
    data.save_as(tmp_path / "full.dcm")
    with pytest.raises(VolumeError, match="overlap"):
        read_dicom_seg(tmp_path / "full.dcm", volume.grid)
    data.PixelData = data.PixelData[:20]
    data.save_as(tmp_path / "short.dcm")
    with pytest.raises(VolumeError, match="damaged or cut short"):
        read_dicom_seg(tmp_path / "short.dcm", volume.grid)
    with pytest.raises(VolumeError, match="not a binary DICOM segmentation"):
        read_dicom_seg(tmp_path / "series" / "000.dcm", volume.grid)
    (tmp_path / "text.dcm").write_text("text")
    with pytest.raises(VolumeError, match="not a DICOM file"):
        read_dicom_seg(tmp_path / "text.dcm", volume.grid)


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["dcmqi_ct3_seg", "ucsf_br_06_mr_seg", "sts_008_pet_rtstruct", "sts_008_ct_rtstruct"]
)
def test_real_series(shared_data, tmp_path, folder):
    volume = load_volume(shared_data / "dicom" / folder)
    labels = np.zeros(volume.shape, np.uint8)
    centre = [n // 2 for n in volume.shape]
    labels[centre[0] - 9 : centre[0] + 5, centre[1] - 3 : centre[1] + 9, 1:] = 2
    labels[centre[0], :, : centre[2] + 1] = 1
    path = save_dicom_seg(labels, volume, tmp_path / "m.dcm", label_names={1: "plane", 2: "box"})
    masks = read_by_hand(path, volume)
    assert np.array_equal(masks[..., 0], labels == 1) and np.array_equal(masks[..., 1], labels == 2)


def test_a_real_series_without_a_uid(shared_data, tmp_path):
    volume = load_volume(shared_data / "dicom" / "totalseg_ct_jpeg2000")
    with pytest.raises(SaveError, match="names no series UID"):
        save_dicom_seg(np.ones(volume.shape, bool), volume, tmp_path / "m.dcm")


def test_segmentations_of_other_software(shared_data):
    folder = shared_data / "dicom" / "dcmqi_ct3_seg"
    volume = load_volume(folder)
    labels, names = read_dicom_seg(folder / "SEG_liver.dcm", volume.grid)
    assert names == {1: "Liver"}
    assert (
        np.array_equal(labels == 1, read_by_hand(folder / "SEG_liver.dcm", volume)[..., 0]) and labels.any()
    )
    with pytest.raises(VolumeError, match=r"Segments of 'SEG_partial_overlaps\.dcm' overlap"):
        read_dicom_seg(folder / "SEG_partial_overlaps.dcm", volume.grid)
    with pytest.raises(VolumeError, match="FRACTIONAL"):
        read_dicom_seg(shared_data / "dicom/highdicom_seg/seg_image_ct_true_fractional.dcm", volume.grid)
