"""Synthetic windows: topology of shapes, visibility of targets, and devices of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.overrides import TorchFunctionMode

from medsam_app.errors import VolumeError
from medsam_app.grid.geometry import Grid
from medsam_app.pretraining.windows import (
    HeadWindows,
    LabelledCase,
    Mixture,
    PseudoWindows,
    RealWindows,
    SyntheticWindows,
)
from medsam_app.synthetic import rendering
from medsam_app.synthetic.anatomy import Scene, bunch, cells, label_in, organ, random_anatomy, seams, voronoi
from medsam_app.synthetic.lesion_shapes import SHAPES, Shape, blob, cloud, hollow, sheet, tube
from medsam_app.synthetic.rendering import Palette, degrade, hidden_share, outline_pairs, paint, painted
from medsam_app.synthetic.sampler import Draws, along_axes, blur, thick_slices

N = 48
MIDDLE = np.zeros(3)


def _inside(shape: Shape, n: int = N) -> np.ndarray:
    mask = np.zeros((n, n, n), dtype=bool)
    mask[shape.box] = shape.field.numpy() < 0
    return mask


def _empty_scene(n: int = N) -> Scene:
    return Scene(torch.zeros(n, n, n, dtype=torch.int64), 1)


def _parts(mask: np.ndarray) -> int:
    return int(ndimage.label(mask)[1])


# Draws


def test_noise_has_unit_variance_everywhere_and_a_part_is_that_of_the_whole() -> None:
    samples = torch.stack([Draws(seed).smooth(9, 5) for seed in range(1000)])
    assert torch.allclose(samples.std(0), torch.ones(9, 9, 9), atol=0.1)
    box = (slice(3, 9), slice(0, 4), slice(10, 12))
    torch.testing.assert_close(Draws(4).smooth(12, 5, box), Draws(4).smooth(12, 5)[box])


def test_noise_is_as_smooth_as_asked() -> None:
    rough, fine = (Draws(1).smooth(N, cells).diff(dim=0).std() for cells in (2, 12))
    assert 4 < fine / rough < 8


def test_blur_is_a_gaussian_and_keeps_a_flat_image_flat() -> None:
    image = torch.zeros(25, 25, 25)
    image[12, 12, 12] = 1
    expected = ndimage.gaussian_filter(image.numpy(), 1.5, truncate=8 / 3, mode="nearest")
    torch.testing.assert_close(blur(image, 1.5), torch.from_numpy(expected), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(blur(torch.full((8, 8, 8), 3.0), 1.0), torch.full((8, 8, 8), 3.0))


@pytest.mark.parametrize("axis", range(3))
def test_thick_slices_are_means_along_their_axis(axis: int) -> None:
    image = torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(1))
    thick = thick_slices(image, axis, 4, smooth=False).movedim(axis, 0)
    means = image.movedim(axis, 0).reshape(4, 3, 12, 12).mean(1).repeat_interleave(3, dim=0)
    torch.testing.assert_close(thick, means)


def test_along_axes_multiplies_each_axis() -> None:
    values = torch.rand(3, 4, 5)
    matrices = [torch.rand(2, 3), torch.rand(6, 4), torch.rand(7, 5)]
    expected = torch.einsum("ijk,ai,bj,ck->abc", values, *matrices)
    torch.testing.assert_close(along_axes(values, matrices), expected)


# Shapes


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_every_shape_is_in_the_window_and_its_box_is_large_enough(name: str, seed: int) -> None:
    shape = SHAPES[name](Draws(seed), N, MIDDLE, 0.4)
    inside = _inside(shape)
    assert 12 <= inside.sum() < 0.9 * inside.size
    assert torch.isfinite(shape.field).all()
    if name in ("blob", "hollow", "tube"):  # no shape reaches the sides of its box inside the window
        for axis, part in enumerate(shape.box):
            field = shape.field.movedim(axis, 0)
            assert part.start == 0 or (field[0] > 0).all()
            assert part.stop == N or (field[-1] > 0).all()


def test_a_blob_without_bumps_is_an_ellipsoid() -> None:
    ball = _inside(blob(Draws(0), 64, MIDDLE, 0.5, bumps=0, stretch=0), 64)
    assert ball.sum() == pytest.approx(4 / 3 * np.pi * (0.5 * 63 / 2) ** 3, rel=0.01)


@pytest.mark.parametrize("seed", range(12))
def test_a_shell_is_closed_around_one_hole(seed: int) -> None:
    wall = _inside(hollow(Draws(seed), N, MIDDLE, 0.35))
    solid = ndimage.binary_fill_holes(wall)
    assert _parts(wall) == 1
    assert (solid & ~wall).sum() > 0.05 * wall.sum()


@pytest.mark.parametrize("seed", range(6))
def test_a_tube_is_in_one_piece_and_thin(seed: int) -> None:
    inside = np.pad(_inside(tube(Draws(seed), N, MIDDLE, 0.4)), 1)
    corners = np.ones((3, 3, 3))
    sizes = np.bincount(ndimage.label(inside, corners)[0].ravel())[1:]
    assert sizes.max() > 0.9 * inside.sum()  # noise may open the wall where it is thinnest
    assert ndimage.distance_transform_edt(inside).max() < 0.3 * N / 2


def test_a_sheet_is_thin_and_wide_and_a_cloud_is_neither_convex_nor_everywhere() -> None:
    flat = _inside(sheet(Draws(1), N, MIDDLE, 0.5))
    assert ndimage.distance_transform_edt(flat).max() < 7
    assert max(np.ptp(at) for at in np.nonzero(flat)) > 20
    ragged = []
    for seed in range(8):
        cloudy = _inside(cloud(Draws(seed), N, MIDDLE, 0.5))
        surface = (cloudy & ~ndimage.binary_erosion(cloudy)).sum()
        ragged.append(surface / (36 * np.pi * cloudy.sum() ** 2) ** (1 / 3))
    assert np.mean(ragged) > 1.15  # of the surface of a ball of that volume


# Anatomy


@pytest.mark.parametrize("seed", range(5))
def test_voronoi_cells_partition_the_window(seed: int) -> None:
    draws, count = Draws(seed), 14
    centres = 2 * np.random.default_rng(seed).random((count, 3)) - 1
    diagram = voronoi(draws, N, centres)
    values = diagram.unique().tolist()
    assert set(values) <= set(range(1, count + 1))
    assert len(values) > count / 2
    for value in values:
        parts = np.bincount(ndimage.label(diagram.numpy() == value)[0].ravel())[1:]
        assert parts.max() > 0.85 * parts.sum()
    walled = torch.where(seams(diagram), 0, diagram)
    for axis in range(3):  # walls are closed: no two cells touch
        before, after = walled.movedim(axis, 0)[:-1], walled.movedim(axis, 0)[1:]
        assert not ((before > 0) & (after > 0) & (before != after)).any()


def test_unbent_cells_are_those_of_the_nearest_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(3)
    monkeypatch.setattr(draws, "uniform", lambda low, high: 0.0)
    monkeypatch.setattr(draws, "normals", np.zeros)
    centres = 2 * np.random.default_rng(3).random((9, 3)) - 1
    places = np.stack(np.meshgrid(*3 * [np.linspace(-1, 1, 16)], indexing="ij"), -1)
    nearest = np.linalg.norm(places[..., None, :] - centres, axis=-1).argmin(-1) + 1
    assert (voronoi(draws, 16, centres).numpy() == nearest).mean() > 0.999


@pytest.mark.parametrize("seed", range(6))
def test_a_target_cell_is_at_the_centre(seed: int) -> None:
    scene = _empty_scene()
    chosen = cells(Draws(seed), scene, MIDDLE, 0.5)
    near = label_in(scene.labels, chosen).numpy()
    assert ndimage.distance_transform_edt(~near)[N // 2, N // 2, N // 2] < 10
    assert max(chosen) < scene.count
    assert int(scene.labels.max()) < scene.count


@pytest.mark.parametrize("seed", range(8))
def test_a_touching_blob_is_one_of_several_that_look_alike(seed: int) -> None:
    scene = _empty_scene()
    (target,) = bunch(Draws(seed), scene, MIDDLE, 0.5)
    (alike,) = scene.kin
    assert target in alike
    assert len(alike) >= 3
    target_mask = scene.labels == target
    rest = label_in(scene.labels, [label for label in alike if label != target])
    touched = ndimage.binary_dilation(target_mask.numpy(), iterations=2) & rest.numpy()
    assert touched.any()
    assert _parts(ndimage.binary_closing((target_mask | rest).numpy(), iterations=2)) <= 2


def test_lesions_lie_in_their_organ() -> None:
    for seed in range(12):
        scene = _empty_scene()
        chosen = organ(Draws(seed), scene, MIDDLE, 0.6)
        (lesions,) = scene.kin
        assert set(chosen) in ({1}, {1, *lesions}, set(lesions), *({lesion} for lesion in lesions))
        # The filled organ contains all lesions that are not at its surface.
        body = ndimage.binary_closing((scene.labels == 1).numpy(), iterations=12)
        lesion_mask = label_in(scene.labels, lesions).numpy()
        assert (lesion_mask & body).sum() >= 0.8 * lesion_mask.sum()


def test_every_label_of_a_scene_is_below_its_count() -> None:
    for seed in range(40):
        scene = random_anatomy(Draws(seed), 24)
        assert scene.labels.dtype == torch.int64
        assert int(scene.labels.min()) >= 0
        assert int(scene.labels.max()) < scene.count
        assert scene.target
        assert max(scene.target + [label for group in scene.kin for label in group]) < scene.count


# Painting


def _palette(means: list[float], spreads: list[float], noise: float = 0.0) -> Palette:
    scales = np.full(len(means), 2)
    return Palette(np.array(means), np.array(spreads), scales, noise, blur=0.0, bias=0.0)


def _halves(n: int = 24) -> torch.Tensor:
    labels = torch.zeros(n, n, n, dtype=torch.int64)
    labels[n // 2 :] = 1
    return labels


def test_painted_labels_have_the_means_and_spreads_of_the_palette() -> None:
    labels = _halves(48)
    image = paint(Draws(0), labels, _palette([0.2, 0.8], [0.0, 0.1]))
    assert (image[labels == 0] == 0.2).all()
    assert float(image[labels == 1].mean()) == pytest.approx(0.8, abs=0.03)
    assert float(image[labels == 1].std()) == pytest.approx(0.1, rel=0.25)


def test_an_edge_shows_by_a_step_or_by_its_texture() -> None:
    pairs = outline_pairs(_halves(), _halves() == 1, 2)
    assert pairs.sum() == 24 * 24
    assert hidden_share(pairs, _palette([0.5, 0.5], [0.0, 0.0])) == 1
    assert hidden_share(pairs, _palette([0.5, 0.52], [0.0, 0.0], noise=0.1)) == 1
    assert hidden_share(pairs, _palette([0.5, 0.6], [0.0, 0.0], noise=0.1)) == 0
    assert hidden_share(pairs, _palette([0.5, 0.5], [0.0, 0.1], noise=0.02)) == 0
    assert hidden_share(pairs, _palette([0.5, 0.5], [0.0, 0.1], noise=0.2)) == 1


def test_a_small_target_needs_a_larger_step() -> None:
    palette = _palette([0.5, 0.6], [0.0, 0.0], noise=0.1)
    small = torch.zeros(24, 24, 24, dtype=torch.int64)
    small[10:13, 10:13, 10:13] = 1
    assert hidden_share(outline_pairs(small, small == 1, 2), palette) == 1


def test_what_cannot_be_seen_is_not_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = _palette([0.5, 0.5], [0.0, 0.0], noise=0.1)
    monkeypatch.setattr(rendering, "random_palette", lambda *_: grey)
    assert painted(Draws(0), _halves(), 2, [1]) is None


def test_kin_are_painted_alike() -> None:
    for seed in range(30):
        palette = rendering.random_palette(Draws(seed), 6, [1], [[1, 2, 3]])
        assert len(set(palette.scales[1:4])) == 1
        assert len(set(palette.spreads[1:4])) == 1
        assert np.ptp(palette.means[1:4]) <= 2 * palette.noise + 1e-9


def test_a_faint_target_and_its_kin_stand_out_by_one_or_two_deviations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(20):
        draws = Draws(seed)
        monkeypatch.setattr(draws, "chance", lambda _: True)
        palette = rendering.random_palette(draws, 20, [3], [[2, 3]])
        for label in (2, 3):
            steps = np.abs(np.delete(palette.means, [2, 3]) - palette.means[label]) / palette.noise
            assert 0.3 < np.median(steps) < 3


def test_noise_is_as_strong_as_asked() -> None:
    deviations = [float(degrade(Draws(seed), torch.zeros(32, 32, 32), noise=0.1).std()) for seed in range(60)]
    assert sum(0.09 < sd < 0.12 for sd in deviations) > 15  # the remaining images were rescaled to [0, 1]


# Windows


@pytest.mark.parametrize("seed", range(5))
def test_a_window_repeats_and_is_of_its_size(seed: int) -> None:
    window, again = (Mixture(None, {"synthetic": 1}).draw(seed, 32) for _ in range(2))
    for name, dtype in (("image", torch.float32), ("valid", torch.bool), ("target", torch.bool)):
        one, other = getattr(window, name), getattr(again, name)
        assert torch.equal(one, other)
        assert one.dtype == dtype
        assert one.shape == (32, 32, 32)
        assert one.is_contiguous()
    assert torch.isfinite(window.image).all()
    assert 12 <= int(window.target.sum()) <= 0.97 * 32**3


FACTORIES = {
    torch.tensor, torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.arange, torch.linspace,
    torch.rand, torch.randn, torch.randint, torch.randperm, torch.as_tensor,
}  # fmt: skip


class _RequireDevice(TorchFunctionMode):
    """Mode that rejects the creation of a tensor without an explicit device."""

    made = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES:
            self.made += 1
            assert (kwargs or {}).get("device") is not None, f"{func.__name__} without a device"
        return func(*args, **(kwargs or {}))


def test_every_tensor_of_a_window_says_its_device() -> None:
    with _RequireDevice() as mode:
        for seed in range(40):
            SyntheticWindows().draw(Draws(seed), 20)
    assert mode.made > 500


def test_heads_are_gathered_where_their_maps_are(shared_data: Path) -> None:
    files = sorted((shared_data / "head_label_maps").glob("*.nii.gz"))[:1]
    heads = HeadWindows(files, device="cpu")
    with _RequireDevice():
        for seed in range(3):
            window, again = heads.draw(Draws(seed), 32), heads.draw(Draws(seed), 32)
            assert torch.equal(window.image, again.image)
            assert torch.isfinite(window.image).all()
            assert window.valid[window.target].all()
            assert int(window.target.sum()) >= 12


@pytest.mark.parametrize(
    "values", [np.zeros((8, 8, 8), np.uint8), np.arange(512).reshape(8, 8, 8) - 1.0, np.eye(8)[None] / 2]
)
def test_what_is_no_label_map_of_a_head_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    file = tmp_path / "head.nii.gz"
    nib.save(nib.Nifti1Image(np.broadcast_to(values, (8, 8, 8)).astype(np.float32), np.eye(4)), file)
    with pytest.raises(VolumeError, match=r"head\.nii\.gz is no map of 2 to 256 labels"):
        HeadWindows([file])


@pytest.mark.slow
def test_a_source_that_cannot_give_a_window_says_so() -> None:
    """An error is raised instead of an endless search."""
    labels = np.zeros((16, 16, 110), np.uint8)
    labels[8, 8, 2:108] = 1  # thinner than half a voxel of every window
    flat = LabelledCase(
        "thin", "case", np.zeros(labels.shape, np.float32), labels, Grid(labels.shape, np.eye(4))
    )
    with pytest.raises(VolumeError, match="1000 windows of 16 voxels showed a labelled object"):
        RealWindows([flat]).draw(Draws(0), 16)
    with pytest.raises(VolumeError, match="1000 windows of 16 voxels showed anything with an outline"):
        PseudoWindows([flat]).draw(Draws(0), 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_windows_are_made_on_a_gpu() -> None:
    window, again = (SyntheticWindows().draw(Draws(1, "cuda"), 32) for _ in range(2))
    assert window.image.is_cuda
    assert window.target.is_cuda
    assert torch.equal(window.image, again.image)
