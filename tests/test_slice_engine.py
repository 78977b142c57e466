"""Slice mode: masks carried from slice to slice, on volumes of every kind of geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam_app.models.slices import SliceCandidates
from medsam_app.predictor import VolumePredictor
from medsam_app.prompts import Box, MaskPrompt, Point
from medsam_app.propagation import Propagation, SliceMask, carried, dice, ends
from medsam_app.roi import in_file_order, on_own_grid
from medsam_app.slice_work import slice_axis
from medsam_app.volume import Volume


@dataclass
class Picture:
    pixels: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


class Threshold:
    """A model of pictures without weights: pixels brighter than half, connected to the prompt."""

    model_id, weights_sha256, adapter_sha256, boxes_only = "threshold", "0" * 64, "", False

    def encode_slice(self, image: np.ndarray, *, window: tuple[float, float]) -> Picture:
        low, high = window
        return Picture((image.astype(np.float32) - low) / (high - low))

    def decode_slice(self, embedding, *, points=None, labels=None, box=None, mask=None) -> SliceCandidates:
        bright = embedding.pixels > 0.5
        signed = [] if points is None else list(zip(np.round(points).astype(int), labels, strict=True))
        for (row, column), label in signed:
            if not label:
                bright[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 0
        if box is not None:
            inside = np.zeros_like(bright)
            first_row, first_column, last_row, last_column = (max(0, round(v)) for v in box)
            inside[first_row : last_row + 1, first_column : last_column + 1] = True
            bright &= inside
        parts, count = ndimage.label(bright)
        wanted = {parts[row, column] for (row, column), label in signed if label} - {0}
        if not wanted and mask is not None:
            wanted = set(parts[mask.numpy() > 0]) - {0}
        if not wanted and box is not None:
            wanted = set(range(1, count + 1))
        found = torch.from_numpy(np.where(np.isin(parts, list(wanted)), 5.0, -5.0).astype(np.float32))
        return SliceCandidates(found[None], found[None], torch.tensor([0.9]))

    def low_res(self, embedding: Picture, logits: torch.Tensor) -> torch.Tensor:
        return logits


AFFINES = {
    "axial": np.diag([-0.9, -0.9, 2.5, 1.0]),
    "sagittal slices first": np.array([[0, 0, 3.0, 5], [-1.0, 0, 0, 7], [0, 1.0, 0, 9], [0, 0, 0, 1]]),
    "oblique and flipped": np.array(
        [[0.85, 0.1, 0.4, -20], [-0.1, -0.88, 0.3, 40], [-0.15, 0.12, -2.4, 10], [0, 0, 0, 1]]
    ),
}


def _ellipsoid(shape: tuple[int, int, int], spacing: np.ndarray) -> np.ndarray:
    """A tilted ellipsoid in the middle, half axes 14, 10 and 12 mm."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij"), -1) * spacing
    turn = np.array([[0.9, 0.3, 0.3], [-0.35, 0.93, 0.1], [-0.26, -0.2, 0.94]])
    return (np.square(grid @ turn.T / [14, 10, 12]).sum(-1)) < 1


def _volume(affine: np.ndarray) -> tuple[Volume, np.ndarray]:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = tuple(int(np.ceil(44 / s)) for s in spacing)
    truth = _ellipsoid(shape, spacing)  # type: ignore[arg-type]
    noise = np.random.default_rng(0).normal(0, 4, shape)
    return Volume.from_array((truth * 100 + noise).astype(np.int16), affine), truth


