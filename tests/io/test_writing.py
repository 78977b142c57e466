"""Saving masks: geometry, types, verification, and failures."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medsam_app.errors import SaveError
from medsam_app.grid.geometry import Grid
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.io.volume import Volume
from medsam_app.io.writing import prove, save_mask
from tests.grid.test_geometry import ORIENTATIONS, affine_of
from tests.io.test_readers import LPS, oblique, sitk_affine
from tests.support.bad_kit import AFFINE, SHAPE, nifti, voxels
from tests.support.dicom_files import write_series, write_slice

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = ["nii.gz", "nii", "nrrd", "mha", "mhd"]
LABELS = (voxels() % 5).astype("int64")


def image_with(affine: np.ndarray, path: Path, *, qcode: int = 1, scode: int = 1, shape=SHAPE) -> Path:
    image = nib.Nifti1Image(voxels(shape), affine)
    image.set_sform(affine, scode)
    image.set_qform(affine, qcode, strip_shears=True)
    image.to_filename(path)
    return path


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_nifti_mask_has_the_affine_of_its_image(tmp_path, order, signs, tilt):
    path = image_with(affine_of(order, signs, tilt=tilt), tmp_path / "scan.nii.gz")
    volume = load_volume(path)
    saved = nib.load(save_mask(LABELS, volume, tmp_path / "mask.nii.gz"))
    source = nib.load(path)
    assert np.array_equal(saved.affine, source.affine)
    assert np.array_equal(saved.get_qform(), source.get_qform())
    assert np.array_equal(np.asanyarray(saved.dataobj), LABELS)


@pytest.mark.parametrize(("qcode", "scode"), [(1, 1), (0, 2), (1, 0), (2, 4), (0, 0)])
def test_codes_units_and_both_transforms_are_kept(tmp_path, qcode, scode):
    path = image_with(
        affine_of((1, 0, 2), (1, -1, 1), tilt=0.1), tmp_path / "scan.nii", qcode=qcode, scode=scode
    )
    image = nib.load(path)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a name"
    if qcode and scode:  # make them disagree
        image.header["qoffset_x"] += 25
    nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header).to_filename(tmp_path / "other.nii")
    volume = load_volume(tmp_path / "other.nii")
    saved, source = (
        nib.load(save_mask(LABELS, volume, tmp_path / "mask.nii.gz")),
        nib.load(tmp_path / "other.nii"),
    )
    for name in ("qform_code", "sform_code", "xyzt_units", "qoffset_x", "quatern_b", "srow_x"):
        assert np.array_equal(saved.header[name], source.header[name]), name
    assert np.array_equal(saved.header["pixdim"][:4], source.header["pixdim"][:4])
    assert np.array_equal(saved.affine, source.affine)
    assert saved.header["descrip"] == b""  # it may hold names of people


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks_of_every_format_match_the_image(tmp_path, suffix):
    affine = affine_of((2, 0, 1), (-1, 1, -1), tilt=0.3)
    volume = Volume.from_array(voxels(), affine)
    path = save_mask(LABELS, volume, tmp_path / f"mask.{suffix}")
    assert np.array_equal(load_mask(path, volume.grid), LABELS)
    # Also without any conversion to RAS.
    image = sitk.ReadImage(str(path))
    assert Grid(SHAPE, affine).difference(Grid(image.GetSize(), sitk_affine(image))) is None
    for index in [(0, 0, 0), (5, 6, 4), (3, 0, 2)]:
        world = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(LPS[:3, :3] @ world, volume.grid.to_world(index), atol=1e-3)
        assert image.GetPixel(index) == LABELS[index]
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".")) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(1, "u1"), (255, "u1"), (256, "u2"), (65535, "u2"), (65536, "u4"), (2**32 - 1, "u4")],
)
def test_smallest_type(tmp_path, suffix, largest, dtype):
    volume = Volume.from_array(voxels(), AFFINE)
    labels = np.zeros(SHAPE, "int64")
    labels[1, 2, 3] = largest
    mask = load_mask(save_mask(labels, volume, tmp_path / f"mask.{suffix}"), volume.grid)
    assert mask.dtype == np.dtype(dtype) and mask[1, 2, 3] == largest and np.count_nonzero(mask) == 1


@pytest.mark.parametrize("dtype", ["bool", "float32", "int8", "uint64"])
def test_accepted_types(tmp_path, dtype):
    volume = Volume.from_array(voxels(), AFFINE)
    labels = (LABELS > 2).astype(dtype)
    saved = nib.load(save_mask(labels, volume, tmp_path / "mask.nii.gz"))
    assert saved.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(saved.dataobj), labels)


def test_empty_mask_and_any_memory_layout(tmp_path):
    volume = Volume.from_array(voxels(), AFFINE)
    assert not load_mask(save_mask(np.zeros(SHAPE, bool), volume, tmp_path / "a.nii.gz"), volume.grid).any()
    for suffix in ("nii.gz", "nrrd"):
        for labels in (np.asfortranarray(LABELS), LABELS[::-1, :, ::-1]):
            path = save_mask(labels, volume, tmp_path / f"b.{suffix}")
            assert np.array_equal(load_mask(path, volume.grid), labels)


def test_mask_of_one_frame_is_3d(tmp_path):
    image = nifti(tmp_path / "cine.nii.gz", voxels((*SHAPE, 4)))
    saved = nib.load(save_mask(LABELS, load_volume(image, frame=2), tmp_path / "mask.nii.gz"))
    assert saved.shape == SHAPE
    assert np.array_equal(saved.affine, nib.load(image).affine)


def test_mask_of_nrrd_and_dicom_as_nifti_and_back(tmp_path):
    sitk.WriteImage(oblique(voxels((5, 7, 6))), str(tmp_path / "scan.nrrd"))
    folder = write_series(
        tmp_path / "series", voxels(SHAPE, "uint16"), orientation=(0.8, 0.6, 0, -0.6, 0.8, 0)
    )
    for source in (tmp_path / "scan.nrrd", folder):
        volume = load_volume(source)
        saved = nib.load(save_mask(LABELS, volume, tmp_path / "mask.nii.gz"))
        assert volume.grid.difference(Grid(SHAPE, saved.affine)) is None
        assert volume.grid.difference(Grid(SHAPE, saved.get_qform())) is None
        assert (int(saved.header["qform_code"]), int(saved.header["sform_code"])) == (1, 1)


def test_sheared_grid_has_no_qform(tmp_path):
    for k in range(5):
        write_slice(
            tmp_path / f"{k}.dcm", voxels((7, 6), "uint16"), position=(0, 0.7 * k, 2 * k), series="1.2"
        )
    volume = load_volume(tmp_path)
    saved = nib.load(save_mask(LABELS, volume, tmp_path / "mask.nii.gz"))
    assert np.allclose(saved.affine, volume.affine, atol=1e-5)
    assert int(saved.header["qform_code"]) == 0
    again = load_mask(save_mask(LABELS, volume, tmp_path / "mask.nrrd"), volume.grid)
    assert np.array_equal(again, LABELS)


def test_label_names_are_kept(tmp_path):
    volume = Volume.from_array(voxels(), AFFINE)
    names = {1: "liver", 4: "Läsion"}
    nii = nib.load(save_mask(LABELS, volume, tmp_path / "mask.nii.gz", label_names=names))
    text = nii.header.extensions[0].get_content()
    assert json.loads(text) == {"labels": {"1": "liver", "4": "Läsion"}}
    for suffix in ("nrrd", "mha"):
        image = sitk.ReadImage(str(save_mask(LABELS, volume, tmp_path / f"mask.{suffix}", label_names=names)))
        assert json.loads(image.GetMetaData("labels"))["labels"]["4"] == "Läsion"


def test_same_mask_same_bytes(tmp_path):
    volume = Volume.from_array(voxels(), AFFINE)
    first, second = (save_mask(LABELS, volume, tmp_path / name) for name in ("a.nii.gz", "b.nii.gz"))
    assert first.read_bytes() == second.read_bytes()


def test_the_image_is_never_overwritten(tmp_path):
    image = nifti(tmp_path / "scan.nii.gz")
    content = image.read_bytes()
    (tmp_path / "link.nii.gz").symlink_to(image)
    sitk.WriteImage(oblique(voxels((5, 7, 6))), str(tmp_path / "pair.mhd"), False)
    for source, target in [
        ("scan.nii.gz", "scan.nii.gz"),
        ("scan.nii.gz", "link.nii.gz"),
        ("link.nii.gz", "scan.nii.gz"),
        ("pair.mhd", "pair.mhd"),
    ]:
        with pytest.raises(SaveError, match="overwrite"):
            save_mask(LABELS, load_volume(tmp_path / source), tmp_path / target)
    assert image.read_bytes() == content
    # The data file of the image, next to a header of another name.
    sitk.WriteImage(oblique(voxels((5, 7, 6))), str(tmp_path / "data.mhd"), True)
    (tmp_path / "data.mhd").rename(tmp_path / "header.mhd")
    pixels = (tmp_path / "data.zraw").read_bytes()
    with pytest.raises(SaveError, match="overwrite"):
        save_mask(LABELS, load_volume(tmp_path / "header.mhd"), tmp_path / "data.mhd")
    assert (tmp_path / "data.zraw").read_bytes() == pixels
    assert not (tmp_path / "data.mhd").exists()


def test_saving_after_the_image_was_deleted(tmp_path):
    image = nifti(tmp_path / "scan.nii.gz")
    volume = load_volume(image)
    image.unlink()
    assert save_mask(LABELS, volume, tmp_path / "scan.nii.gz").exists()


def test_an_earlier_mask_is_replaced(tmp_path):
    volume = Volume.from_array(voxels(), AFFINE)
    for suffix in SUFFIXES:
        save_mask(LABELS, volume, tmp_path / f"mask.{suffix}")
        path = save_mask(LABELS > 1, volume, tmp_path / f"mask.{suffix}")
        assert load_mask(path, volume.grid).max() == 1


FULL = """
import resource, signal, sys
import numpy as np
from medsam_app.errors import SaveError
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
noise = np.random.default_rng(0).integers(0, 200, (20, 20, 20))
for name in sys.argv[1:]:
    try:
        save_mask(noise, Volume.from_array(noise, np.eye(4)), name)
    except SaveError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are those of Unix")
