"""Prompt compliance: positive clicks inside the mask, negative ones outside, boxes respected.

A repair is local and no larger than needed. It adds a bump to the logits around a click that the mask does
not honour: narrow where the image differs from the clicked voxel, wider where it is similar.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.grid.patch import Index, Patch
from medsam_app.grid.roi import Roi, box_weights, in_file_order
from medsam_app.prompts.types import AnyPrompt, Box, ModelPrompt, Point, Scribble, UserPrompt, as_clicks

#: Absolute logit at a click after its repair.
CONFIDENT = 0.5
#: Radius of a bump around a click, in voxels of the window.
BUMP_REACH = 12
#: Largest logit of voxels that a box excludes.
EXCLUDED = -6.0
#: How far beyond a box the mask may reach on each side, as a fraction of the box's size.
BOX_TOLERANCE = 0.1

Ranges = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def nearest_voxel(point: Point, shape: Sequence[int]) -> Index:
    """Return the voxel (i, j, k) under a click."""
    voxel = np.clip(np.floor(np.asarray(point.coordinates) + 0.5), 0, np.asarray(shape) - 1)
    return tuple(int(v) for v in voxel)  # type: ignore[return-value]


def clicked_voxels(prompt: Point | Scribble, shape: Sequence[int]) -> NDArray[np.intp]:
    """Return the (N, 3) voxels under a click or a scribble."""
    if isinstance(prompt, Scribble):
        return prompt.voxels(shape)
    return np.array([nearest_voxel(prompt, shape)])


def honour_points(
    logits: torch.Tensor, image: torch.Tensor, roi: Roi, points: Sequence[Point], shape: Sequence[int]
) -> torch.Tensor:
    """Repair logits so that clicks are honoured on the file's grid.

    Args:
        logits, image: (X, Y, Z) on the window.
        roi: the window; clicks outside it are ignored.
        points: clicks in the order they were given; the later of two contradicting clicks wins.
        shape: voxels of the volume along (i, j, k).

    Returns:
        (X, Y, Z) logits; the same tensor if no repair was needed.
    """
    clicks = [_Click(point, image, roi, shape) for point in points if _reached(roi, point)]
    original = logits
    for _ in range(3):
        repaired = False
        for click in clicks:
            value = click.read(logits)
            if click.sign * value > 0:
                continue
            if logits is original:
                logits = original.clone()
            # The value at the click is linear in the bump's height, so no search is needed.
            part, weights, peak = click.bump
            logits[part] += (click.sign * CONFIDENT - value) / peak * weights
            repaired = True
        if not repaired:
            break
    return logits


def _reached(roi: Roi, point: Point) -> bool:
    coords = roi.to_roi(point.coordinates)
    return bool(np.all((coords >= -0.5) & (coords <= np.asarray(roi.shape) - 0.5)))


class _Click:
    """Click with precomputed values to read and repair a window's logits."""

    def __init__(self, point: Point, image: torch.Tensor, roi: Roi, shape: Sequence[int]) -> None:
        self.sign = 1.0 if point.positive else -1.0
        self._image, self._roi = image, roi
        self._voxel = i, j, k = nearest_voxel(point, shape)
        self._part, matrices = box_weights(roi, self._voxel, (i + 1, j + 1, k + 1))
        self._weights = [matrix[0] for matrix in matrices]

    def read(self, values: torch.Tensor) -> float:
        """Return the window's value at the clicked voxel of the volume."""
        first, second, third = self._weights
        return float(in_file_order(values, self._roi)[self._part] @ third @ second @ first)

    @cached_property
    def bump(self) -> tuple[tuple[slice, ...], torch.Tensor, float]:
        """Part of the window to repair, the weights of the bump, and their value at the click."""
        part, weights = _bump(self._image, self._roi.to_roi(self._voxel))
        bump = torch.zeros_like(self._image)
        bump[part] = weights
        return part, weights, max(self.read(bump), 1e-3)


def _bump(image: torch.Tensor, coords: NDArray[np.float64]) -> tuple[tuple[slice, ...], torch.Tensor]:
    """Return the part of the window around a voxel index, and the weights (at most 1) of a bump there."""
    part, axes = [], []
    for n, c in zip(image.shape, coords, strict=True):
        low, high = max(0, int(np.floor(c)) - BUMP_REACH), min(n, int(np.ceil(c)) + BUMP_REACH + 1)
        part.append(slice(low, high))
        axes.append(torch.arange(low, high, dtype=torch.float32) - float(c))
    image = image[tuple(part)]
    distance = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
    near, wide = torch.exp(-distance / (2 * 0.8**2)), torch.exp(-distance / (2 * 2.5**2))
    clicked = (near * image).sum() / near.sum()
    spread = image[distance < 6.0**2].std().clamp_min(1e-6)
    similarity = torch.exp(-(((image - clicked) / (0.7 * spread)) ** 2))
    return tuple(part), torch.maximum(near, wide * similarity)


