"""Clicks that correct an existing mask locally and leave the rest unchanged.

A user who starts from a mask of their own, or has clicked a few times, has said where the object is; a
correction must not make the model decide about all of it again.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.grid.masks import FULL_NEIGHBOURHOOD
from medsam_app.grid.roi import Roi
from medsam_app.prompts.types import Point

#: A click reaches this many voxels of the window, and this many times its distance to the mask's outline.
REACH_VOXELS = 2.0
REACH_DEPTHS = 1.5
#: Voxels of the window over which the reach fades out.
FADE = 2.0
#: A change of the mask belongs to a click that is within this many voxels of the window.
TOUCH = 2.0


def keep_to_click(old: torch.Tensor, new: torch.Tensor, roi: Roi, *clicks: Point) -> torch.Tensor:
    """Return logits whose mask changes only by the part that a click concerns.

    A positive click adds, a negative one removes, and only the connected part that the click is in. Where
    both masks agree their logits are averaged, so that outlines settle.

    Args:
        old, new: (X, Y, Z) logits on the window, before and after the click.
        roi: the window.
        clicks: the newest click, or those of a scribble, all of one sign.
    """
    before, after = (old > 0).numpy(), (new > 0).numpy()
    asked = after & ~before if clicks[0].positive else before & ~after
    parts, _ = ndimage.label(asked, structure=FULL_NEIGHBOURHOOD)
    near = np.logical_or.reduce([(_distance(roi, click) <= TOUCH).numpy() for click in clicks])
    granted = np.isin(parts, np.setdiff1d(parts[near], 0))
    kept = torch.where(torch.from_numpy(before == after), (old + new) / 2, old)
    return torch.where(torch.from_numpy(granted), new, kept)


def mend_near_click(old: torch.Tensor, new: torch.Tensor, roi: Roi, *clicks: Point) -> torch.Tensor:
    """Logits that a click has raised, or a negative one lowered, near where it fell.

    An error whose middle was clicked is about as wide as twice the click's distance to the nearest
    voxel that is already right; a click where nothing is wrong changes next to nothing.

    Args:
        old, new: (X, Y, Z) logits on the window, before and after the click.
        roi: the window.
        clicks: the newest click, or those of a scribble, all of one sign.
    """
    away = [_distance(roi, click) for click in clicks]
    right = (old > 0) if clicks[0].positive else (old <= 0)
    reaches = [float(one[right].min()) if bool(right.any()) else float("inf") for one in away]
    shares = [
        (REACH_VOXELS + REACH_DEPTHS * depth + FADE - one) / FADE
        for one, depth in zip(away, reaches, strict=True)
    ]
    share = torch.stack(shares).amax(dim=0).clamp(0, 1)
    mended = old + share * (new - old)
    return torch.maximum(old, mended) if clicks[0].positive else torch.minimum(old, mended)


def middle_of_mask(old: torch.Tensor, roi: Roi, negatives: list[Point]) -> NDArray[np.float64] | None:
    """(3,) the window's voxel deepest inside a mask and away from negative clicks; None without any.

    The model needs a click inside to know what the object looks like: a given mask has none.
    """
    inside = (old > 0).numpy().copy()
    for click in negatives:
        inside[(_distance(roi, click) <= REACH_VOXELS).numpy()] = False
    if not inside.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1]
    return np.array(np.unravel_index(int(depth.argmax()), depth.shape), dtype=float)


def _distance(roi: Roi, click: Point) -> torch.Tensor:
    """(X, Y, Z) distance to a click in voxels of the window."""
    axes = [
        torch.arange(n, dtype=torch.float32) - float(c)
        for n, c in zip(roi.shape, roi.to_roi(click.coordinates), strict=True)
    ]
    square = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    return square.sqrt()
