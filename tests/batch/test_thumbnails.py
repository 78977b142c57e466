"""Thumbnails: position of the labels in radiological convention, their shape and their colour."""

from __future__ import annotations

import io
import math

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medsam_app.batch.thumbnails import GAP, _counts, thumbnail
from medsam_app.errors import GridMismatch, SettingsError
from medsam_app.grid.geometry import Grid
from medsam_app.io.volume import Volume
from medsam_app.session.objects import PALETTE

HEIGHT = 160


def tiles(png: bytes, height: int = HEIGHT) -> list[NDArray[np.uint8]]:
    """Return the axial, coronal and sagittal square of a thumbnail."""
    picture = np.asarray(Image.open(io.BytesIO(png)))
    assert picture.shape == (height, 3 * height + 2 * GAP, 3)
    return [picture[:, n * (height + GAP) : n * (height + GAP) + height] for n in range(3)]


def coloured(tile: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return tile.max(axis=2) > tile.min(axis=2)


def box_of(where: NDArray[np.bool_]) -> list[int]:
    """Return top, bottom, left and right; bottom and right are exclusive."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def plain(shape: tuple[int, int, int]) -> tuple[Volume, NDArray[np.uint8]]:
    return Volume.from_array(np.zeros(shape, np.int16), np.eye(4)), np.zeros(shape, np.uint8)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "IAL"])
def test_a_box_is_on_its_side_of_each_plane_for_any_orientation(codes: str) -> None:
    """Draw a box at the right, front and top of an oblique volume, and a bright spot opposite."""
    shape, spacing = np.array([40, 60, 24]), np.array([2.0, 1.0, 3.0])
    low, high = np.array([26, 42, 15]), np.array([36, 54, 21])
    labels, image = np.zeros(shape, np.uint8), np.zeros(shape, np.int16)
    labels[tuple(map(slice, low, high))] = 1
    # A bright bar along each axis through the box, so that each plane shows the cross-section of one.
    spot = np.array([8, 10, 4])
    for axis in range(3):
        bar = [slice(spot[a], spot[a] + 4) for a in range(3)]
        bar[axis] = slice(None)
        image[tuple(bar)] = 1000
    tilt = math.radians(12)
    turn = np.array([[math.cos(tilt), -math.sin(tilt), 0], [math.sin(tilt), math.cos(tilt), 0], [0, 0, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    ornt = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    image_file, labels_file = (
        nib.Nifti1Image(array, affine).as_reoriented(ornt) for array in (image, labels)
    )
    volume = Volume.from_array(np.asarray(image_file.dataobj), image_file.affine)
    assert volume.grid.orientation == codes
    size = shape * spacing
    drawn = tiles(thumbnail(volume, np.asarray(labels_file.dataobj)))
    for tile, (down, across) in zip(drawn, [(1, 0), (2, 0), (2, 1)], strict=True):
        scale = HEIGHT / max(size[down], size[across])
        expected = []
        for axis in (down, across):
            start = (HEIGHT - scale * size[axis]) / 2
            expected += [
                start + scale * (size[axis] - high[axis] * spacing[axis]),
                start + scale * (size[axis] - low[axis] * spacing[axis]),
            ]
        np.testing.assert_allclose(box_of(coloured(tile)), expected, atol=1.01)
        # The bar perpendicular to this plane is a white spot on the other side of the centre.
        spot_box = []
        for axis in (down, across):
            start = (HEIGHT - scale * size[axis]) / 2
            spot_box.append(start + scale * (size[axis] - (spot[axis] + 2) * spacing[axis]))
        white = np.argwhere(tile.min(axis=2) > 250)
        np.testing.assert_allclose(white.mean(axis=0) + 0.5, spot_box, atol=1.5)


def test_outlines_have_the_full_colour_and_insides_a_tint() -> None:
    volume, labels = plain((40, 40, 40))
    labels[5:20, 5:35, 5:35], labels[20:35, 5:35, 5:35] = 1, 2
    axial = tiles(thumbnail(volume, labels, colours={2: "#FF0010"}))[0]
    first, second, scale = rgb(PALETTE[0]), rgb("#ff0010"), HEIGHT // 40
    # RAS: large indices are on the left.
    assert tuple(axial[80, 5 * scale]) == second
    assert tuple(axial[80, 35 * scale - 1]) == first
    assert tuple(axial[80, 20 * scale - 1]) == second and tuple(axial[80, 20 * scale]) == first
    np.testing.assert_allclose(axial[80, 10 * scale], 0.3 * np.array(second), atol=1)
    np.testing.assert_allclose(axial[80, 30 * scale], 0.3 * np.array(first), atol=1)
    everywhere = labels.copy()
    everywhere[...] = len(PALETTE) + 1
    assert tuple(tiles(thumbnail(volume, everywhere))[2][0, 0]) == first


def test_planes_pass_through_the_largest_sections() -> None:
    volume, labels = plain((20, 20, 20))
    labels[2:4, 2:4, 2] = 1
    labels[2:12, 2:12, 15] = 1
    axial, coronal, _ = tiles(thumbnail(volume, labels))
    assert box_of(coloured(axial)) == [64, 144, 64, 144]
    assert coloured(coronal).any(axis=1).sum() == 2 * HEIGHT // 20


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_without_labels_planes_pass_through_the_centre(axis: int) -> None:
    array = np.zeros((9, 9, 9), np.float32)
    np.moveaxis(array, axis, 0)[4] = 1
    drawn = tiles(thumbnail(Volume.from_array(array, np.eye(4)), np.zeros(array.shape, np.uint8)))
    assert [bool((tile == 255).all()) for tile in drawn] == [axis == 2, axis == 1, axis == 0]
    assert not any(coloured(tile).any() for tile in drawn)


@pytest.mark.parametrize("shape", [(512, 512, 1), (3, 400, 400), (1, 1, 1), (2, 300, 1)])
def test_thin_volumes(shape: tuple[int, int, int]) -> None:
    labels = np.zeros(shape, np.uint8)
    labels[0, 0, 0] = 1
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    volume = Volume(array, Grid(shape, np.eye(4)))
    for tile in tiles(thumbnail(volume, labels)):
        assert tuple(rgb(PALETTE[0])) in {tuple(pixel) for pixel in tile[coloured(tile)].tolist()}


def test_labels_smaller_than_a_pixel_are_visible() -> None:
    volume, labels = plain((400, 400, 8))
    for corner in (201, 203, 207):
        labels[corner, corner, 3] = 1
        drawn = tiles(thumbnail(volume, labels, height=64), height=64)
        assert all(coloured(tile).any() for tile in drawn), corner
        labels[...] = 0


def test_tissue_next_to_the_organ_has_contrast() -> None:
    """Draw an organ of a CT in soft tissue, close to air and bone."""
    rng = np.random.default_rng(0)
    array = np.full((60, 60, 60), -1000.0)
    array[10:50, 10:50, :] = 40
    array[10:50, 10:14, :] = 1200
    labels = np.zeros(array.shape, np.uint8)
    labels[12:45, 20:45, 20:40] = 1
    array[labels > 0] = 100
    array += rng.normal(0, 10, array.shape)
    volume = Volume.from_array(np.rint(array).astype(np.int16), np.eye(4))
    bare = np.asarray(tiles(thumbnail(volume, labels, colours={1: "#000000"}))[0][..., 0], dtype=float)
    pixel = HEIGHT / 60
    organ = bare[int(25 * pixel) : int(30 * pixel), int(25 * pixel) : int(30 * pixel)].mean() / 0.7
    tissue = bare[int(43 * pixel) : int(45 * pixel), int(25 * pixel) : int(30 * pixel)].mean()
    assert 40 < tissue < organ - 30 < 200


def test_counts_are_those_of_numpy_in_any_layout() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((300, 7, 5)) < 0.95).astype(np.uint8) * 3
    for array in (labels, np.asfortranarray(labels), labels[::-1, :, ::-1], labels.transpose(2, 0, 1) > 0):
        for axis, counts in enumerate(_counts(array)):
            other_axes = tuple(other_axis for other_axis in range(3) if other_axis != axis)
            np.testing.assert_array_equal(counts, np.count_nonzero(array, axis=other_axes))


def test_any_dtype_gives_the_same_picture_and_inputs_are_unchanged() -> None:
    rng = np.random.default_rng(2)
    volume = Volume.from_array(rng.normal(size=(30, 20, 10)).astype(np.float32), np.diag([-1, 1, 3, 1]))
    labels = np.zeros((30, 20, 10), bool)
    labels[5:9, 3:9, 2:5] = True
    before = volume.array.copy()
    first = thumbnail(volume, labels)
    for kind in (np.uint8, np.int32, np.uint16):
        assert thumbnail(volume, np.asfortranarray(labels.astype(kind))) == first
    np.testing.assert_array_equal(volume.array, before)


def test_invalid_arguments() -> None:
    volume, labels = plain((4, 5, 6))
    with pytest.raises(GridMismatch, match="shape"):
        thumbnail(volume, labels.T)
    with pytest.raises(SettingsError, match="'#rrggbb'"):
        thumbnail(volume, labels + 1, colours={1: "red"})
    with pytest.raises(SettingsError, match="16 pixels"):
        thumbnail(volume, labels, height=2)