@pytest.mark.parametrize("name", AFFINES)
def test_an_ellipsoid_from_a_click_a_flat_box_and_a_solid_box(name: str) -> None:
    volume, truth = _volume(AFFINES[name])
    predictor = VolumePredictor(Threshold())
    predictor.set_volume(volume)
    axis = int(volume.grid.spacing.argmax())
    middle = tuple(n // 2 for n in truth.shape)
    where = np.argwhere(truth)
    low, high = where.min(axis=0), where.max(axis=0)
    on_slice = np.argwhere(truth.take(middle[axis], axis=axis))
    flat = np.insert(np.stack([on_slice.min(axis=0), on_slice.max(axis=0)]), axis, middle[axis], axis=1)
    click = predictor.predict(points=[middle])
    for prediction in (click, predictor.predict(boxes=[flat]), predictor.predict(boxes=[[low, high]])):
        assert dice(prediction.mask, truth) > 0.95
        assert prediction.mask.shape == volume.grid.shape
        assert not prediction.unmet
        assert 0.8 < prediction.score <= 1
    again = VolumePredictor(Threshold())
    again.set_volume(volume)
    np.testing.assert_array_equal(again.predict(points=[middle]).mask, click.mask)


def test_a_box_on_another_plane_takes_slices_across_it_with_square_pixels() -> None:
    volume, truth = _volume(AFFINES["axial"])
    predictor = VolumePredictor(Threshold())
    predictor.set_volume(volume)
    middle = truth.shape[0] // 2
    on_slice = np.argwhere(truth[middle])
    box = np.insert(np.stack([on_slice.min(axis=0), on_slice.max(axis=0)]), 0, middle, axis=1)
    assert dice(predictor.predict(boxes=[box]).mask, truth) > 0.9


def test_a_solid_box_bounds_the_slices() -> None:
    volume, truth = _volume(AFFINES["axial"])
    predictor = VolumePredictor(Threshold())
    predictor.set_volume(volume)
    where = np.argwhere(truth)
    low, high = where.min(axis=0), where.max(axis=0)
    low[2], high[2] = truth.shape[2] // 2 - 1, truth.shape[2] // 2 + 1
    found = np.argwhere(predictor.predict(boxes=[[low, high]]).mask)
    assert found[:, 2].min() >= low[2] and found[:, 2].max() <= high[2]


def test_slices_are_encoded_once_and_undo_gives_the_mask_of_before() -> None:
    volume, truth = _volume(AFFINES["axial"])
    predictor = VolumePredictor(Threshold())
    predictor.set_volume(volume)
    middle = Point(coordinates=tuple(n // 2 for n in truth.shape), positive=True)  # type: ignore[arg-type]
    first = predictor.predict_prompts([middle])
    assert first.encoded >= len(np.unique(np.argwhere(truth)[:, 2]))
    outside = Point(coordinates=(2, 2, truth.shape[2] // 2), positive=False)
    second = predictor.predict_prompts([middle, outside])
    assert second.encoded == 0
    np.testing.assert_array_equal(predictor.predict_prompts([middle]).mask, first.mask)
    assert not second.mask[2, 2, truth.shape[2] // 2]


def test_two_bodies_that_touch_are_parted_by_a_negative_click() -> None:
    """A column runs on into another one along the slices; a click outside cuts the second one off."""
    array = np.zeros((40, 40, 30), dtype=np.int16)
    array[12:24, 12:24, 5:15] = 100
    array[12:24, 12:24, 15:25] = 100
    volume = Volume.from_array(array, np.diag([1.0, 1.0, 3.0, 1.0]))
    predictor = VolumePredictor(Threshold())
    predictor.set_volume(volume)
    inside = Point(coordinates=(18, 18, 10), positive=True)
    assert predictor.predict_prompts([inside]).mask[18, 18, 24]
    cut = [Point(coordinates=(i, j, 16), positive=False) for i in range(13, 24, 3) for j in range(13, 24, 3)]
    found = predictor.predict_prompts([inside, *cut]).mask
    assert found[18, 18, 5:15].all()
    assert not found[:, :, 17:].any()


def test_a_click_on_another_slice_adds_what_was_missed() -> None:
    array = np.zeros((40, 40, 30), dtype=np.int16)
    array[10:20, 10:20, 5:14] = 100
    array[10:20, 10:20, 17:25] = 100  # the same body after a gap that stops the propagation
    volume = Volume.from_array(array, np.diag([1.0, 1.0, 3.0, 1.0]))
    predictor = VolumePredictor(Threshold())
    predictor.set_volume(volume)
    one = Point(coordinates=(15, 15, 9), positive=True)
    other = Point(coordinates=(15, 15, 20), positive=True)
    first, both = predictor.predict_prompts([one]), predictor.predict_prompts([one, other])
    assert not first.mask[:, :, 17:].any()
    assert dice(both.mask, array > 0) > 0.97
    assert both.changed_box is not None and both.changed_box[0][2] >= 14


def test_a_mask_is_kept_and_clicks_go_on_from_it() -> None:
    volume, truth = _volume(AFFINES["oblique and flipped"])
    predictor = VolumePredictor(Threshold())
    predictor.set_volume(volume)
    mask = MaskPrompt.from_array(truth)
    np.testing.assert_array_equal(predictor.predict_prompts([mask]).mask, truth)
    axis = int(volume.grid.spacing.argmax())
    where = np.argwhere(truth)
    tip = where[where[:, axis].argmax()]
    off = Point(coordinates=tuple(float(v) for v in tip), positive=False)  # type: ignore[arg-type]
    after = predictor.predict_prompts([mask, off]).mask
    assert not after[tuple(tip)]
    assert dice(after, truth) > 0.8


def test_slices_are_those_of_the_scanner() -> None:
    for name, axis in (("axial", 2), ("sagittal slices first", 2), ("oblique and flipped", 2)):
        grid = _volume(AFFINES[name])[0].grid
        assert slice_axis([Point(coordinates=(1, 1, 1), positive=True)], grid) == axis
    cube = Volume.from_array(np.eye(8)[:, :, None] * np.ones(8), np.array(
        [[0, 1.0, 0, 0], [0, 0, 1.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]]))  # fmt: skip
    assert slice_axis([Point(coordinates=(1, 1, 1), positive=True)], cube.grid) == 0  # head-feet
    assert slice_axis([Box(lower=(1, 3, 1), upper=(5, 3, 5))], cube.grid) == 1


@pytest.mark.parametrize("name", AFFINES)
def test_a_box_of_voxels_as_a_window_and_back(name: str) -> None:
    volume, _ = _volume(AFFINES[name])
    values = np.random.default_rng(1).normal(size=(7, 5, 4)).astype(np.float32)
    roi, tensor = on_own_grid(values, (3, 6, 2), volume.grid)
    start, back = in_file_order(tensor, roi)
    assert start == (3, 6, 2)
    np.testing.assert_array_equal(back, values)
    corner = roi.to_roi([[3, 6, 2]])[0]
    assert tensor[tuple(round(c) for c in corner)] == values[0, 0, 0]


def _disc(radius: float, centre: tuple[float, float] = (20, 20)) -> np.ndarray:
    rows, columns = np.mgrid[:40, :40]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def _mask(mask: np.ndarray, quality: float = 0.9) -> SliceMask:
    return SliceMask(np.where(mask, 3.0, -3.0).astype(np.float32), quality)


@pytest.mark.parametrize(
    ("current", "stops"),
    [
        (_mask(_disc(9)), False),
        (_mask(_disc(0)), True),  # vanished
        (_mask(_disc(18)), True),  # jumped
        (_mask(_disc(5)), True),  # shrank at once
        (_mask(_disc(10, (30, 30))), True),  # elsewhere
        (_mask(_disc(9), quality=0.2), True),  # not believed
    ],
)
def test_rules_of_stopping(current: SliceMask, stops: bool) -> None:
    assert ends(_disc(10), current, Propagation()) is stops


def test_the_next_slice_is_told_box_depth_and_logits() -> None:
    previous = _mask(_disc(10))
    prompt = carried(previous, Propagation())
    np.testing.assert_allclose(prompt.points, [[20, 20]])
    assert prompt.box is not None
    np.testing.assert_allclose(prompt.box, [8, 8, 32, 32])
    assert prompt.earlier is previous.logits and prompt.labels.tolist() == [1]
