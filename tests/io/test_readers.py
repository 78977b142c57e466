"""Readers: NRRD, MetaImage, DICOM, and real volumes."""

from __future__ import annotations

import gc
import gzip
import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medsam_app.errors import VolumeError
from medsam_app.grid.geometry import Grid
from medsam_app.io.loading import list_series, load_volume
from tests.support.bad_kit import itk, nifti, voxels
from tests.support.dicom_files import write_series, write_slice

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def sitk_affine(image: sitk.Image) -> np.ndarray:
    """Return the affine to RAS, computed from the corner positions of SimpleITK."""
    size = image.GetDimension()
    rest = [0] * (size - 3)
    origin = np.array(image.TransformIndexToPhysicalPoint([0, 0, 0, *rest])[:3])
    affine = np.eye(4)
    affine[:3, 3] = origin
    for axis in range(3):
        index = [int(axis == a) for a in range(3)] + rest
        affine[:3, axis] = np.array(image.TransformIndexToPhysicalPoint(index)[:3]) - origin
    return LPS @ affine


def oblique(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-11.0, 22.0, -33.0))
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()
    image.SetDirection(turn)
    return image


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha", "scan.mhd"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "uint32"])
def test_nrrd_and_metaimage(tmp_path, name, compress, dtype):
    array = voxels((5, 7, 6), dtype)  # k, j, i
    image = oblique(array)
    sitk.WriteImage(image, str(tmp_path / name), compress)
    volume = load_volume(tmp_path / name)
    assert volume.array.dtype == array.dtype
    assert np.array_equal(volume.array, array.transpose(2, 1, 0))
    assert volume.grid.difference(Grid((6, 7, 5), sitk_affine(image))) is None
    assert volume.nifti_codes == (1, 1) and volume.notes == ()


def test_float64_becomes_float32(tmp_path):
    volume = load_volume(itk(tmp_path / "scan.mha", voxels(dtype="float64") / 3))
    assert volume.array.dtype == np.float32


def test_channels_of_nrrd(tmp_path):
    array = voxels((5, 7, 6, 3), "uint8")
    path = itk(tmp_path / "colour.nrrd", array, vector=True)
    assert np.array_equal(load_volume(path, channel=1).array, array[..., 1].transpose(2, 1, 0))


def test_frames_of_nrrd(tmp_path):
    array = voxels((3, 5, 7, 6))
    image = sitk.JoinSeries([oblique(frame) for frame in array])
    sitk.WriteImage(image, str(tmp_path / "cine.nrrd"))
    volume = load_volume(tmp_path / "cine.nrrd", frame=2)
    assert np.array_equal(volume.array, array[2].transpose(2, 1, 0))
    assert volume.grid.difference(Grid((6, 7, 5), sitk_affine(oblique(array[0])))) is None


def test_nrrd_in_ras_space_and_without_space(tmp_path):
    head = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n"
    space = (
        "space: right-anterior-superior\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (5,6,7)\n\n"
    )
    (tmp_path / "ras.nrrd").write_bytes((head + space).encode() + bytes(range(24)))
    volume = load_volume(tmp_path / "ras.nrrd")
    assert np.allclose(volume.affine, [[2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    assert volume.array[1, 2, 3] == 1 + 2 * 2 + 3 * 6
    (tmp_path / "bare.nrrd").write_bytes((head + "spacings: 2 3 4\n\n").encode() + bytes(range(24)))
    bare = load_volume(tmp_path / "bare.nrrd")
    assert np.allclose(bare.spacing, [2, 3, 4])
    assert "left and right may be swapped" in bare.notes[0]


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (0.8, 0.6, 0, -0.6, 0.8, 0), (-1, 0, 0, 0, 0, -1)],
)
def test_dicom_geometry_equals_that_of_simpleitk(tmp_path, orientation):
    array = voxels((8, 9, 6), "uint16")
    folder = write_series(tmp_path / "series", array, orientation=orientation, spacing=(0.5, 0.9))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names)
    volume = load_volume(folder)
    assert volume.grid.difference(Grid((8, 9, 6), sitk_affine(image))) is None
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert np.array_equal(volume.array, array.astype("int32") - 1024)
    assert volume.modality == "CT" and volume.series == "1.2.3.4"


def test_dicom_slices_in_any_order_of_names_and_folders(tmp_path):
    array = voxels((8, 9, 6), "uint16")
    write_series(tmp_path / "a", array)
    straight = load_volume(tmp_path / "a")
    for number, path in enumerate(sorted((tmp_path / "a").iterdir())):
        target = tmp_path / "b" / f"part{number % 2}"
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / f"{9 - number}")  # without an extension
    (tmp_path / "b" / "notes.txt").write_text("not an image")
    mixed = load_volume(tmp_path / "b")
    assert mixed.fingerprint == straight.fingerprint


def test_slope_that_differs_between_slices(tmp_path):
    array = voxels((8, 9, 3), "uint16")
    for k, slope in enumerate((1.0, 0.5, 0.25)):
        write_slice(
            tmp_path / f"{k}.dcm",
            array[:, :, k].T,
            position=(0, 0, k),
            series="1.2",
            slope=slope,
            intercept=3,
        )
    volume = load_volume(tmp_path)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, array * np.array([1.0, 0.5, 0.25], "float32") + 3)


