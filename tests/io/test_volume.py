"""Volumes: values, notes, errors, choices."""

from __future__ import annotations

import gzip
import resource
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsam_app.errors import MachineFault, VolumeError
from medsam_app.grid.geometry import Grid
from medsam_app.io.describe import describe, guess_modality
from medsam_app.io.loading import list_series, load_mask, load_volume
from medsam_app.io.volume import Volume
from tests.support.bad_inputs import BAD_INPUTS, page, sentence
from tests.support.bad_kit import AFFINE, SHAPE, nifti, voxels
from tests.support.dicom_files import write_series

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("item", BAD_INPUTS, ids=lambda item: item.what)
def test_bad_input_gives_one_clear_sentence(item):
    message = sentence(item)
    assert message[0].isupper() or message[0] in "'0123456789"
    assert message.endswith(".")
    assert "Error" not in message and "\n" not in message and "/tmp" not in message


@pytest.mark.slow
def test_page_of_errors_is_up_to_date():
    assert (ROOT / "docs" / "errors.md").read_text() == page(), (
        "run: python -m tests.support.bad_inputs > docs/errors.md"
    )


def test_a_bad_save_leaves_nothing_behind(tmp_path):
    for number, item in enumerate(BAD_INPUTS):
        if "saving" in item.what:
            folder = tmp_path / str(number)
            folder.mkdir()
            with pytest.raises(item.kind):
                item.run(folder)
            assert not [path for path in folder.iterdir() if "scan" not in path.name]


def test_integers_stay_and_scaled_values_become_float32(tmp_path):
    plain = load_volume(nifti(tmp_path / "plain.nii"))
    assert plain.array.dtype == np.int16
    scaled = load_volume(nifti(tmp_path / "scaled.nii.gz", scl_slope=0.5, scl_inter=-3))
    assert scaled.array.dtype == np.float32
    assert np.array_equal(scaled.array, voxels() * 0.5 - 3)
    double = load_volume(nifti(tmp_path / "double.nii", voxels(dtype="float64") / 3))
    assert double.array.dtype == np.float32
    assert np.array_equal(double.array, (voxels() / 3).astype("float32"))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4"])
def test_every_type_in_both_byte_orders(tmp_path, dtype):
    array = voxels(dtype=dtype)
    for order in "<>":
        header = nib.Nifti1Header(endianness=order)
        header.set_data_dtype(array.dtype)
        path = tmp_path / f"{'big' if order == '>' else 'little'}.nii.gz"
        nib.Nifti1Image(array, AFFINE, header).to_filename(path)
        volume = load_volume(path)
        assert volume.array.dtype == np.dtype(dtype)
        assert volume.array.dtype.isnative
        assert np.array_equal(volume.array, array)


def test_frames_and_channels(tmp_path):
    array = voxels((*SHAPE, 4))
    for name in ("cine.nii", "cine.nii.gz"):
        path = nifti(tmp_path / name, array)
        for frame in range(4):
            assert np.array_equal(load_volume(path, frame=frame).array, array[..., frame])
    one = nifti(tmp_path / "one.nii.gz", voxels((*SHAPE, 1)))
    assert load_volume(one).shape == SHAPE
    vector = voxels((*SHAPE, 2, 3), "float32")
    path = nifti(tmp_path / "vector.nii.gz", vector)
    assert np.array_equal(load_volume(path, frame=1, channel=2).array, vector[..., 1, 2])
    scaled = nifti(tmp_path / "scaled.nii", array, scl_slope=2, scl_inter=1)
    assert np.array_equal(load_volume(scaled, frame=2).array, array[..., 2] * 2.0 + 1)


