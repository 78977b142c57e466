"""Slice mode: prompts on one slice become a 3D mask, on any grid and with any 2D model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy import ndimage

from medsam_app.grid.patch import box_slices
from medsam_app.io.loading import load_volume
from medsam_app.io.volume import Volume
from medsam_app.models.slices.slice_output import SliceCandidates
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.slicewise.propagation import Propagation
from medsam_app.prompts.types import Box, MaskPrompt, Point


@dataclass
class Picture:
    """Embedding of the stand-in model: the slice itself."""

    shown: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.shown.nbytes


class RegionGrowing:
    """2D model without weights: it segments the connected region of about the clicked brightness.

    The region is cropped to the box. With negative clicks, a pixel belongs to the nearest click.
    """

    model_id, weights_sha256, boxes_only = "region growing", "", False
    adapter_id = adapter_sha256 = ""

    def __init__(self) -> None:
        self.encodings = 0
        self.decodings = 0

    def encode_slice(
        self, image: np.ndarray, *, window: tuple[float, float], pixel: tuple[float, float] = (1.0, 1.0)
    ) -> Picture:
        self.encodings += 1
        low, high = window
        return Picture(ndimage.median_filter((image.astype(np.float32) - low) / (high - low), 3))

    def decode_slice(
        self,
        embedding: Picture,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: torch.Tensor | None = None,
    ) -> SliceCandidates:
        self.decodings += 1
        shown = embedding.shown
        at = np.zeros((0, 2)) if points is None else np.asarray(points, dtype=float)
        positive = np.zeros(0, dtype=bool) if labels is None else np.asarray(labels) == 1
        if box is not None and not positive.any():
            at, positive = np.vstack([at, np.reshape(box, (2, 2)).mean(axis=0)]), np.append(positive, True)
        inside = np.zeros(shown.shape, dtype=bool)
        for row, column in np.round(at[positive]).astype(int):
            labelled, _ = ndimage.label(np.abs(shown - shown[row, column]) < 0.4)
            inside |= labelled == labelled[row, column]
        if positive.any():
            grid = np.stack(np.indices(shown.shape), axis=-1)
            distance = np.linalg.norm(grid[:, :, None] - at, axis=-1)
            inside &= positive[distance.argmin(axis=-1)]
        if box is not None:
            rows, columns = np.indices(shown.shape)
            a, b, c, d = np.asarray(box)
            inside &= (rows >= a) & (rows <= c) & (columns >= b) & (columns <= d)
        logits = torch.from_numpy(np.where(inside, 8.0, -8.0).astype(np.float32))[None]
        return SliceCandidates(logits, logits, torch.tensor([0.9]))

    def low_res(self, embedding: Picture, logits: torch.Tensor) -> torch.Tensor:
        return logits


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def tilted(axes: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """Return an oblique affine: axes permuted, some flipped, rotated by a few degrees."""
    turn = np.eye(3)
    for a, b, degrees in ((0, 1, 12), (1, 2, -9), (0, 2, 7)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        part = np.eye(3)
        part[[a, a, b, b], [a, b, a, b]] = (c, -s, s, c)
        turn = turn @ part
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((-1, 1, -1))[:, list(axes)] * spacing
    affine[:3, 3] = (30, -20, 10)
    return affine


#: Grids with slices along i, j or k, and an isotropic one.
GRIDS = {
    "k": ((60, 52, 20), tilted((0, 1, 2), (1.0, 1.1, 3.0))),
    "i": ((18, 60, 56), tilted((2, 0, 1), (3.2, 1.0, 1.0))),
    "j": ((56, 20, 60), tilted((1, 2, 0), (1.0, 3.0, 1.1))),
    "isotropic": ((50, 54, 52), tilted((1, 0, 2), (1.0, 1.0, 1.0))),
}


def ellipsoid(name: str) -> tuple[Volume, np.ndarray, tuple[int, int, int]]:
    """Return a noisy volume with a bright ellipsoid oblique to the grid, its mask and its centre."""
    shape, affine = GRIDS[name]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle = tuple(n // 2 - 1 for n in shape)
    offset = (np.stack(np.indices(shape), -1) - middle) * spacing
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    truth = np.linalg.norm(offset @ turn / (18.0, 12.0, 15.0), axis=-1) < 1
    noise = np.random.default_rng(0).normal(size=shape) * 10
    return Volume.from_array((truth * 200 + noise - 50).astype(np.int16), affine), truth, middle


def predictor_on(volume: Volume, **settings: float) -> VolumePredictor:
    predictor = VolumePredictor(RegionGrowing(), propagation=Propagation(**settings))  # type: ignore[arg-type]
    predictor.set_volume(volume)
    return predictor


def across(name: str) -> int:
    """Return the file's axis across the slices."""
    _, affine = GRIDS[name]
    return "ijk".index(name) if name in "ijk" else int(np.abs(affine[2, :3]).argmax())


