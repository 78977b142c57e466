"""Decodes of a 3D box: the ellipsoid in it, outlines to redraw, and what a box gives in the end."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch

from medsam_app.grid.masks import dice
from medsam_app.grid.roi import Roi
from medsam_app.io.volume import make_volume
from medsam_app.models.load import load_model
from medsam_app.models.sam3d import RoiPrompts, Sam3D
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.windowed.box_decodes import as_outline, ellipsoid, mean_logits
from tests.predict.windowed.test_box_slices import ellipsoid as bright_ellipsoid

BOX = torch.tensor([[[4.0, 8.0, 10.0], [27.0, 23.0, 19.0]]])
SHAPE = (32, 32, 32)


def box_prompt() -> RoiPrompts:
    return RoiPrompts(torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.int64), BOX)


def test_the_ellipsoid_touches_the_faces_of_the_box() -> None:
    inside = np.argwhere((ellipsoid(BOX[0], SHAPE) > 0.5).numpy())
    assert inside.min(0).tolist() == [4, 8, 10] and inside.max(0).tolist() == [27, 23, 19]
    assert len(inside) == pytest.approx(np.pi / 6 * 24 * 16 * 10, rel=0.05)
    flat = ellipsoid(torch.tensor([[4.0, 4.0, 9.0], [20.0, 20.0, 9.0]]), SHAPE)
    assert bool(torch.isfinite(flat).all()) and np.argwhere((flat > 0.5).numpy())[:, 2].tolist() == [9] * int(
        (flat > 0.5).sum()
    )


def test_an_outline_has_a_click_in_its_middle_and_certain_voxels() -> None:
    probability = ellipsoid(BOX[0], SHAPE)
    outline = as_outline(box_prompt(), probability)
    assert outline.boxes is None and outline.labels.tolist() == [[1]]
    assert torch.allclose(outline.coords[0, 0], BOX[0].mean(0), atol=2)
    assert outline.mask is not None and torch.equal(outline.mask[0, 0], probability)
    assert outline.seeds is not None
    seeds = outline.seeds[0, 0]
    assert int((seeds > 0).sum()) > 0 and not bool((seeds[probability <= 0.5] > 0).any())
    assert bool((seeds[:, :, 28:] == -1).all())
    nothing = as_outline(box_prompt(), torch.zeros(SHAPE))
    assert nothing.labels.shape == (1, 0) and not bool((nothing.seeds > 0).any())  # type: ignore[operator]


def test_the_mean_is_that_of_probabilities() -> None:
    a, b = torch.tensor([2.0, -200.0]), torch.tensor([-1.0, -300.0])
    mean = mean_logits([a, b])
    assert float(torch.sigmoid(mean[0])) == pytest.approx(float((torch.sigmoid(a) + torch.sigmoid(b))[0] / 2))
    assert bool(torch.isfinite(mean).all())
    assert mean_logits([a]) is a


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ras", "thick slices"])
def test_a_box_gives_the_object_on_any_grid(name: str) -> None:
    volume, truth, box, _ = bright_ellipsoid(name)
    noise = np.random.default_rng(0).normal(0, 8, volume.array.shape)
    noisy = make_volume(name, (volume.array + noise).astype(np.float32), volume.grid.affine)
    predictor = VolumePredictor("sam3d_tiny", device="cpu", refine=False)
    predictor.set_volume(noisy)
    prediction = predictor.predict(boxes=[[box.lower, box.upper]])
    assert dice(prediction.mask, truth) > 0.85
    assert not prediction.unmet and prediction.encoded == 1


@pytest.mark.slow
def test_models_that_do_not_redraw_outlines_decode_the_box_itself() -> None:
    volume, _, box, _ = bright_ellipsoid("ras")
    model = cast(Sam3D, load_model("sam3d_tiny"))
    masks = []
    for redraws in (True, False):
        model.redraws_outlines = redraws
        predictor = VolumePredictor(model, refine=False)
        predictor.set_volume(volume)
        masks.append(predictor.predict(boxes=[[box.lower, box.upper]]).logits)
    assert not torch.equal(*masks)
    assert isinstance(predictor.predict(boxes=[[box.lower, box.upper]]).roi, Roi)


@pytest.mark.slow
def test_the_first_click_after_a_box_keeps_the_rest_of_the_mask() -> None:
    """A negative click alone says nothing of the object, so it must not take the box's mask away."""
    volume, truth, box, _ = bright_ellipsoid("ras")
    predictor = VolumePredictor("sam3d_tiny", device="cpu", refine=False)
    predictor.set_volume(volume)
    before = predictor.predict(boxes=[[box.lower, box.upper]]).mask
    edge = np.argwhere(before & truth)[0]
    after = predictor.predict(boxes=[[box.lower, box.upper]], points=[edge.tolist()], point_labels=[0]).mask
    assert not after[tuple(edge)] and before[tuple(edge)]
    changed = np.argwhere(before != after)
    assert len(changed) < 0.2 * before.sum()
    assert np.linalg.norm(changed - edge, axis=1).max() < 0.6 * np.linalg.norm(
        np.ptp(np.argwhere(before), axis=0)
    )


@pytest.mark.slow
def test_a_box_over_all_slices_of_a_thin_volume() -> None:
    shape = (512, 512, 5)
    place = np.indices(shape)
    truth = ((place[0] - 300) / 60) ** 2 + ((place[1] - 150) / 40) ** 2 + ((place[2] - 2) / 4) ** 2 <= 1
    image = np.random.default_rng(0).normal(100, 8, shape) + 120 * truth
    predictor = VolumePredictor("sam3d_tiny", device="cpu", refine=False)
    predictor.set_volume(make_volume("thin", np.rint(image).astype(np.int16), np.diag([0.5, 0.5, 5, 1])))
    mask = predictor.predict(boxes=[[(240, 110, 0), (360, 190, 4)]]).mask
    assert dice(mask, truth) > 0.6