def test_gzip_is_recognised_by_content(tmp_path):
    inside = nifti(tmp_path / "scan.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(inside)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(inside))
    (tmp_path / "LOUD.NII.GZ").write_bytes(gzip.compress(inside))
    for name in ("plain.nii.gz", "packed.nii", "LOUD.NII.GZ"):
        assert np.array_equal(load_volume(tmp_path / name).array, voxels())


def test_nan_and_infinity_are_replaced_with_a_note(tmp_path):
    array = voxels(dtype="float32") + 5
    array[0, 0, 0], array[0, 0, 1], array[0, 0, 2] = np.nan, -np.inf, np.inf
    before = array.copy()
    volume = Volume.from_array(array, AFFINE)
    assert volume.array[0, 0].tolist()[:3] == [8.0, 8.0, float(voxels().max() + 5)]
    assert np.isfinite(volume.array).all()
    assert "3 voxels were not a finite number" in volume.notes[0]
    assert np.array_equal(array, before, equal_nan=True)
    assert load_volume(nifti(tmp_path / "scan.nii.gz", array)).notes == volume.notes


def test_too_large_for_float32_is_infinite_and_noted(tmp_path):
    array = voxels(dtype="float64")
    array[1, 1, 1] = 1e300
    volume = load_volume(nifti(tmp_path / "scan.nii", array))
    assert volume.array.max() == voxels().max()
    assert "1 voxel was not a finite number" in volume.notes[0]


def test_constant_image_is_accepted_with_a_note(tmp_path):
    assert "same value (7)" in load_volume(nifti(tmp_path / "scan.nii", np.full(SHAPE, 7, "int16"))).notes[0]


def test_header_notes(tmp_path):
    unknown = load_volume(nifti(tmp_path / "a.nii", qform_code=0, sform_code=0))
    assert "left and right may be swapped" in unknown.notes[0]
    assert np.allclose(unknown.affine, nib.load(tmp_path / "a.nii").affine)
    assert unknown.nifti_codes == (0, 0)
    disagree = load_volume(nifti(tmp_path / "b.nii", qform_code=1, qoffset_x=40))
    assert "qform and sform disagree" in disagree.notes[0]
    assert np.allclose(disagree.affine, AFFINE)
    assert disagree.nifti_codes == (1, 2)
    # MONAI's own reader would rewrite this affine, and a mask saved with it would not match the image.
    sizes = load_volume(nifti(tmp_path / "c.nii", pixdim=[1, 3, 3, 3, 1, 1, 1, 1]))
    assert "the affine is used" in sizes.notes[0]
    assert np.allclose(sizes.affine, AFFINE)
    assert "lengths in micron" in load_volume(nifti(tmp_path / "d.nii", xyzt_units=3)).notes[0]
    assert load_volume(nifti(tmp_path / "e.nii")).notes == ()


def test_from_array_is_checked_and_takes_lists_and_booleans():
    volume = Volume.from_array(voxels() > 9, AFFINE.tolist())
    assert volume.array.dtype == np.uint8
    assert volume.spacing.tolist() == [1, 1, 2]
    for bad in (voxels((6, 7)), voxels(dtype="complex64"), np.full(SHAPE, np.nan)):
        with pytest.raises(VolumeError):
            Volume.from_array(bad, AFFINE)
    with pytest.raises(VolumeError, match="4 x 4"):
        Volume.from_array(voxels(), np.eye(3))


def test_fingerprint_depends_on_content_only():
    array = voxels()
    first = Volume.from_array(array, AFFINE).fingerprint
    assert Volume.from_array(np.asfortranarray(array), AFFINE).fingerprint == first
    assert Volume.from_array(array[::-1][::-1], AFFINE).fingerprint == first
    changed = array.copy()
    changed[1, 2, 3] += 1
    others = [
        Volume.from_array(changed, AFFINE),
        Volume.from_array(array, AFFINE + 0.5 * np.eye(4, k=3)),
        Volume.from_array(array.astype("int32"), AFFINE),
        Volume.from_array(array.reshape(7, 6, 5), AFFINE),
    ]
    assert len({first, *(volume.fingerprint for volume in others)}) == 5


def test_load_mask(tmp_path):
    labels = voxels(dtype="float32") % 4
    mask = load_mask(nifti(tmp_path / "mask.nii.gz", labels), Grid(SHAPE, AFFINE))
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, labels)
    empty = load_mask(nifti(tmp_path / "empty.nii.gz", np.zeros(SHAPE, "int16")), Grid(SHAPE, AFFINE))
    assert not empty.any()


