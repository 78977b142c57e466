"""Windows of a volume (ROIs), and resampling to and from them.

The axes of a `Roi` are in the order closest to RAS, with their own spacing in mm; the volume keeps the file's
axis order. All resampling is separable: one small matrix per axis, applied only to the crop that the window
needs, so that a window of a large CT is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medsam_app.grid.geometry import Grid, RasView
from medsam_app.grid.patch import Corners, Index, Patch, mask_bounds

#: Voxels converted to float32 at a time while a window is read.
SLAB_VOXELS = 1 << 22
#: Voxels of a mask computed at a time, so that temporary arrays fit into the processor's cache.
PATCH_VOXELS = 1 << 20


@dataclass(frozen=True)
class Roi:
    """A window of a volume.

    Attributes:
        origin: (3,) RAS voxel indices of the volume (fractional) at the centre of the first voxel.
        spacing: (3,) mm between the window's voxels along the RAS axes.
        shape: voxels of the window along the RAS axes.
        ras: the volume's mapping between the file's axes and RAS.
    """

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    shape: Index
    ras: RasView = field(compare=False, repr=False)

    @classmethod
    def centred(cls, centre: ArrayLike, spacing: ArrayLike, shape: Index, ras: RasView) -> Roi:
        """Return a window around the RAS voxel indices `centre`.

        The window is moved to extend beyond the volume as little as possible. Along an axis longer than the
        volume, it is centred on the volume.
        """
        step = np.asarray(spacing, dtype=np.float64) / ras.spacing
        half = (np.asarray(shape) - 1) / 2 * step
        last = np.asarray(ras.shape) - 1.0
        middle = np.clip(centre, np.minimum(half, last / 2), np.maximum(last - half, last / 2))
        # Windows are cache keys: without rounding, equal windows could differ.
        origin, mm = np.round(middle - half, 4), np.round(np.broadcast_to(spacing, 3), 6)
        return cls(tuple(origin.tolist()), tuple(mm.tolist()), shape, ras)

    @property
    def step(self) -> NDArray[np.float64]:
        """Distance (3,) between voxels of the window along the RAS axes, in voxels of the volume."""
        return np.asarray(self.spacing) / self.ras.spacing

    def to_roi(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) voxel indices of the file to voxel indices of the window."""
        return (self.ras.points_from_file(ijk) - np.asarray(self.origin)) / self.step

    def to_file(self, coords: ArrayLike) -> NDArray[np.float64]:
        """Map (..., 3) voxel indices of the window to voxel indices of the file."""
        return self.ras.points_to_file(np.asarray(coords, dtype=np.float64) * self.step + self.origin)

    def depth_inside(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Return the depth (...,) of points (..., 3) inside the window, in voxels of the window.

        It is the distance to the nearest open face (see `open_faces`): negative outside the window, infinite
        if no face is open.
        """
        coords = self.to_roi(ijk)
        room = np.stack([coords, np.asarray(self.shape) - 1 - coords], axis=-1)
        return np.where(self.open_faces(), room, np.inf).min(axis=(-2, -1))

    def open_faces(self) -> NDArray[np.bool_]:
        """Return (3, 2) whether the volume extends beyond the lower and upper face of each RAS axis."""
        origin = np.asarray(self.origin)
        end = origin + (np.asarray(self.shape) - 1) * self.step
        return np.stack([origin > 0.5, end < np.asarray(self.ras.shape) - 1.5], axis=-1)

    def file_lines(self) -> list[tuple[int, float, float]]:
        """Return, for each axis of the file: RAS axis, origin and step of the window's voxels.

        Origin and step are in voxel indices of the file; the step is negative along a flipped axis.
        """
        lines: list[tuple[int, float, float]] = [(0, 0.0, 0.0)] * 3
        for axis, file_axis in enumerate(self.ras.axes):
            origin, step = self.origin[axis], float(self.step[axis])
            if self.ras.flips[axis]:
                origin, step = self.ras.shape[axis] - 1 - origin, -step
            lines[file_axis] = (axis, origin, step)
        return lines


def interpolation_matrix(positions: NDArray[np.floating], step: float, start: int, stop: int) -> torch.Tensor:
    """Return the weights that interpolate samples at indices start..stop-1 to positions.

    Interpolation is linear. Where positions are farther apart than samples, the kernel is widened to a
    triangle of half-width `step`, which averages fine detail and avoids aliasing. Positions outside the
    samples take the nearest sample.

    Args:
        positions: (n,) positions in sample indices.
        step: distance between positions, in samples.
        start, stop: range of the samples.

    Returns:
        (n, stop - start) float32; each row sums to one.
    """
    samples = np.arange(start, stop, dtype=np.float64)
    inside = np.clip(positions, start, stop - 1)
    distance = np.abs(inside[:, None] - samples[None, :])
    weights = np.maximum(0.0, 1.0 - distance / max(1.0, abs(step)))
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def apply_separable(array: NDArray, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiply each axis of a 3D array by its matrix.

    Args:
        array: (a, b, c) of any numeric type and memory order; converted to float32 slab by slab.
        matrices: three of shape (n_out, n_in), one per axis.

    Returns:
        (n_out_a, n_out_b, n_out_c) float32. Non-finite values are replaced by the smallest finite value
        of their slab.
    """
    order = np.argsort([-abs(s) for s in array.strides], kind="stable")  # slowest axis in memory first
    array = array.transpose(order)
    first, second, third = (matrices[axis] for axis in order)
    slabs = []
    thickness = max(1, SLAB_VOXELS // max(1, array.shape[1] * array.shape[2]))
    for begin in range(0, array.shape[0], thickness):
        slab = np.array(array[begin : begin + thickness], dtype=np.float32, order="C")
        if array.dtype.kind == "f" and not np.isfinite(slab).all():
            finite = np.isfinite(slab)
            slab[~finite] = slab[finite].min() if finite.any() else 0.0
        slabs.append(second @ (torch.from_numpy(slab) @ third.T))
    reduced = torch.cat(slabs)
    out = (first @ reduced.flatten(1)).reshape(first.shape[0], *reduced.shape[1:])
    return out.permute(tuple(int(a) for a in np.argsort(order)))


def read_roi(array: NDArray, roi: Roi) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample a volume into a window.

    Args:
        array: (i, j, k) intensities in the file's axis order.
        roi: the window.

    Returns:
        image: (X, Y, Z) float32 raw intensities; outside the volume the border is repeated.
        valid: (X, Y, Z) bool, whether the voxel lies inside the volume.
    """
    crop, matrices, inside = [], [], []
    for file_axis, (axis, origin, step) in enumerate(roi.file_lines()):
        count, reach = array.shape[file_axis], max(1.0, abs(step))
        positions = origin + step * np.arange(roi.shape[axis])
        low, high = np.clip([positions.min() - reach, positions.max() + reach], 0, count - 1)
        start, stop = int(np.floor(low)), int(np.ceil(high)) + 1
        crop.append(slice(start, stop))
        matrices.append(interpolation_matrix(positions, step, start, stop))
        inside.append(torch.from_numpy((positions >= -0.5) & (positions <= count - 0.5)))
    image = apply_separable(array[tuple(crop)], matrices).permute(roi.ras.axes)
    x, y, z = (inside[axis] for axis in roi.ras.axes)
    return image.contiguous(), x[:, None, None] & y[None, :, None] & z[None, None, :]


def write_box(values: torch.Tensor, roi: Roi, start: Index, stop: Index) -> NDArray[np.float32]:
    """Interpolate a window's values onto a box of the file's voxels.

    Args:
        values: (X, Y, Z) on the window.
        roi: the window.
        start, stop: the box in voxel indices of the file, `stop` excluded.

    Returns:
        (i, j, k) float32 in the file's axis order.
    """
    crop, matrices = box_weights(roi, start, stop)
    return apply_separable(in_file_order(values.float(), roi)[crop].contiguous().numpy(), matrices).numpy()


def in_file_order(values: torch.Tensor, roi: Roi) -> torch.Tensor:
    """Return a window's values with their axes in the file's order."""
    return values.permute(tuple(int(a) for a in np.argsort(roi.ras.axes)))


def box_weights(roi: Roi, start: Index, stop: Index) -> tuple[tuple[slice, ...], list[torch.Tensor]]:
    """Return the part of the window that a box needs, and one interpolation matrix per axis."""
    crop, matrices = [], []
    for file_axis, (axis, origin, step) in enumerate(roi.file_lines()):
        last, reach = roi.shape[axis] - 1, max(1.0, 1.0 / abs(step))
        positions = np.clip((np.arange(start[file_axis], stop[file_axis]) - origin) / step, 0, last)
        low = max(0, int(np.floor(positions.min(initial=last) - reach)))
        high = min(last, int(np.ceil(positions.max(initial=0) + reach))) + 1
        crop.append(slice(low, high))
        matrices.append(interpolation_matrix(positions, 1.0 / abs(step), low, high))
    return tuple(crop), matrices


def file_box(roi: Roi, low: ArrayLike, high: ArrayLike) -> Corners:
    """Return start and stop of the file's voxels with centres between two corners of the window.

    Args:
        roi: the window.
        low, high: (3,) voxel indices of the window, both included; clipped to half a voxel beyond the
            window's first and last voxel.
    """
    limit = np.asarray(roi.shape) - 0.5
    corners = roi.to_file(np.stack([np.maximum(low, -0.5), np.minimum(high, limit)]))
    shape = np.empty(3, dtype=int)
    shape[list(roi.ras.axes)] = roi.ras.shape
    start = np.clip(np.ceil(corners.min(axis=0) - 1e-6), 0, shape).astype(int)
    stop = np.clip(np.floor(corners.max(axis=0) + 1e-6) + 1, start, shape).astype(int)
    return tuple(start.tolist()), tuple(stop.tolist())


def mask_from_logits(logits: torch.Tensor, roi: Roi) -> Patch:
    """Return the mask of the file's voxels inside the window whose interpolated logit is above zero.

    Returns:
        The mask in its bounding box; of size zero if the mask is empty.
    """
    bounds = mask_bounds((logits > 0).numpy())
    if bounds is None:
        return Patch.empty()
    # Averaging over a coarse voxel of the file extends as far as that voxel.
    reach = np.maximum(1.0, 1.0 / roi.step)
    start, stop = file_box(roi, np.asarray(bounds[0]) - reach, np.asarray(bounds[1]) - 1 + reach)
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        return Patch.empty()
    count, columns, depth = (b - a for a, b in zip(start, stop, strict=True))
    mask = np.empty((count, columns, depth), dtype=bool)
    rows = max(1, PATCH_VOXELS // (columns * depth))
    for first in range(start[0], stop[0], rows):
        last = min(first + rows, stop[0])
        part = write_box(logits, roi, (first, start[1], start[2]), (last, stop[1], stop[2]))
        np.greater(part, 0, out=mask[first - start[0] : last - start[0]])
    return Patch(start, mask).tight()


def move_values(values: torch.Tensor, source: Roi, target: Roi, *, fill: float) -> torch.Tensor:
    """Interpolate values of one window onto another of the same volume; `fill` outside the first."""
    matrices, inside = [], []
    for axis in range(3):
        at = target.origin[axis] + target.step[axis] * np.arange(target.shape[axis])
        positions = (at - source.origin[axis]) / source.step[axis]
        ratio = float(target.step[axis] / source.step[axis])
        matrices.append(interpolation_matrix(positions, ratio, 0, source.shape[axis]))
        inside.append(torch.from_numpy((positions >= -0.5) & (positions <= source.shape[axis] - 0.5)))
    moved = apply_separable(values.float().numpy(), matrices)
    x, y, z = inside
    return torch.where(x[:, None, None] & y[None, :, None] & z[None, None, :], moved, fill)


def fitting_spacing(grid: Grid, shape: Index) -> float:
    """Return the finest isotropic spacing in mm at which the complete volume fits a window of a shape."""
    extent = np.asarray(grid.ras.shape) * grid.ras.spacing
    return float((extent / np.asarray(shape)).max())