def test_a_full_disk_gives_a_message_and_keeps_the_earlier_mask(tmp_path):
    names = [tmp_path / f"mask.{suffix}" for suffix in SUFFIXES]
    for path in names:
        path.write_text("the earlier mask")
    run = subprocess.run(
        [sys.executable, "-c", FULL, *map(str, names)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if "mask." in line]
    assert len(lines) == len(names), run.stdout
    assert all(path.read_text() == "the earlier mask" for path in names)
    assert sorted(tmp_path.iterdir()) == sorted(names)


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="a folder where even root may not write is of Linux"
)
def test_an_unwritable_folder_gives_a_message():
    with pytest.raises(SaveError, match="could not be written"):
        save_mask(LABELS, Volume.from_array(voxels(), AFFINE), "/proc/mask.nii.gz")


@pytest.mark.parametrize("suffix", ["nii.gz", "nii"])
def test_a_file_that_reads_back_on_another_grid_is_not_saved(tmp_path, suffix):
    """The header fields and the affine of the volume disagree, as after a bug in this program."""
    volume = load_volume(nifti(tmp_path / "scan.nii"))
    moved = dataclasses.replace(volume, grid=Grid(SHAPE, AFFINE + 3 * np.eye(4, k=3)))
    with pytest.raises(SaveError, match="did not read back on the grid"):
        save_mask(LABELS, moved, tmp_path / f"mask.{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii"]


def test_verification_compares_values_and_type(tmp_path):
    grid, labels = Grid(SHAPE, AFFINE), LABELS.astype("uint8")
    prove(tmp_path, labels, grid, labels.copy(), AFFINE)
    changed = labels.copy()
    changed[2, 2, 2] += 1
    for written in (changed, labels.astype("int16")):
        with pytest.raises(SaveError, match="did not read back as written"):
            prove(tmp_path, labels, grid, written, AFFINE)