def test_describe(tmp_path):
    facts = describe(nifti(tmp_path / "cine.nii.gz", voxels((*SHAPE, 3))))
    assert facts["frames"] == 3 and facts["chosen"]["frame"] == 0
    assert (
        facts["shape"] == list(SHAPE) and facts["spacing_mm"] == [1, 1, 2] and facts["orientation"] == "RAS"
    )
    assert facts["intensity"]["min"] == 0 and facts["intensity"]["max"] == voxels((*SHAPE, 3))[..., 0].max()
    folder = write_series(tmp_path / "two", voxels((8, 9, 4), "uint16"), series="1.2.3.4")
    assert describe(folder)["modality_guess"] == "CT"
    write_series(folder, voxels((8, 9, 4), "uint16"), series="1.2.3.5", first=9)
    facts = describe(folder)
    assert [info["number"] for info in facts["series"]] == [1, 2] and "shape" not in facts
    assert describe(folder, series="2")["shape"] == [8, 9, 4]
    write_series(folder, voxels((8, 9, 4), "uint16"), series="1.2.3.5", first=20)
    facts = describe(folder, series="2", frame=1)
    assert facts["frames"] == 2 and facts["chosen"]["frame"] == 1


def test_guess_modality():
    ct = {"min": -1024.0, "p99": 900.0, "max": 3000.0}
    assert guess_modality(ct) == "CT"
    assert guess_modality(ct | {"min": 0.0}) is None


def test_list_series_of_a_file_is_empty(tmp_path):
    assert list_series(nifti(tmp_path / "scan.nii")) == []


@pytest.mark.parametrize(
    ("name", "header", "limit"),
    [
        ("scan.nii.gz", {}, 1.2),
        ("scan.nii", {}, 1.2),
        ("scaled.nii.gz", {"scl_slope": 0.5, "scl_inter": 1}, 1.7),
    ],
)
def test_loading_makes_no_needless_copy(tmp_path, name, header, limit):
    """Limit the peak memory in units of the array: 1, plus the stored int16 array if values are rescaled."""
    path = nifti(
        tmp_path / name, np.random.default_rng(0).integers(0, 999, (128, 128, 200)).astype("int16"), **header
    )
    load_volume(path)  # imports the libraries
    tracemalloc.start()
    try:
        volume = load_volume(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / volume.array.nbytes < limit


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a full disk for all unpacked files."""
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *more: real(Path("/dev/full") if "w" in mode else path, mode, *more),
    )


def test_a_full_disk_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    """The message gives cause and remedy, whether creating the temporary folder or unpacking fails."""
    write_series(tmp_path / "slices", voxels((8, 9, 4), "uint16"))
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "slices")
    with monkeypatch.context() as full:
        full_disk(full)
        for read in (load_volume, list_series):
            with pytest.raises(
                MachineFault, match=r"'packed.zip' could not be unpacked .*No space.*make room"
            ):
                read(packed)
    with monkeypatch.context() as nowhere:
        nowhere.setattr(tempfile, "tempdir", None)
        nowhere.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
        with pytest.raises(MachineFault, match=r"could not be unpacked .*temporary directory.*make room"):
            load_volume(packed)
    assert load_volume(packed).shape == (8, 9, 4)


def test_too_many_open_files_are_not_blamed_on_the_file(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    assert load_volume(path).shape == SHAPE  # imports the libraries
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(MachineFault) as caught:
            load_volume(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Too many open files" in str(caught.value) and "ulimit" in str(caught.value)
