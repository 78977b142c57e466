"""Torso phantom: its label map, which is the ground truth of other tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medsam_app.synthetic.torso import LABEL_NAMES, torso_phantom


@pytest.fixture(scope="module")
def phantom():
    return torso_phantom()


def voxels(phantom, name):
    _, labels, names = phantom
    value = {text: number for number, text in names.items()}[name]
    return labels == value


@pytest.mark.slow
def test_same_seed_same_voxels_other_seed_other_patient(phantom):
    volume, labels, _ = phantom
    again, labels_again, _ = torso_phantom(0)
    np.testing.assert_array_equal(volume.array, again.array)
    np.testing.assert_array_equal(labels, labels_again)
    other, other_labels, _ = torso_phantom(5)
    assert (other.array != volume.array).mean() > 0.5
    assert (other_labels != labels).sum() > 1000
    assert set(np.unique(other_labels)) == {0, *LABEL_NAMES}


def test_grid_is_anisotropic_and_not_ras(phantom):
    volume, labels, names = phantom
    assert volume.array.shape == labels.shape == (224, 160, 80)
    assert volume.array.dtype == np.int16 and labels.dtype == np.uint8
    np.testing.assert_allclose(volume.grid.spacing, [1.5, 1.5, 3.0])
    assert volume.grid.orientation == "LPS"
    assert names == LABEL_NAMES


@pytest.mark.parametrize(
    ("name", "litres", "hounsfield"),
    [
        ("liver", (0.7, 1.8), (95, 120)),
        ("spleen", (0.08, 0.35), (105, 130)),
        ("right kidney", (0.09, 0.25), (140, 200)),
        ("left kidney", (0.09, 0.25), (140, 200)),
        ("aorta", (0.03, 0.15), (130, 170)),
        ("stomach", (0.1, 0.5), (-300, 50)),
        ("spine and ribs", (0.3, 1.2), (200, 600)),
        ("liver lesion", (0.008, 0.05), (40, 80)),
        ("gallbladder", (0.01, 0.06), (0, 30)),
    ],
)
def test_organs_have_the_size_and_density_of_a_body(phantom, name, litres, hounsfield):
    volume, _, _ = phantom
    mask = voxels(phantom, name)
    assert litres[0] < mask.sum() * volume.grid.voxel_volume_ml / 1000 < litres[1]
    assert hounsfield[0] < volume.array[mask].mean() < hounsfield[1]


@pytest.mark.parametrize("name", [name for name in LABEL_NAMES.values() if name != "spine and ribs"])
def test_organs_are_in_one_piece(phantom, name):
    mask = voxels(phantom, name)
    pieces, count = ndimage.label(mask)
    largest = np.bincount(pieces.ravel())[1:].max() if count else 0
    assert largest > 0.98 * mask.sum()


def test_sides_follow_the_affine(phantom):
    """The liver is on the right (x > 0 in RAS+), stomach and spleen are on the left."""
    volume, _, _ = phantom

    def centre(name):
        return volume.grid.to_world(np.argwhere(voxels(phantom, name)).mean(axis=0))

    assert centre("liver")[0] > 30 and centre("right kidney")[0] > 30
    assert centre("spleen")[0] < -30 and centre("left kidney")[0] < -30
    assert centre("spine and ribs")[1] < centre("aorta")[1] < centre("gallbladder")[1]  # back to front
    assert centre("right kidney")[2] < centre("liver")[2]  # the kidney is lower


def test_lesion_lies_inside_the_liver(phantom):
    lesion = voxels(phantom, "liver lesion")
    around = ndimage.binary_dilation(lesion, iterations=2) & ~lesion
    assert voxels(phantom, "liver")[around].mean() > 0.95


def test_looks_like_ct(phantom):
    """Air, fat, soft tissue and bone are present; neighbouring voxels in a uniform organ differ by noise."""
    volume, _, _ = phantom
    hu = volume.array
    assert np.median(hu[:6, :6]) == pytest.approx(-1000, abs=15)
    assert ((hu > -130) & (hu < -70)).mean() > 0.1
    assert (hu > 400).mean() > 0.003
    core = ndimage.binary_erosion(voxels(phantom, "liver"), iterations=4)
    assert 6 < hu[core].std() < 30
