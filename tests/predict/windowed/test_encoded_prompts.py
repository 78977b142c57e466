"""Prompts in coordinates of a window."""

from __future__ import annotations

import numpy as np
import torch

from medsam_app.grid.geometry import Grid
from medsam_app.grid.roi import Roi
from medsam_app.predict.windowed.encoded_prompts import prompts_in_roi
from medsam_app.prompts.types import Box, Point

GRID = Grid((100, 100, 100), np.diag([-1.0, 1.0, 1.0, 1.0]))
ROI = Roi.centred((50, 50, 50), (0.5, 0.5, 0.5), (32, 32, 32), GRID.ras)
CPU = torch.device("cpu")


def _encode(*prompts: Point | Box, sure: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    return prompts_in_roi(ROI, prompts, None, sure, CPU)


def test_clicks_come_in_the_windows_voxels_and_those_outside_are_left_out() -> None:
    here, there = Point(coordinates=(49, 50, 52)), Point(coordinates=(2, 3, 4), positive=False)
    encoded = _encode(here, there)
    assert encoded.labels.tolist() == [[1]]
    np.testing.assert_allclose(encoded.coords[0, 0], ROI.to_roi((49, 50, 52)), atol=1e-4)


def test_of_boxes_the_solid_ones_count_and_are_clipped_to_the_window() -> None:
    flat = Box(lower=(40, 40, 50), upper=(60, 60, 50))
    solid = Box(lower=(48, 48, 48), upper=(90, 90, 90))
    assert _encode(Point(coordinates=(50, 50, 50))).boxes is None
    encoded = _encode(flat, solid).boxes
    assert encoded is not None
    lower, upper = np.sort(ROI.to_roi([(48, 48, 48), (90, 90, 90)]), axis=0)
    np.testing.assert_allclose(encoded[0, 0], np.clip(lower, 0, 31), atol=1e-4)
    np.testing.assert_allclose(encoded[0, 1], np.clip(upper, 0, 31), atol=1e-4)


def test_a_tile_is_told_what_is_sure_instead_of_a_part_of_a_box() -> None:
    sure = np.ones((32, 32, 32), dtype=np.int8)
    encoded = _encode(Box(lower=(20, 20, 50), upper=(80, 80, 50)), sure=sure)
    assert encoded.boxes is None
    assert encoded.seeds is not None
    assert torch.equal(encoded.seeds[0, 0], torch.from_numpy(sure))
