"""Segmentation of an adapter's labels in a whole volume, without prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam_app.adapters.adapter import Adapter
from medsam_app.errors import AdapterError, PromptError, SettingsError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.roi import Roi, read_roi, write_box
from medsam_app.io.loading import load_mask
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask
from medsam_app.models.sam3d import RoiPrompts, Sam3D
from medsam_app.predict import whole_volume
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.whole_volume import keep_largest_parts, paint, whole_roi
from tests.support.two_balls import BRIGHT, CARD, DARK, NAMES, SPACING, WINDOW, balls, taught

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def affine(spacing: tuple[float, float, float], turn: NDArray[np.float64] | None = None) -> NDArray:
    """Return a (4, 4) affine of a spacing (negative against RAS), then rotated by `turn` (3, 3)."""
    out = np.diag([*spacing, 1.0])
    if turn is not None:
        out[:3, :3] = turn @ out[:3, :3]
    out[:3, 3] = 5.0, -40.0, 12.0
    return out


def turned(degrees: float) -> NDArray[np.float64]:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


#: File axes in the order z, x, y, the first two opposite to RAS.
PERMUTED = np.array([[0, -1.0, 0], [0, 0, 1.0], [-1.0, 0, 0]])
GRIDS: dict[str, tuple[tuple[int, int, int], NDArray]] = {
    "as taught": (WINDOW, affine((SPACING,) * 3)),
    "flipped and anisotropic": ((52, 46, 26), affine((-1.5, -1.5, 3.2))),
    "oblique": ((60, 58, 38), affine((1.2, -1.3, 2.2), turned(14))),
    "permuted": ((24, 60, 48), affine((3.0, 1.4, 1.4), PERMUTED)),
    "smaller than a window": ((40, 38, 20), affine((1.4, 1.4, 2.8))),
}


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("adapter") / "balls.safetensors")


@pytest.fixture(scope="module")
def predictor(adapter_file: Path) -> VolumePredictor:
    return VolumePredictor(adapter=adapter_file, device="cpu")


def dices(labels: NDArray, truth: NDArray) -> list[float]:
    return [
        2 * ((labels == value) & (truth == value)).sum() / ((labels == value).sum() + (truth == value).sum())
        for value in NAMES
    ]


@pytest.mark.parametrize("name", GRIDS)
def test_both_labels_are_found_where_they_are(predictor: VolumePredictor, tmp_path: Path, name: str) -> None:
    volume, truth = balls(*GRIDS[name], seed=3)
    predictor.set_volume(volume)
    label_map = predictor.predict_labels()
    assert label_map.names == NAMES and label_map.array.dtype == np.uint8 and label_map.seconds > 0
    assert min(dices(label_map.array, truth)) > 0.6
    voxels = {value: int((label_map.array == value).sum()) for value in NAMES}
    assert label_map.volumes_ml() == {
        value: pytest.approx(n * volume.grid.voxel_volume_ml) for value, n in voxels.items()
    }
    saved = save_mask(label_map.array, volume, tmp_path / "labels.nii.gz", label_names=label_map.names)
    np.testing.assert_allclose(nib.load(saved).affine, volume.affine, atol=1e-4)
    np.testing.assert_array_equal(load_mask(saved, volume.grid), label_map.array)


def test_the_file_s_axes_do_not_matter(predictor: VolumePredictor) -> None:
    """The same volume with permuted and flipped axes has the same labels."""
    volume, _ = balls(*GRIDS["flipped and anisotropic"], seed=3)
    predictor.set_volume(volume)
    labels = predictor.predict_labels().array
    permuted_affine = volume.affine @ np.array([[0, 0, -1, 51], [1, 0, 0, 0], [0, -1, 0, 25], [0, 0, 0, 1.0]])
    array = volume.array[::-1, :, ::-1].transpose(1, 2, 0)
    np.testing.assert_allclose(
        Grid(array.shape, permuted_affine).to_world((3, 4, 5)), volume.grid.to_world((46, 3, 21))
    )
    predictor.set_volume(Volume.from_array(np.ascontiguousarray(array), permuted_affine))
    again = predictor.predict_labels().array.transpose(2, 0, 1)[::-1, :, ::-1]
    assert (again != labels).mean() < 1e-4


def decided(
    logits: torch.Tensor, roi: Roi, shape: tuple[int, int, int], values: list[int]
) -> tuple[NDArray, NDArray, NDArray]:
    """Return reference labels on all of the file's voxels at once.

    Returns:
        The labels, whether rounding cannot change them, and the largest logit or 0; each (i, j, k).
    """
    all_logits = np.stack([write_box(channel, roi, (0, 0, 0), shape) for channel in logits])
    ordered = np.sort(np.concatenate([all_logits, np.zeros((1, *shape))]), axis=0)
    labels = np.where(all_logits.max(axis=0) > 0, np.array(values)[all_logits.argmax(axis=0)], 0)
    return labels, ordered[-1] - ordered[-2] > 1e-4, ordered[-1]


def one_look(model: Sam3D, volume: Volume) -> tuple[torch.Tensor, Roi]:
    """Return (L, X, Y, Z) logits of a volume that fits into one window, and the window."""
    roi = whole_roi(volume.grid, CARD["spacing"], WINDOW)
    assert roi.shape == WINDOW
    image, valid = (tensor[None, None] for tensor in read_roi(volume.array, roi))
    adapter = model.__dict__["_adapter_in_use"]
    clicks = torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.int64)
    with torch.inference_mode():
        embedding = model.encode_image(image, valid)
        logits = [
            model.decode(embedding, RoiPrompts(*clicks, learned=adapter.prompts.of(value))).best()[0][0, 0]
            for value in NAMES
        ]
    return torch.stack(logits), roi


@pytest.mark.parametrize("name", ["as taught", "smaller than a window"])
def test_one_window_is_the_model_s_own_answer(predictor: VolumePredictor, name: str) -> None:
    volume, _ = balls(*GRIDS[name], seed=3)
    logits, roi = one_look(predictor.model, volume)  # type: ignore[arg-type]
    expected, clear, _ = decided(logits, roi, volume.shape, list(NAMES))
    predictor.set_volume(volume)
    labels = predictor.predict_labels().array
    assert (labels == expected)[clear].all() and clear.mean() > 0.99 and expected.any()


@pytest.mark.parametrize("name", GRIDS)
def test_slabs_are_the_whole_interpolation(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Labels computed by slabs and groups equal those from all logits on the file's grid at once."""
    shape, place = GRIDS[name]
    grid = Grid(shape, place)
    roi = whole_roi(grid, (2.5, 2.5, 2.5), (16, 16, 16))
    rough = torch.randn(3, *roi.shape, generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.avg_pool3d(rough, 3, 1, 1) - 0.05
    expected, clear, largest = decided(logits, roi, shape, [2, 9, 4])
    assert clear.mean() > 0.99 and (expected > 0).mean() > 0.3
    for voxels in (1, 5 * shape[1] * shape[2], 10**9):
        monkeypatch.setattr(whole_volume, "SLAB_VOXELS", voxels)
        array, best = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
        paint(logits[:1], roi, [2], array=array, best=best, chances={})
        paint(logits[1:], roi, [9, 4], array=array, best=best, chances={})
        assert (array == expected)[clear].all()
        np.testing.assert_allclose(best, largest, atol=1e-5)


def test_probabilities_are_of_each_label_on_its_own(predictor: VolumePredictor) -> None:
    volume, _ = balls(*GRIDS["flipped and anisotropic"], seed=3)
    predictor.set_volume(volume)
    label_map = predictor.predict_labels(probabilities=True)
    assert set(label_map.probabilities) == {BRIGHT, DARK}
    likely = np.stack([label_map.probabilities[value] for value in (BRIGHT, DARK)])
    np.testing.assert_array_equal((likely >= 128).any(axis=0), label_map.array > 0)
    for value in (BRIGHT, DARK):
        alone = predictor.predict_labels(labels=[value], probabilities=True)
        np.testing.assert_array_equal(alone.probabilities[value], label_map.probabilities[value])
        np.testing.assert_array_equal(alone.array == value, label_map.probabilities[value] >= 128)
    assert not predictor.predict_labels().probabilities


def test_labels_in_groups_and_windows_in_batches_are_the_same(
    predictor: VolumePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = balls(*GRIDS["flipped and anisotropic"], seed=3)
    predictor.set_volume(volume)
    progress: list[tuple[str, float]] = []
    labels = predictor.predict_labels(progress=lambda what, done: progress.append((what, done))).array
    count = len(progress)
    assert count > 4 and progress[0] == (f"Window 1 of {count}", 1 / count) and progress[-1][1] == 1
    monkeypatch.setattr(whole_volume, "STITCHED_VALUES", 1)
    progress.clear()
    model: Any = predictor.model
    again = whole_volume.segment_labels(
        model, volume, batch=3, progress=lambda what, done: progress.append((what, done))
    )
    assert (again.array != labels).mean() < 1e-4
    assert progress[-1] == (f"Window {2 * count} of {2 * count}", 1.0)


def test_every_voxel_of_the_window_is_the_volume_s_but_where_one_is_too_large() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        shape = tuple(int(n) for n in rng.integers(9, 70, 3))
        spacing = rng.uniform(0.5, 4, 3)
        grid = Grid(shape, affine((-spacing[0], spacing[1], spacing[2])))  # type: ignore[arg-type]
        roi = whole_roi(grid, (2.0, 2.0, 2.0), (16, 16, 16))
        valid = read_roi(np.zeros(shape, np.float32), roi)[1]
        for axis, n in enumerate(roi.shape):
            assert n == max(16, np.ceil(shape[axis] * spacing[axis] / 2))
            inside = valid.any(dim=tuple(a for a in range(3) if a != axis))
            assert inside.all() or n == 16
        corners = roi.to_roi([(-0.5, -0.5, -0.5), np.array(shape) - 0.5])
        assert (corners > -0.51).all() and (corners < np.array(roi.shape) - 0.49).all()


def test_labels_are_chosen_by_name_or_value(predictor: VolumePredictor) -> None:
    volume, truth = balls(*GRIDS["as taught"], seed=3)
    predictor.set_volume(volume)
    both = predictor.predict_labels()
    for chosen in ([DARK], [str(DARK)], ["dark ball"], ["dark ball", DARK]):
        dark = predictor.predict_labels(labels=chosen)
        assert dark.names == {DARK: "dark ball"} and set(np.unique(dark.array)) == {0, DARK}
        assert (dark.array == DARK)[both.array == DARK].all() and dices(dark.array, truth)[1] > 0.6
    with pytest.raises(AdapterError, match=r"no label 'dark bal'\. Did you mean 'dark ball'\?"):
        predictor.predict_labels(labels=["dark bal"])
    with pytest.raises(AdapterError, match="no label '4'"):
        predictor.predict_labels(labels=[4])
    with pytest.raises(AdapterError, match="No label was chosen"):
        predictor.predict_labels(labels=[])


def test_keep_largest() -> None:
    array = np.zeros((12, 9, 8), np.uint16)
    array[1:4, 1:4, 1:4] = 2
    array[4, 4, 4] = 2  # only at a corner
    array[9:11, 1:3, 1:3] = 2
    array[6:8, 6:8, 6:8] = 300
    array[9, 1, 5:8] = 300
    array[0, 0, 0] = 7
    keep_largest_parts(array)
    assert {int(v): int(n) for v, n in zip(*np.unique(array, return_counts=True), strict=True)} == {
        0: 12 * 9 * 8 - 27 - 8 - 1, 2: 27, 300: 8, 7: 1
    }  # fmt: skip
    assert (array[1:4, 1:4, 1:4] == 2).all() and (array[6:8, 6:8, 6:8] == 300).all()


def test_largest_keeps_one_part_of_each_label(predictor: VolumePredictor) -> None:
    """Only the larger of two bright balls remains."""
    place = affine((SPACING,) * 3)
    parts = [balls(WINDOW, place, seed=seed)[0].array for seed in (3, 4)]
    volume = Volume.from_array(np.concatenate(parts), place)
    predictor.set_volume(volume)
    all_parts, one = predictor.predict_labels().array, predictor.predict_labels(largest=True).array
    expected = all_parts.copy()
    keep_largest_parts(expected)
    np.testing.assert_array_equal(one, expected)
    for value in (BRIGHT, DARK):
        halves = [(all_parts[cut] == value).sum() for cut in (slice(16), slice(16, None))]
        assert min(halves) > 20 and (one == value).sum() == pytest.approx(max(halves), abs=10)


def test_what_is_missing_is_said() -> None:
    alone = VolumePredictor(device="cpu")
    with pytest.raises(PromptError, match="No volume is set"):
        alone.predict_labels()
    alone.set_volume(balls(*GRIDS["as taught"])[0])
    assert alone.learned == {}
    with pytest.raises(AdapterError, match="none is switched on; give such an adapter"):
        alone.predict_labels()
    without = Adapter.create("ssf", alone.model)  # type: ignore[arg-type]
    without.enable()
    with pytest.raises(AdapterError, match="'ssf' was taught no labels that it can find without a click"):
        alone.predict_labels()
    without.remove()
    adapter = Adapter.create("ssf", alone.model, labels=[1])  # type: ignore[arg-type]
    adapter.enable()
    assert alone.learned == {1: "label 1"}
    with pytest.raises(AdapterError, match="does not say at which spacing"):
        alone.predict_labels()
    for overlap in (-0.1, 1.0, float("nan")):
        with pytest.raises(SettingsError, match="from 0 to below 1"):
            alone.predict_labels(overlap=overlap)
