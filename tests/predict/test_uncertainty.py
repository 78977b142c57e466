"""Uncertainty of a mask from variants of its decode, and the next click."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

from medsam_app.browser.routes.uncertainty import uncertainty_frame
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import PromptError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch, box_slices
from medsam_app.grid.roi import Roi
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.uncertainty import doubt_of
from medsam_app.prompts.types import MaskPrompt, Point
from medsam_app.session.session import Session
from medsam_app.synthetic.torso import torso_phantom

#: Flipped, permuted and anisotropic.
AFFINE = np.array([[0, -2.0, 0, 3], [1.5, 0, 0, -8], [0, 0, -4.0, 20], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def session() -> Session:
    volume = torso_phantom()[0]
    predictor = Session(volume, VolumePredictor(refine=False))
    predictor.add_object("organ")
    middle = [n // 2 for n in volume.grid.shape]
    predictor.add_prompt("o1", Point(coordinates=(middle[0], middle[1], middle[2]), positive=True))
    return predictor


def test_doubt_is_where_variants_say_otherwise() -> None:
    grid = Grid((20, 24, 10), AFFINE)
    roi = Roi.centred([10, 12, 5], [2.0, 2.0, 2.0], (16, 32, 32), grid.ras)
    mask = np.zeros(grid.shape, dtype=bool)
    mask[6:14, 8:16, 2:8] = True
    # All variants are confidently empty, so exactly the voxels of the mask are in doubt.
    doubt = doubt_of(torch.full((3, *roi.shape), -20.0), roi, Patch.from_mask(mask), grid)
    volume_mask = np.zeros(grid.shape, dtype=np.uint8)
    volume_mask[box_slices(doubt.start, np.add(doubt.start, doubt.values.shape))] = doubt.values
    assert (volume_mask[mask] == 255).all() and not volume_mask[~mask].any()
    assert doubt.worst is not None and mask[doubt.worst]
    # Painted voxels are not in doubt.
    half = mask.copy()
    half[:, :, 5:] = False
    variants, settled = torch.full((3, *roi.shape), -20.0), Patch.from_mask(half)
    rest = doubt_of(variants, roi, Patch.from_mask(mask), grid, settled=settled)
    assert rest.worst is not None and rest.worst[2] >= 5
    sure = doubt_of(torch.full((1, *roi.shape), -20.0), roi, Patch.empty(), grid)
    assert sure.worst is None and not sure.values.any()


@pytest.mark.slow
def test_a_model_is_in_doubt_near_the_outline(session: Session) -> None:
    doubt, prediction = session.doubt("o1"), session.prediction("o1")
    assert doubt is not None and prediction is not None
    again = session.doubt("o1")
    assert again is not None and (again.values == doubt.values).all() and again.worst == doubt.worst
    assert 0 < (doubt.values >= 64).mean() < 0.5
    assert doubt.worst is not None


@pytest.mark.slow
def test_the_page_gets_it_in_its_own_order(session: Session) -> None:
    workspace = Workspace()
    workspace.replace_volume(session, "x", {})
    body, doubt = uncertainty_frame(workspace, "o1"), session.doubt("o1")
    assert doubt is not None and doubt.worst is not None
    (length,) = struct.unpack("<I", body[:4])
    header = json.loads(body[4 : 4 + length])
    [part] = header["masks"]
    values = np.frombuffer(body[4 + length :], np.uint8).reshape(part["size"], order="F")
    ras = session.volume.grid.ras
    assert header["worst"] == ras.points_from_file([doubt.worst])[0].tolist()
    inside = tuple(np.subtract(header["worst"], part["start"]))
    assert values[inside] == doubt.values[tuple(np.subtract(doubt.worst, doubt.start))]
    session.add_object("nothing yet")
    with pytest.raises(PromptError, match="no mask yet"):
        uncertainty_frame(workspace, "o2")


def test_no_model_was_asked_about_a_given_mask(session: Session) -> None:
    mask = np.zeros(session.volume.grid.shape, dtype=bool)
    mask[4:8, 4:8, 4:8] = True
    assert session.predictor is not None
    with pytest.raises(PromptError, match="no model was asked"):
        session.predictor.variants([MaskPrompt.from_array(mask)])
