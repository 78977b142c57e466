"""Multi-frame DICOM: position and values of every frame, and errors with messages."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, EnhancedMRImageStorage

from medsam_app.errors import MedsamError, SeriesChoice, VolumeError
from medsam_app.io.loading import load_volume
from tests.support.dicom_enhanced import write_enhanced
from tests.support.dicom_files import AXIAL, write_series

FRAMES = np.random.default_rng(0).integers(0, 3000, (7, 6, 5)).astype(np.uint16)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, OBLIQUE])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 3, 1, 4, 2]])
def test_a_multi_frame_file_equals_single_slice_files(tmp_path, orientation, order):
    path = write_enhanced(
        tmp_path / "one.dcm",
        FRAMES[:, :, order],
        places=[3.0 * k for k in order],
        orientation=orientation,
        spacing=(0.8, 0.5),
    )
    single = load_volume(path)
    series = load_volume(
        write_series(
            tmp_path / "many",
            FRAMES,
            distances=[3.0 * k for k in range(5)],
            orientation=orientation,
            spacing=(0.8, 0.5),
        )
    )
    assert np.array_equal(single.array, series.array) and np.array_equal(
        single.array, FRAMES.astype(int) - 1024
    )
    np.testing.assert_allclose(single.affine, series.affine, atol=1e-5)
    np.testing.assert_allclose(single.spacing, (0.5, 0.8, 3.0), atol=1e-6)
    # Position of the first frame in RAS.
    np.testing.assert_allclose(single.affine[:3, 3], (10, 20, 30), atol=1e-5)
    assert single.modality == "CT"


# GDCM rescales frames of the first classes. For the others it applies the top-level values, if any.
CLASSES = [
    pydicom.uid.EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    pydicom.uid.EnhancedPETImageStorage,
    pydicom.uid.LegacyConvertedEnhancedCTImageStorage,
    pydicom.uid.LegacyConvertedEnhancedMRImageStorage,
    pydicom.uid.LegacyConvertedEnhancedPETImageStorage,
    pydicom.uid.XRay3DAngiographicImageStorage,
    pydicom.uid.XRay3DCraniofacialImageStorage,
    pydicom.uid.BreastTomosynthesisImageStorage,
    UID("1.2.840.10008.5.1.4.1.1.13.1.4"),
    UID("1.2.840.10008.5.1.4.1.1.13.1.5"),
    pydicom.uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    pydicom.uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    pydicom.uid.EnhancedMRColorImageStorage,
    pydicom.uid.EnhancedUSVolumeStorage,
    pydicom.uid.NuclearMedicineImageStorage,
    UID("1.2.840.10008.5.1.4.1.1.14.1"),
    UID("1.2.840.10008.5.1.4.1.1.14.2"),
]
TOP = {"RescaleSlope": "3", "RescaleIntercept": "7"}


@pytest.mark.parametrize("top", [{}, TOP])
@pytest.mark.parametrize("sop_class", CLASSES, ids=lambda uid: uid.name)
def test_values_are_rescaled_in_every_sop_class(tmp_path, sop_class, top):
    shared = write_enhanced(tmp_path / "shared.dcm", FRAMES, sop_class=sop_class, **top)
    assert np.array_equal(load_volume(shared).array, FRAMES.astype(int) - 1024)
    slopes = [2.0, 0.5, 1.0, 4.0, 3.0]
    path = write_enhanced(
        tmp_path / "each.dcm", FRAMES, slopes=slopes, intercept=-10, sop_class=sop_class, **top
    )
    np.testing.assert_allclose(load_volume(path).array, FRAMES * np.array(slopes) - 10, atol=1e-3)
    data = pydicom.dcmread(path)  # frames without their own values use the top-level values
    for group in data.PerFrameFunctionalGroupsSequence[:2]:
        del group.PixelValueTransformationSequence
    data.save_as(path)
    expected = FRAMES * np.array(slopes) - 10
    expected[..., :2] = FRAMES[..., :2] * 3.0 + 7 if top else FRAMES[..., :2]
    np.testing.assert_allclose(load_volume(path).array, expected, atol=1e-3)


@pytest.mark.parametrize("times", [None, (2, 1)])
def test_enhanced_files_of_one_frame_each(tmp_path, times):
    for k in range(5):
        for time in times or (1,):
            write_enhanced(
                tmp_path / f"{5 - k}_{time}.dcm",
                FRAMES[..., k : k + 1] + time,
                places=[3.0 * k],
                times=[time] if times else None,
            )
    for number, time in enumerate(sorted(times or (1,))):
        volume = load_volume(tmp_path, frame=number if times else None)
        assert np.array_equal(volume.array, FRAMES.astype(int) + time - 1024)
        np.testing.assert_allclose(volume.spacing, (0.5, 0.8, 3.0), atol=1e-6)


@pytest.mark.parametrize("sop_class", [pydicom.uid.EnhancedCTImageStorage, EnhancedMRImageStorage])
def test_frames_with_individual_rescaling(tmp_path, sop_class):
    slopes = [2.0, 0.5, 1.0, 4.0, 3.0]
    path = write_enhanced(
        tmp_path / "pet.dcm",
        FRAMES,
        slopes=slopes,
        intercept=-10.0,
        places=[8, 6, 4, 2, 0],
        sop_class=sop_class,
    )
    expected = (FRAMES * np.array(slopes) - 10)[:, :, ::-1]
    np.testing.assert_allclose(load_volume(path).array, expected, rtol=1e-6)


def test_time_points_in_one_file_must_be_chosen(tmp_path):
    path = write_enhanced(
        tmp_path / "cine.dcm", FRAMES[:, :, [0, 1, 2, 3]], places=[0, 0, 2, 2], times=[2, 1, 2, 1]
    )
    with pytest.raises(SeriesChoice) as caught:
        load_volume(path)
    assert caught.value.option == "frame" and len(caught.value.choices) == 2
    first, second = (load_volume(path, frame=number).array for number in (0, 1))
    assert np.array_equal(first, FRAMES[:, :, [1, 3]].astype(int) - 1024)
    assert np.array_equal(second, FRAMES[:, :, [0, 2]].astype(int) - 1024)


def test_a_volume_over_two_multi_frame_files(tmp_path):
    write_enhanced(tmp_path / "a.dcm", FRAMES[:, :, :2])
    write_enhanced(tmp_path / "b.dcm", FRAMES[:, :, 2:], places=[4, 6, 8])
    volume = load_volume(tmp_path)
    assert np.array_equal(volume.array, FRAMES.astype(int) - 1024) and volume.spacing[2] == pytest.approx(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"places": [0, 2, 4, 8, 10]}, "missing"),
        ({"places": [0, 2, 4.5, 6, 8]}, "not evenly spaced"),
        ({"orientations": [AXIAL] * 4 + [SAGITTAL]}, "mixed orientations"),
        ({"PerFrameFunctionalGroupsSequence": None}, "does not say where its 5 frames lie"),
        ({"SharedFunctionalGroupsSequence": None}, "5 of 5 slices"),
        ({"slopes": [1, 1, 0, 1, 1]}, "damaged"),
    ],
)
def test_no_geometry_is_guessed(tmp_path, options, message):
    with pytest.raises(VolumeError, match=message):
        load_volume(write_enhanced(tmp_path / "scan.dcm", FRAMES, **options))


def test_fewer_positions_than_frames(tmp_path):
    path = write_enhanced(tmp_path / "scan.dcm", FRAMES)
    data = pydicom.dcmread(path)
    data.PerFrameFunctionalGroupsSequence.pop()
    data.save_as(path)
    with pytest.raises(VolumeError, match="holds 5 DICOM frames but says of 4"):
        load_volume(path)


@pytest.mark.slow
def test_damaged_headers_give_messages(tmp_path):
    path = write_enhanced(tmp_path / "scan.dcm", FRAMES)
    contents = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(40):
        damaged = bytearray(contents)
        for index in rng.integers(132, len(contents) - FRAMES.nbytes, 3):
            damaged[index] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_volume(path)  # the damage may have no effect
        except MedsamError as error:
            assert str(error).endswith(".")
