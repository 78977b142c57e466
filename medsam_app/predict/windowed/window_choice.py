"""Choice of the window: from the prompts at first, then from the resulting mask.

The size of the object is unknown before the first click. A window of the usual spacing and a wide one are
decoded, and the one with the better predicted quality is taken. It is enlarged while the mask reaches its
faces, and narrowed when the mask fills little of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index, mask_bounds
from medsam_app.grid.roi import Roi, fitting_spacing
from medsam_app.prompts.types import Box, MaskPrompt, ModelPrompt, Point


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Settings of the window.

    Attributes:
        first_mm: spacing in mm of the window for a first click.
        wide: ratio of the wide window's spacing to the usual one.
        trust: amount by which the predicted quality of the wide window must exceed that of the usual one.
        trust_again: the same for a later click outside the mask, when the window may have been too small.
        finest: finest spacing of a window, as a fraction of the volume's finest spacing.
        margin: margin around a box or a mask on each side, as a fraction of its size.
        rim: a mask closer than this to an open face, in voxels of the window, reaches beyond it.
        zoom_out: factor of the spacing when the mask reaches beyond the window.
        small: zoom in when the mask's longest side fills less than this fraction of the window.
        filled: fraction of the window that the mask's longest side fills after zooming in.
        room: a click closer than this to an open face, in voxels, moves the window.
        encodings: most windows encoded for one prompt.
        fixed_mm: the only spacing in mm that windows may have; None to choose it.
    """

    first_mm: float = 1.5
    wide: float = 2.5
    trust: float = 0.05
    trust_again: float = -0.05
    finest: float = 0.75
    margin: float = 1 / 3
    rim: int = 4
    zoom_out: float = 1.6
    small: float = 0.25
    filled: float = 0.5
    room: float = 4.0
    encodings: int = 4
    fixed_mm: float | None = None


def first_roi(prompts: Sequence[ModelPrompt], grid: Grid, shape: Index, framing: Framing) -> Roi:
    """Return the window for prompts when there is no mask yet."""
    corners = _extent(prompts, grid)
    if corners is not None:
        low, high = corners
        return _around(low, high, grid, shape, framing, share=1 / (1 + 2 * framing.margin))
    points = np.array([p.coordinates for p in prompts if isinstance(p, Point) and p.positive])
    inside = grid.ras.points_from_file(points)
    spacing = usual_spacing(grid, shape, framing)
    roi = Roi.centred(inside[0], (spacing,) * 3, shape, grid.ras)
    if (roi.depth_inside(points) < framing.room).any():
        return _around(
            inside.min(axis=0), inside.max(axis=0), grid, shape, framing, share=0.5, at_least=spacing
        )
    return roi


def usual_spacing(grid: Grid, shape: Index, framing: Framing) -> float:
    """Return the spacing in mm of a click's window; a small volume fits into it completely."""
    if framing.fixed_mm is not None:
        return framing.fixed_mm
    finest = framing.finest * float(grid.spacing.min())
    return float(np.clip(framing.first_mm, finest, max(finest, fitting_spacing(grid, shape))))


def wider_roi(roi: Roi, grid: Grid, framing: Framing) -> Roi | None:
    """Return the wide window with the same centre, or None if the volume is too small for one."""
    spacing = min(max(roi.spacing) * framing.wide, fitting_spacing(grid, roi.shape))
    if spacing < max(roi.spacing) * framing.zoom_out:
        return None
    middle = np.asarray(roi.origin) + (np.asarray(roi.shape) - 1) / 2 * roi.step
    return Roi.centred(middle, (spacing,) * 3, roi.shape, grid.ras)


def narrower_roi(roi: Roi, grid: Grid, framing: Framing) -> Roi | None:
    """Return the window with the same centre and half the spacing, or None if the volume is not so fine."""
    finest = framing.finest * float(grid.spacing.min())
    spacing = max(min(roi.spacing) / 2, finest)
    if spacing > min(roi.spacing) * 0.8:
        return None
    middle = np.asarray(roi.origin) + (np.asarray(roi.shape) - 1) / 2 * roi.step
    return Roi.centred(middle, (spacing,) * 3, roi.shape, grid.ras)


def holds_points(roi: Roi, prompts: Sequence[ModelPrompt], framing: Framing) -> bool:
    """Return whether every click lies well inside the window."""
    points = [p.coordinates for p in prompts if isinstance(p, Point)]
    return not points or bool((roi.depth_inside(points) >= framing.room).all())


