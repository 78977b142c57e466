"""Local correction of an existing mask by clicks; the rest of the mask stays unchanged.

A given mask, or the first few clicks, already determine the object. A later click must not change all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.grid.masks import FULL_NEIGHBOURHOOD
from medsam_app.grid.roi import Roi
from medsam_app.prompts.types import Point

#: Reach of a click: this many voxels of the window, plus this many times its distance to the mask's outline.
REACH_VOXELS = 2.0
REACH_DEPTHS = 1.5
#: Width in voxels of the window over which the effect of a click fades out beyond its reach.
FADE = 2.0
#: Reach within which a negative click removes voxels, after the first few prompts: in voxels of the window,
#: plus a multiple of the click's depth in the mask (`benchmarks/corrections.py`).
REMOVED_VOXELS = 2.0
REMOVED_DEPTHS = 3.0
#: A changed part of the mask belongs to a click within this distance, in voxels of the window.
TOUCH = 2.0


def keep_to_click(old: torch.Tensor, new: torch.Tensor, roi: Roi, *clicks: Point) -> torch.Tensor:
    """Return logits whose mask changes only in the connected part that contains the click.

    A positive click only adds voxels, a negative one only removes them, and only near it. Where both masks
    agree, their logits are averaged, so that the outline becomes stable.

    Args:
        old, new: (X, Y, Z) logits on the window before and after the click.
        roi: the window.
        clicks: the newest click, or the clicks of the newest scribble; all of one sign.
    """
    before, after = (old > 0).numpy(), (new > 0).numpy()
    changes = after & ~before if clicks[0].positive else before & ~after
    parts, _ = ndimage.label(changes, structure=FULL_NEIGHBOURHOOD)
    near = np.logical_or.reduce([(_distance(roi, click) <= TOUCH).numpy() for click in clicks])
    accepted = np.isin(parts, np.setdiff1d(parts[near], 0))
    unchanged = torch.where(torch.from_numpy(before == after), (old + new) / 2, old)
    edited = torch.where(torch.from_numpy(accepted), new, unchanged)
    if clicks[0].positive:
        return edited
    share = _share_near(old <= 0, roi, clicks, voxels=REMOVED_VOXELS, depths=REMOVED_DEPTHS)
    return old + share * (edited - old)


def correct_near_click(old: torch.Tensor, new: torch.Tensor, roi: Roi, *clicks: Point) -> torch.Tensor:
    """Return the old logits, corrected near a click: raised by a positive one, lowered by a negative one.

    The width of an error is estimated as twice the distance from the click to the nearest voxel that is
    already correct. A click on a voxel that is already correct changes almost nothing.

    Args:
        old, new: (X, Y, Z) logits on the window before and after the click.
        roi: the window.
        clicks: the newest click, or the clicks of the newest scribble; all of one sign.
    """
    correct = (old > 0) if clicks[0].positive else (old <= 0)
    share = _share_near(correct, roi, clicks, voxels=REACH_VOXELS, depths=REACH_DEPTHS)
    corrected = old + share * (new - old)
    return torch.maximum(old, corrected) if clicks[0].positive else torch.minimum(old, corrected)


def _share_near(
    correct: torch.Tensor, roi: Roi, clicks: Sequence[Point], *, voxels: float, depths: float
) -> torch.Tensor:
    """Return (X, Y, Z) weights: 1 within the reach of a click, falling to 0 over `FADE` voxels beyond it.

    Args:
        correct: (X, Y, Z) voxels that need no correction.
        roi: the window.
        clicks: the clicks.
        voxels: reach of a click in voxels of the window.
        depths: additional reach, as a multiple of the distance from the click to the nearest correct voxel.
    """
    shares = []
    for click in clicks:
        distance = _distance(roi, click)
        depth = float(distance[correct].min()) if bool(correct.any()) else math.inf
        shares.append((voxels + depths * depth + FADE - distance) / FADE)
    return torch.stack(shares).amax(dim=0).clamp(0, 1)


def middle_of_mask(old: torch.Tensor, roi: Roi, negatives: list[Point]) -> NDArray[np.float64] | None:
    """Return the (3,) voxel of the window deepest inside a mask, away from negative clicks, or None.

    The model needs a positive click to determine the object's appearance; a mask prompt comes without one.
    """
    inside = (old > 0).numpy().copy()
    for click in negatives:
        inside[(_distance(roi, click) <= REACH_VOXELS).numpy()] = False
    if not inside.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1]
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape), dtype=float)


def _distance(roi: Roi, click: Point) -> torch.Tensor:
    """Return the (X, Y, Z) distance to a click in voxels of the window."""
    axes = [
        torch.arange(n, dtype=torch.float32) - float(c)
        for n, c in zip(roi.shape, roi.to_roi(click.coordinates), strict=True)
    ]
    square = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    return square.sqrt()