@pytest.mark.parametrize("name", GRIDS)
def test_one_prompt_on_one_slice_finds_the_object_in_space(name: str) -> None:
    volume, truth, middle = ellipsoid(name)
    axis = across(name)
    within = [n for n in range(3) if n != axis]
    corners = np.array([middle, middle])
    plane = np.nonzero(np.take(truth, middle[axis], axis=axis))
    for n, line in zip(within, plane, strict=True):
        corners[:, n] = line.min() - 1, line.max() + 1
    indices = np.argwhere(truth)
    predictor = predictor_on(volume)
    for found in (
        predictor.predict(points=[middle]),
        predictor.predict(boxes=[corners]),
        predictor.predict(boxes=[(indices.min(axis=0), indices.max(axis=0))]),
    ):
        assert dice(found.mask, truth) > 0.9
        assert found.unmet == ()
        assert found.mask.shape == volume.shape
        assert found.roi.spacing == pytest.approx(tuple(volume.grid.ras.spacing))
        slices = np.nonzero(found.mask.any(axis=tuple(within)))[0]
        object_slices = np.nonzero(truth.any(axis=tuple(within)))[0]
        # The mask stops at the object's ends, within one slice at the tips.
        assert abs(slices[0] - object_slices[0]) <= 1
        assert abs(slices[-1] - object_slices[-1]) <= 1


def test_a_flat_box_chooses_the_axis() -> None:
    volume, truth, middle = ellipsoid("k")
    low, high = np.argwhere(truth[:, middle[1]]).min(axis=0), np.argwhere(truth[:, middle[1]]).max(axis=0)
    predictor = predictor_on(volume)
    box = Box(lower=(low[0] - 1, middle[1], low[1] - 1), upper=(high[0] + 1, middle[1], high[1] + 1))
    prediction = predictor.predict_prompts([box])
    assert dice(prediction.mask, truth) > 0.9
    # The slices of the object along j were encoded, and the two beyond its ends.
    looked = np.count_nonzero(truth.any(axis=(0, 2))) + 2
    assert abs(predictor.model.encodings - looked) <= 2  # type: ignore[union-attr]


def test_a_solid_box_bounds_the_slices() -> None:
    volume, truth, middle = ellipsoid("k")
    low, high = np.argwhere(truth).min(axis=0), np.argwhere(truth).max(axis=0)
    low[2], high[2] = middle[2] - 2, middle[2] + 1
    predictor = predictor_on(volume)
    prediction = predictor.predict(boxes=[(low, high)])
    slices = np.nonzero(prediction.mask.any(axis=(0, 1)))[0]
    assert slices.tolist() == list(range(middle[2] - 2, middle[2] + 2))
    assert predictor.model.encodings == 4  # type: ignore[union-attr]
    assert dice(prediction.mask[:, :, slices], truth[:, :, slices]) > 0.95
    # A positive click outside the box extends the object.
    more = predictor.predict(boxes=[(low, high)], points=[(middle[0], middle[1], middle[2] + 3)])
    assert more.mask[:, :, middle[2] + 3].any()
    assert more.unmet == ()


def touching() -> tuple[Volume, np.ndarray, np.ndarray]:
    """Return two equally bright cylinders along k: they touch from slice 8 on, and the second is longer."""
    shape = (64, 48, 24)
    i, j, k = np.indices(shape)
    first = ((i - 20) ** 2 + (j - 24) ** 2 < 12**2) & (k >= 3) & (k <= 17)
    second = ((i - 42) ** 2 + (j - 24) ** 2 < 12**2) & (k >= 8) & ~first
    noise = np.random.default_rng(1).normal(size=shape) * 5
    array = (200.0 * (first | second) + noise).astype(np.float32)
    return Volume.from_array(array, np.diag([-1.0, -1.0, 3.0, 1.0])), first, second