def roi_with_points(
    roi: Roi,
    mask: NDArray[np.bool_],
    prompts: Sequence[ModelPrompt],
    grid: Grid,
    framing: Framing,
) -> Roi:
    """Return the window that holds the mask of an earlier window and all clicks."""
    points = grid.ras.points_from_file([p.coordinates for p in prompts if isinstance(p, Point)])
    low, high = points.min(axis=0), points.max(axis=0)
    bounds = mask_bounds(mask)
    if bounds is not None:
        corners = np.array([bounds[0], np.asarray(bounds[1]) - 1]) * roi.step + roi.origin
        low, high = np.minimum(low, corners[0]), np.maximum(high, corners[1])
    return _around(low, high, grid, roi.shape, framing, share=0.7, at_least=min(roi.spacing))


def better_roi(
    roi: Roi,
    mask: NDArray[np.bool_],
    prompts: Sequence[ModelPrompt],
    grid: Grid,
    framing: Framing,
) -> Roi | None:
    """Return a window that fits the mask better than its own, or None.

    Args:
        roi: the window.
        mask: (X, Y, Z) the mask in that window.
        prompts: prompts of the object; all clicks stay inside the window.
        grid: the volume's grid.
        framing: settings.
    """
    bounds = mask_bounds(mask)
    if bounds is None:
        return None
    low, high = np.asarray(bounds[0]), np.asarray(bounds[1]) - 1
    sides = np.asarray(roi.shape)
    distance = np.stack([low, sides - 1 - high], axis=-1)
    longest = float(((high - low + 1) / sides).max())
    corners = np.stack([low, high]) * roi.step + roi.origin
    if ((distance < framing.rim) & roi.open_faces()).any():
        spacing = min(max(roi.spacing) * framing.zoom_out, fitting_spacing(grid, roi.shape))
        if spacing <= max(roi.spacing) * 1.01:
            return None
    elif longest < framing.small:
        finest = framing.finest * float(grid.spacing.min())
        spacing = max(min(roi.spacing) * longest / framing.filled, finest)
        if spacing >= min(roi.spacing) * 0.8:
            return None
    else:
        return None
    better = Roi.centred(corners.mean(axis=0), (spacing,) * 3, roi.shape, grid.ras)
    if not holds_points(better, prompts, framing):
        points = grid.ras.points_from_file([p.coordinates for p in prompts if isinstance(p, Point)])
        both = np.concatenate([corners, points])
        better = _around(
            both.min(axis=0), both.max(axis=0), grid, roi.shape, framing, share=0.8, at_least=spacing
        )
    return None if better == roi else better


def _extent(prompts: Sequence[ModelPrompt], grid: Grid) -> tuple[NDArray, NDArray] | None:
    """Return the corners, in RAS voxel indices, of all prompts; None without boxes and masks."""
    corners: list[NDArray] = []
    for prompt in prompts:
        if isinstance(prompt, MaskPrompt):
            corners += [np.asarray(prompt.start, float), np.asarray(prompt.stop, float) - 1]
        elif isinstance(prompt, Box):
            low, high = np.asarray(prompt.lower, float), np.asarray(prompt.upper, float)
            flat = prompt.slice_axis
            if flat is not None:  # the extent across the slice is unknown: assume the mean extent within it
                size = (high - low) * grid.spacing
                reach = size.sum() / 2 / 2 / grid.spacing[flat]
                low[flat], high[flat] = low[flat] - reach, high[flat] + reach
            last = np.asarray(grid.shape) - 1.0
            corners += [np.clip(low, 0, last), np.clip(high, 0, last)]
    if not corners:
        return None
    corners += [np.asarray(p.coordinates, float) for p in prompts if isinstance(p, Point)]
    ras = grid.ras.points_from_file(np.stack(corners))
    return ras.min(axis=0), ras.max(axis=0)


def _around(
    low: NDArray,
    high: NDArray,
    grid: Grid,
    shape: Index,
    framing: Framing,
    *,
    share: float,
    at_least: float = 0.0,
) -> Roi:
    """Return a window centred on a box of RAS voxel indices; the box's longest side fills `share` of it."""
    size = (high - low + 1) * grid.ras.spacing
    spacing = float((size / np.asarray(shape)).max()) / share
    finest = framing.finest * float(grid.spacing.min())
    widest = max(finest, fitting_spacing(grid, shape))
    spacing = framing.fixed_mm or float(np.clip(max(spacing, at_least), finest, widest))
    return Roi.centred((low + high) / 2, (spacing,) * 3, shape, grid.ras)
