"""Table of file formats: reading, writing, listing and uploading by ending."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from medsam_app.batch.job import ending_for
from medsam_app.errors import SaveError, SettingsError, VolumeError
from medsam_app.io.formats import (
    FILE_TYPES,
    LISTED,
    MASK_SUFFIXES,
    READABLE,
    SEGMENTATION,
    SINGLE_VOLUMES,
    SUFFIXES,
    UPLOADABLE,
    WRITABLE,
    FileType,
    file_type,
    is_volume,
    mask_suffix_for,
    stem,
)
from medsam_app.io.headers import find_format
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.io.mask_formats import ending_of, save_labels
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask
from tests.support.bad_kit import AFFINE, voxels

LABELS = (voxels() % 4).astype(np.uint8)
EVERY_TYPE = pytest.mark.parametrize("kind", FILE_TYPES, ids=lambda kind: kind.suffix)


def test_no_ending_is_the_end_of_another():
    # The first match is therefore the only one, in any order.
    assert not any(first.endswith(second) for first, second in itertools.permutations(SUFFIXES, 2))
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)


def test_lists_that_users_see():
    assert WRITABLE == (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
    assert LISTED == (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".zip")
    assert UPLOADABLE == (".nii", ".nii.gz", ".nrrd", ".mha", ".zip", ".dcm")
    assert SINGLE_VOLUMES == (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
    assert READABLE == ".nii, .nii.gz, .nrrd, .mha, .mhd, a folder or a .zip of DICOM slices"


@EVERY_TYPE
def test_writable_types_are_read_back_and_others_refused(kind: FileType, tmp_path: Path):
    volume = Volume.from_array(voxels(), AFFINE)
    path = tmp_path / f"mask{kind.suffix}"
    if not kind.writable:
        sentence = (
            f"A mask cannot be saved as '{path.name}'; let its name end in .nii.gz, .nii, .nrrd, .mha, .mhd."
        )
        with pytest.raises(SaveError) as refusal:
            save_mask(LABELS, volume, path)
        assert str(refusal.value) == sentence
        assert list(tmp_path.iterdir()) == []
        return
    assert save_mask(LABELS, volume, path) == path
    assert find_format(path) == kind.format
    assert np.array_equal(load_mask(path, volume.grid), LABELS)
    assert np.array_equal(load_volume(path).array, LABELS)
    # A file that is not complete alone is written with a data file.
    assert len(list(tmp_path.iterdir())) == (1 if kind.uploadable else 2)


@EVERY_TYPE
def test_masks_in_the_format_of_their_image(kind: FileType, tmp_path: Path):
    image = tmp_path / f"scan.1{kind.suffix}"
    assert ending_for(image, "input") == mask_suffix_for(image) == kind.mask_suffix
    assert ending_for(image.with_name(image.name.upper()), "input") == kind.mask_suffix
    assert ending_for(image, "mha") == ".mha"
    if kind.writable:
        mask_type = file_type(kind.mask_suffix)
        assert mask_type is not None and mask_type.writable and mask_type.format == kind.format
    else:
        assert kind.mask_suffix == SEGMENTATION


def test_a_folder_of_slices_gets_a_dicom_segmentation(tmp_path: Path):
    assert ending_for(tmp_path, "input") == ending_for(tmp_path / "IM0001", "input") == ".seg.dcm"


@pytest.mark.parametrize("name", MASK_SUFFIXES)
def test_mask_formats_by_name(name: str, tmp_path: Path):
    suffix = ending_of(name)
    volume = Volume.from_array(voxels(), AFFINE)
    if suffix == SEGMENTATION:  # needs the source series of the volume
        with pytest.raises(SaveError, match="DICOM"):
            save_labels(LABELS, volume, tmp_path / f"mask{suffix}")
    else:
        path = save_labels(LABELS, volume, tmp_path / f"mask{suffix}")
        assert np.array_equal(load_mask(path, volume.grid), LABELS)


def test_an_unknown_mask_format_lists_the_known_ones():
    with pytest.raises(SettingsError, match="Known: dicom-seg, mha, nifti, nrrd"):
        ending_of("nift")


@EVERY_TYPE
def test_names_without_and_with_an_ending(kind: FileType):
    for name in ("case", "case.1", "a.nii", "ct.nii.gz"):
        assert stem(f"{name}{kind.suffix}") == stem(Path("folder", f"{name}{kind.suffix.upper()}")) == name
    assert stem(kind.suffix) == ""
    assert is_volume(Path(f"x{kind.suffix.upper()}"))
    assert not is_volume(Path(f"._x{kind.suffix}"))
    assert not is_volume(Path(f"x{kind.suffix}.txt"))


def test_names_with_other_endings_stay(tmp_path: Path):
    for name in ("case", "x.y", "x.gz", "x.nii.gz.txt", "x.nii.bz2", ""):
        assert stem(name) == name and file_type(name) is None
    (tmp_path / "scan.bmp").write_bytes(b"BM")
    with pytest.raises(VolumeError) as refusal:
        find_format(tmp_path / "scan.bmp")
    assert (
        str(refusal.value) == f"'scan.bmp' cannot be opened: '.bmp' files are not supported; give {READABLE}."
    )