def test_a_negative_click_keeps_out_what_touches() -> None:
    volume, first, second = touching()
    predictor = predictor_on(volume, room=0, room_pixels=0)  # the stand-in model fills the box
    inside, beside = Point(coordinates=(20, 24, 12)), Point(coordinates=(42, 24, 12), positive=False)
    leaked = predictor.predict_prompts([inside])
    assert (leaked.mask & second).sum() > 0.5 * second.sum()
    mended = predictor.predict_prompts([inside, beside])
    assert dice(mended.mask, first) > 0.9
    assert (mended.mask & second).sum() < 0.02 * second.sum()
    assert not mended.mask[:, :, 18:].any()  # only the second object exists beyond the end of the first
    assert mended.unmet == ()
    # The changed box holds exactly the changed voxels.
    changed = leaked.mask != mended.mask
    assert mended.changed_box is not None
    start, stop = mended.changed_box
    changed[box_slices(start, stop)] = False
    assert not changed.any()


def test_a_leak_is_stopped_by_how_fast_the_mask_grows() -> None:
    shape = (40, 40, 16)
    i, j, k = np.indices(shape)
    column = ((i - 20) ** 2 + (j - 20) ** 2 < 5**2) & (k < 9)
    volume = Volume.from_array(((column | (k >= 9)) * 100).astype(np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    prediction = predictor_on(volume).predict(points=[(20, 20, 4)])
    assert dice(prediction.mask, column) > 0.95
    assert not prediction.mask[:, :, 9:].any()
    assert predictor_on(volume, growth=10.0).predict(points=[(20, 20, 4)]).mask[:, :, 9:].any()


def test_a_negative_click_past_the_end_cuts_there_and_nowhere_else() -> None:
    shape = (40, 40, 20)
    i, j, _ = np.indices(shape)
    truth = (i - 20) ** 2 + (j - 20) ** 2 < 100  # has no end
    volume = Volume.from_array((truth * 100).astype(np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    predictor = predictor_on(volume)
    start, end = Point(coordinates=(20, 20, 6)), Point(coordinates=(20, 20, 13), positive=False)
    prediction = predictor.predict_prompts([start])
    assert dice(prediction.mask, truth) > 0.97
    cut = predictor.predict_prompts([start, end])
    assert np.array_equal(cut.mask[:, :, :13], prediction.mask[:, :, :13])
    assert not cut.mask[:, :, 13:].any()


def test_a_negative_click_beside_the_object_does_not_end_it() -> None:
    """On a slice without a mask, a negative click does not limit the object."""
    volume, _, middle = ellipsoid("k")
    predictor = predictor_on(volume)
    click = Point(coordinates=middle)
    beside = Point(coordinates=(1, 1, middle[2] + 2), positive=False)
    alone = predictor.predict_prompts([click]).mask
    np.testing.assert_array_equal(predictor.predict_prompts([beside, click]).mask, alone)
    on_it = Point(coordinates=(*middle[:2], middle[2] + 2), positive=False)
    cut = predictor.predict_prompts([on_it, click]).mask
    assert cut[..., middle[2] + 1].any() and not cut[..., middle[2] + 2 :].any()


def test_a_negative_click_where_nothing_is_changes_nothing_and_costs_nothing() -> None:
    volume, _, middle = ellipsoid("k")
    predictor = predictor_on(volume)
    prediction = predictor.predict(points=[middle])
    again = predictor.predict(points=[middle, (5, 5, 0), (5, 5, 19)], point_labels=[1, 0, 0])
    assert np.array_equal(prediction.mask, again.mask)
    assert again.score == pytest.approx(prediction.score)
    assert again.encoded == 0
    assert again.changed_box is None


def test_a_click_beyond_a_gap_adds_what_is_there_and_keeps_the_rest() -> None:
    shape = (40, 40, 24)
    i, j, k = np.indices(shape)
    column = (i - 20) ** 2 + (j - 20) ** 2 < 100
    truth = column & ((k >= 3) & (k < 10) | (k >= 13) & (k < 20))
    volume = Volume.from_array((truth * 100).astype(np.uint8), np.diag([1.0, 1.0, 3.0, 1.0]))
    predictor = predictor_on(volume)
    clicks = [Point(coordinates=(20, 20, 6)), Point(coordinates=(20, 20, 16))]
    below, both = (predictor.predict_prompts(clicks[:n]).mask for n in (1, 2))
    assert dice(below, truth & (k < 12)) > 0.97
    assert dice(both, truth) > 0.97
    assert np.array_equal(both[:, :, :12], below[:, :, :12])


def test_between_two_key_slices_both_count() -> None:
    volume, first, second = touching()
    predictor = predictor_on(volume, room=0, room_pixels=0)
    clicks = [Point(coordinates=(20, 24, 12)), Point(coordinates=(42, 24, 16), positive=False)]
    prediction = predictor.predict_prompts(clicks)
    # Near the negative click only the first object remains, near the positive one both.
    assert not (prediction.mask & second)[:, :, 15:].any()
    assert (prediction.mask & second)[:, :, 12].any()
    assert dice(prediction.mask & first, first) > 0.9


def test_clicks_are_honoured_against_the_image_and_on_any_slice() -> None:
    volume, _, middle = ellipsoid("k")
    predictor = predictor_on(volume)
    far = (4, 4, middle[2])
    points = [middle, far, (middle[0] + 2, middle[1], middle[2]), (50, 5, 1)]
    prediction = predictor.predict(points=points, point_labels=[1, 1, 0, 0])
    assert [bool(prediction.mask[p]) for p in points] == [True, True, False, False]
    assert prediction.unmet == ()


def test_same_prompts_same_mask_and_nothing_is_encoded_twice() -> None:
    volume, _, middle = ellipsoid("k")
    prompts = [
        Point(coordinates=middle),
        Point(coordinates=(middle[0], middle[1], middle[2] + 2)),
        Point(coordinates=(middle[0] + 9, middle[1], middle[2] - 2), positive=False),
    ]
    predictor = predictor_on(volume)
    steps = [predictor.predict_prompts(prompts[:n]) for n in (1, 2, 3)]
    assert steps[0].encoded > 3
    assert steps[1].encoded == 0
    again = predictor_on(volume).predict_prompts(prompts)
    assert np.array_equal(steps[2].mask, again.mask)
    assert steps[2].score == again.score
    undone = predictor.predict_prompts(prompts[:1])
    assert np.array_equal(undone.mask, steps[0].mask)
    assert undone.encoded == 0


def test_a_mask_comes_back_as_it_is_and_a_click_mends_it_where_it_falls() -> None:
    volume, truth, middle = ellipsoid("i")
    rough = truth.copy()
    j, k = np.indices(truth.shape[1:])
    click = Point(coordinates=(middle[0], middle[1] + 6, middle[2]))
    rough[middle[0]][(j - click.coordinates[1]) ** 2 + (k - middle[2]) ** 2 < 5**2] = (
        False  # a hole in a slice
    )
    predictor = predictor_on(volume)
    mask = MaskPrompt.from_array(rough)
    assert np.array_equal(predictor.predict_prompts([mask]).mask, rough)
    mended = predictor.predict_prompts([mask, click]).mask
    assert dice(mended[middle[0]], truth[middle[0]]) > 0.97 > dice(rough[middle[0]], truth[middle[0]])
    away = np.abs(np.arange(volume.shape[0]) - middle[0]) > 3
    assert np.array_equal(mended[away], rough[away])


def test_a_frame_of_a_4d_file(tmp_path: Path) -> None:
    volume, truth, middle = ellipsoid("k")
    frames = np.stack([np.roll(volume.array, 9, axis=0), volume.array], axis=-1)
    nib.save(nib.Nifti1Image(frames, volume.affine), tmp_path / "moving.nii.gz")
    moving = load_volume(tmp_path / "moving.nii.gz", frame=1)
    assert dice(predictor_on(moving).predict(points=[middle]).mask, truth) > 0.9


def test_progress_counts_slices() -> None:
    volume, truth, middle = ellipsoid("k")
    messages: list[tuple[str, float]] = []
    predictor_on(volume).predict(points=[middle], progress=lambda text, share: messages.append((text, share)))
    assert messages[0][0].startswith("Slice 1 of about ")
    assert messages[-1][0].startswith(f"Slice {len(messages)} of about ")
    assert all(0 < share < 1 for _, share in messages)
    assert len(messages) == np.count_nonzero(truth.any(axis=(0, 1))) + 2


def test_soft_tissue_of_a_ct_is_shown_in_a_window_of_its_own() -> None:
    class Noting(RegionGrowing):
        windows: set[tuple[float, float]] = set()

        def encode_slice(self, image: np.ndarray, *, window: tuple[float, float], **how: Any) -> Picture:
            self.windows.add(window)
            return super().encode_slice(image, window=window, **how)

    array = np.full((32, 32, 6), -1000, dtype=np.int16)
    array[4:12, 4:12], array[18:26, 18:26] = 60, 900  # an organ and a bone
    ct = Volume.from_array(array, np.diag([1.0, 1.0, 4.0, 1.0]))
    predictor = VolumePredictor(Noting())
    predictor.set_volume(ct)
    assert dice(predictor.predict(points=[(8, 8, 3)]).mask, array == 60) > 0.9
    assert Noting.windows == {(-160.0, 240.0)}
    Noting.windows.clear()
    assert dice(predictor.predict(points=[(22, 22, 3)]).mask, array == 900) > 0.9
    assert Noting.windows == {(-1000.0, 900.0)}