def box_ranges(prompts: Sequence[ModelPrompt]) -> list[tuple[int | None, NDArray, NDArray]]:
    """Return the index ranges that boxes allow, with tolerance: (slice axis or None, lowest, highest).

    The last 3D box is enlarged to include positive clicks outside all 3D boxes: clicks override boxes.
    """
    ranges: list[tuple[int | None, NDArray, NDArray]] = []
    for prompt in prompts:
        if isinstance(prompt, Box):
            low, high = np.asarray(prompt.lower, float), np.asarray(prompt.upper, float)
            slack = BOX_TOLERANCE * (high - low)
            ranges.append((prompt.slice_axis, np.round(low) - slack, np.round(high) + slack))
    solid = [n for n, (axis, _, _) in enumerate(ranges) if axis is None]
    if solid:
        for prompt in prompts:
            if not (isinstance(prompt, Point) and prompt.positive):
                continue
            at = np.round(prompt.coordinates)
            if not any(((at >= ranges[n][1]) & (at <= ranges[n][2])).all() for n in solid):
                _, low, high = ranges[solid[-1]]
                ranges[solid[-1]] = (None, np.minimum(low, at), np.maximum(high, at))
    return ranges


def allowed_by_boxes(
    ranges: Sequence[tuple[int | None, NDArray, NDArray]],
    positions: Sequence[NDArray[np.floating]],
    half: Sequence[float],
) -> NDArray[np.bool_] | None:
    """Return where boxes allow the mask, on a grid of positions; None if everywhere.

    If there are 3D boxes, the mask must lie inside one of them. On a slice with flat boxes, it must also lie
    inside one of those.

    Args:
        ranges: as returned by `box_ranges`.
        positions: three arrays of voxel indices of the file, one per axis.
        half: (3,) half the distance between positions; a position this close to a slice lies on it.
    """
    allowed: NDArray[np.bool_] | None = None
    inside_of = []
    for axis, low, high in ranges:
        lines = [(p >= a) & (p <= b) for p, a, b in zip(positions, low, high, strict=True)]
        if axis is not None:
            lines[axis] = np.abs(positions[axis] - low[axis]) <= half[axis]
        inside_of.append(lines[0][:, None, None] & lines[1][None, :, None] & lines[2][None, None, :])
    solid = [inside for (axis, _, _), inside in zip(ranges, inside_of, strict=True) if axis is None]
    if solid:
        allowed = np.logical_or.reduce(solid)
    for flat in range(3):
        of_axis = [n for n, (axis, _, _) in enumerate(ranges) if axis == flat]
        if of_axis:
            on_slice = np.zeros(len(positions[flat]), dtype=bool)
            for n in of_axis:
                on_slice |= np.abs(positions[flat] - ranges[n][1][flat]) <= half[flat]
            view = [1, 1, 1]
            view[flat] = -1
            part = np.logical_or.reduce([inside_of[n] for n in of_axis]) | ~on_slice.reshape(view)
            allowed = part if allowed is None else allowed & part
    return allowed


def keep_to_boxes(logits: torch.Tensor, roi: Roi, prompts: Sequence[ModelPrompt]) -> torch.Tensor:
    """Lower the logits where the boxes do not allow the mask."""
    ranges = box_ranges(prompts)
    if not ranges:
        return logits
    positions, half = [], []
    for axis, origin, step in roi.file_lines():
        positions.append(origin + step * np.arange(roi.shape[axis]))
        half.append(max(0.5, abs(step) / 2))
    allowed = allowed_by_boxes(ranges, positions, half)
    if allowed is None:
        return logits
    keep = torch.from_numpy(np.ascontiguousarray(allowed.transpose(roi.ras.axes)))
    return torch.where(keep, logits, logits.clamp_max(EXCLUDED))


def settle(
    patch: Patch, prompts: Sequence[UserPrompt], shape: Sequence[int]
) -> tuple[Patch, tuple[int, ...]]:
    """Enforce prompts on the volume's grid: clip to boxes, set clicked voxels, report unmet ones.

    Returns:
        The mask in its bounding box, and the indices of the prompts that it does not honour.
    """
    ranges = box_ranges(as_clicks(prompts))
    if ranges and patch.mask.size:
        positions = [np.arange(a, b, dtype=float) for a, b in zip(*patch.corners, strict=True)]
        allowed = allowed_by_boxes(ranges, positions, (0.5, 0.5, 0.5))
        if allowed is not None:
            patch = Patch(patch.start, patch.mask & allowed).tight()
    for prompt in prompts:
        if isinstance(prompt, Point | Scribble):
            patch = patch.with_voxels(clicked_voxels(prompt, shape), prompt.positive)
    patch = patch.tight()
    return patch, unmet_prompts(patch, prompts, shape)


def unmet_prompts(patch: Patch, prompts: Sequence[AnyPrompt], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of the prompts that a mask does not honour."""
    unmet = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, Point | Scribble):
            voxels = clicked_voxels(prompt, shape)
            if any(patch.value_at(voxel) != prompt.positive for voxel in voxels.tolist()):
                unmet.append(number)
        elif isinstance(prompt, Box) and not _overlaps(patch, prompt):
            unmet.append(number)
    return tuple(unmet)


def _overlaps(patch: Patch, box: Box) -> bool:
    """Return whether any voxel of the mask lies inside a box."""
    first, last = np.round(box.lower).astype(int), np.round(box.upper).astype(int)
    return bool(patch.cropped((tuple(first.tolist()), tuple((last + 1).tolist()))).mask.any())
