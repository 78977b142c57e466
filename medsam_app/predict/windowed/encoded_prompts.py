"""Prompts of a volume in coordinates of a window."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.grid.roi import Roi, move_values
from medsam_app.models.sam3d import RoiPrompts
from medsam_app.predict.core import constraints
from medsam_app.predict.core.click_edit import middle_of_mask
from medsam_app.predict.core.prediction import PromptState
from medsam_app.prompts.types import Box, ModelPrompt, Point


def prompts_in_roi(
    roi: Roi,
    prompts: Sequence[ModelPrompt],
    before: PromptState | None,
    sure: NDArray[np.int8] | None,
    device: torch.device,
    learned: torch.Tensor | None = None,
) -> RoiPrompts:
    """Return prompts in voxels of the window, without clicks outside it.

    Args:
        roi: the window.
        prompts: prompts in voxel indices of the file.
        before: the state after the previous prompts; its logits become a mask prompt.
        sure: (X, Y, Z) the certain part of the object in a tile, see `tiles.sure_of`. It replaces boxes,
            which extend beyond a tile.
        device: device of the returned tensors.
        learned: (1, T, C) tokens of the label to segment.
    """
    size = np.asarray(roi.shape)
    coords, labels, corners = [], [], []
    for prompt in prompts:
        if isinstance(prompt, Point):
            at = roi.to_roi(prompt.coordinates)
            if np.all((at >= -0.5) & (at <= size - 0.5)):
                coords.append(at)
                labels.append(int(prompt.positive))
        elif isinstance(prompt, Box):
            corners.append((prompt.slice_axis is None, roi.to_roi([prompt.lower, prompt.upper])))
    # 3D boxes take precedence over flat ones; the model gets the hull of several.
    boxes_used = [c for solid, c in corners if solid] or [c for _, c in corners[-1:]]
    boxes = None
    if boxes_used and sure is None:
        both = np.concatenate(boxes_used)
        hull = np.clip(np.stack([both.min(axis=0), both.max(axis=0)]), 0, size - 1)
        boxes = torch.tensor(hull[None], dtype=torch.float32, device=device)
    mask = None
    if before is not None:
        moved = move_values(before.logits, before.roi, roi, fill=constraints.EXCLUDED)
        mask = torch.sigmoid(moved)[None, None].to(device)
        if before.detailed:
            middle = middle_of_mask(
                moved, roi, [p for p in prompts if isinstance(p, Point) and not p.positive]
            )
            if middle is not None:
                coords.insert(0, middle)
                labels.insert(0, 1)
    return RoiPrompts(
        coords=torch.tensor(np.array(coords).reshape(1, -1, 3), dtype=torch.float32, device=device),
        labels=torch.tensor([labels], dtype=torch.int64, device=device),
        boxes=boxes,
        mask=mask,
        seeds=None if sure is None else torch.from_numpy(sure)[None, None].to(device),
        learned=learned,
    )