def test_gantry_tilt_is_kept_as_shear(tmp_path):
    array = voxels((8, 9, 5), "uint16")
    for k in range(5):
        write_slice(tmp_path / f"{k}.dcm", array[:, :, k].T, position=(0, 0.7 * k, 2 * k), series="1.2")
    volume = load_volume(tmp_path)
    assert np.allclose(volume.affine[:3, 2], [0, -0.7, 2])
    assert "gantry tilt" in volume.notes[0]


def test_frames_of_dicom_and_copies(tmp_path):
    array = voxels((8, 9, 5), "uint16")
    write_series(tmp_path / "dynamic", array, AcquisitionNumber=1)
    write_series(tmp_path / "dynamic", array + 7, first=5, AcquisitionNumber=2)
    assert (
        load_volume(tmp_path / "dynamic", frame=1).array
        == load_volume(tmp_path / "dynamic", frame=0).array + 7
    ).all()
    write_series(tmp_path / "copied", array)
    (tmp_path / "copied" / "copy.dcm").write_bytes((tmp_path / "copied" / "000.dcm").read_bytes())
    volume = load_volume(tmp_path / "copied")
    assert volume.shape == (8, 9, 5) and "copies" in volume.notes[0]


def test_zip_of_dicom(tmp_path):
    folder = write_series(tmp_path / "series", voxels((8, 9, 6), "uint16"))
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"deep/inside/{path.name}")
        archive.writestr("deep/readme.txt", "hello")
    packed = load_volume(tmp_path / "series.zip")
    assert packed.fingerprint == load_volume(folder).fingerprint
    assert packed.source == tmp_path / "series.zip"
    (info,) = list_series(tmp_path / "series.zip")
    assert (info.slices, info.modality, info.columns, info.rows) == (6, "CT", 8, 9)


def test_one_of_several_series(tmp_path):
    array = voxels((8, 9, 4), "uint16")
    write_series(tmp_path, array, series="1.2.3.4")
    write_series(tmp_path, array + 1, series="1.2.3.5", first=9)
    by_number, by_uid = load_volume(tmp_path, series="2"), load_volume(tmp_path, series="1.2.3.5")
    assert by_number.fingerprint == by_uid.fingerprint
    assert np.array_equal(by_uid.array, array.astype("int32") + 1 - 1024)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
def test_damaged_headers_give_messages(tmp_path, name):
    """Changed, added or lost bytes anywhere in the header give a volume or a MedsamError."""
    random = np.random.default_rng(7)
    path = tmp_path / name
    nifti(path) if ".nii" in name else itk(path, voxels())
    content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, min(len(content), 352), 2):
            damaged[place : place + 1] = [b"", b"\0", bytes([(damaged[place] + 1) % 256])][random.integers(3)]
        path.write_bytes(gzip.compress(damaged) if name.endswith(".gz") else damaged)
        try:
            volume = load_volume(path)
        except VolumeError:
            refused += 1
        else:
            assert np.isfinite(volume.array).all() and np.isfinite(volume.affine).all()
    assert refused > 10


# --- real volumes


@pytest.mark.slow
def test_real_images_have_the_geometry_of_nibabel(shared_data):
    cases = json.loads((shared_data / "manifest.json").read_text())["cases"]
    small = [case for case in cases if case["dataset"] == "msd_hippocampus"][::40]
    chosen = small + [case for case in cases if case["dataset"] not in ("msd_hippocampus", "sts_sarcoma")]
    assert len(chosen) > 20
    for case in chosen:
        for key in ("image", "label"):
            reference = nib.load(shared_data / case[key])
            volume = load_volume(shared_data / case[key])
            assert volume.shape == reference.shape
            assert np.array_equal(volume.affine, reference.affine)
            assert np.array_equal(volume.array, np.asanyarray(reference.dataobj))
        assert volume.grid.difference(load_volume(shared_data / case["image"]).grid) is None
        assert volume.grid.orientation == case["orientation"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("totalseg_ct_jpeg2000", "totalseg_ct/dicom_ct_image.nii.gz"),
        ("sts_008_ct_rtstruct", None),
        ("sts_008_pet_rtstruct", None),
        ("ucsf_br_06_mr_seg", "breast_nact_dce/UCSF-BR-06_post1_image.nii.gz"),
        ("dcmqi_ct3_seg", None),
    ],
)
def test_real_dicom_equals_simpleitk(shared_data, folder, label):
    path = shared_data / "dicom" / folder
    volume = load_volume(path)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), volume.series or "")
    image = sitk.ReadImage(names)
    assert volume.grid.difference(Grid(image.GetSize(), sitk_affine(image))) is None
    assert np.allclose(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0), rtol=1e-6)
    if label is not None:  # the same scan as NIfTI
        other = load_volume(shared_data / label)
        same = np.array_equal(volume.grid.ras.from_file(volume.array), other.grid.ras.from_file(other.array))
        assert same


def test_a_folder_of_segmentations_only_is_refused(shared_data):
    with pytest.raises(VolumeError, match="3 segmentations"):
        load_volume(shared_data / "dicom" / "highdicom_seg")


def test_pixels_outlive_their_image(tmp_path):
    path = itk(tmp_path / "scan.mha", voxels((60, 70, 80)))
    arrays = [load_volume(path).array for _ in range(8)]
    gc.collect()
    expected = voxels((60, 70, 80)).transpose(2, 1, 0)
    assert all(np.array_equal(array, expected) and array.flags.writeable for array in arrays)
    assert not np.shares_memory(arrays[0], arrays[1])
