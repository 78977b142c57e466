"""Volumes and masks as the server sends them: types, and places in the browser's axes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medsam_app.browser.protocol.binary import browser_dtype, frame, mask_part, voxel_blocks
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch, box_slices
from tests.browser.test_app import unpack


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ([0, 255], "uint8"),
        ([-1024, 3000], "int16"),
        ([0, 65535], "uint16"),
        ([0, 70000], "float32"),
        ([0, 0.5], "float32"),
    ],
)
def test_the_smallest_type_that_is_exact(values, name):
    array = np.array(values, dtype="f4").reshape(1, 1, 2)
    assert browser_dtype(array).name == name


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA", "PIR"])
def test_a_mask_arrives_where_the_volume_has_it(codes):
    shape = (9, 8, 7)
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), shape)
    grid = Grid(shape, affine)
    rng = np.random.default_rng(1)
    patch = rng.random((4, 3, 2)) > 0.4
    full = np.zeros(shape, dtype=bool)
    full[2:6, 1:4, 3:5] = patch
    header, masks = unpack(frame({}, [mask_part("m", Patch((2, 1, 3), patch), grid)]))
    start, size = header["masks"][0]["start"], header["masks"][0]["size"]
    shown = np.zeros(grid.ras.shape, dtype=bool)
    shown[box_slices(start, np.add(start, size))] = masks[0]
    assert np.array_equal(shown, grid.ras.from_file(full))
    voxels = b"".join(voxel_blocks(full.astype("u1"), grid, np.dtype("u1")))
    assert np.array_equal(np.frombuffer(voxels, "u1").reshape(grid.ras.shape, order="F"), shown)


def test_an_empty_mask_has_no_bits():
    empty = Patch((0, 0, 0), np.zeros((3, 3, 3), bool))
    header, masks = unpack(frame({}, [mask_part("m", empty, Grid((3, 3, 3), np.eye(4)))]))
    assert header["masks"][0]["size"] == [0, 0, 0] and masks[0].size == 0


# Actions
