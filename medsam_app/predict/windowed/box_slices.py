"""Masks of boxes on slices of the volume, as evidence for a 3D model.

A slice model that was trained with boxes, such as LiteMedSAM, segments the same rectangle on slices through a
3D box. Each slice is cropped to twice the box, because such models see a crop better than a whole slice, and
a few slices per plane suffice, because masks between them are interpolated. Where voxels are similarly fine
along all axes, the slices of three planes are averaged; otherwise only the plane with the finest pixels is
used.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.grid.roi import Roi, apply_separable, interpolation_matrix, read_roi
from medsam_app.io.volume import Volume
from medsam_app.models.identity import cache_key
from medsam_app.models.slices.sam2d import SliceSegmenter
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.prompts.types import Box, ModelPrompt

#: Side in pixels of the square crop of a slice.
PIXELS = 96
#: Side of the crop as a multiple of the box's longest side in the slice.
CROP = 2.0
#: Most slices per plane.
SLICES = 8
#: Ratio of the coarsest to the finest spacing above which only one plane is used.
THICK = 3.0
#: Percentiles of the intensities in the crops that are displayed black and white.
BLACK, WHITE = 0.5, 99.5


@dataclass(frozen=True, eq=False)
class PlaneLogits:
    """Logits of slices through a box.

    Attributes:
        roi: the crop, as a window with one voxel per pixel.
        logits: (X, Y, Z) on this window; above 0 is inside.
    """

    roi: Roi
    logits: torch.Tensor

    def probability(self, roi: Roi) -> torch.Tensor:
        """Return the probability on another window; beyond the crop, that of its border is repeated."""
        matrices = []
        for axis in range(3):
            voxels = roi.origin[axis] + roi.step[axis] * np.arange(roi.shape[axis])
            positions = (voxels - self.roi.origin[axis]) / self.roi.step[axis]
            ratio = float(roi.step[axis] / self.roi.step[axis])
            matrices.append(interpolation_matrix(positions, ratio, 0, self.roi.shape[axis]))
        return torch.sigmoid(apply_separable(self.logits.numpy(), matrices))


@dataclass(frozen=True, eq=False)
class BoxLogits:
    """Logits of all planes through a box."""

    planes: tuple[PlaneLogits, ...]

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return sum(plane.logits.nbytes for plane in self.planes)


class BoxSlices:
    """A slice model on the boxes of one volume.

    Args:
        model: slice model trained with boxes.
        volume: the volume to segment.
        cache: cache of the logits.

    Attributes:
        encoded: slices encoded so far.
    """

    def __init__(self, model: SliceSegmenter, volume: Volume, cache: EmbeddingCache) -> None:
        self.model, self.volume, self.cache = model, volume, cache
        self.encoded = 0

    def probability(self, prompts: Sequence[ModelPrompt], roi: Roi) -> torch.Tensor | None:
        """Return the probability (X, Y, Z) on a window, or None without a 3D box.

        Several boxes are treated as one that contains all of them.
        """
        boxes = [p for p in prompts if isinstance(p, Box) and p.slice_axis is None]
        if not boxes:
            return None
        corners = np.array([corner for box in boxes for corner in (box.lower, box.upper)], dtype=float)
        ras = self.volume.grid.ras.points_from_file(corners)
        low, high = ras.min(axis=0), ras.max(axis=0)
        corners_key = (*np.round(low, 3).tolist(), *np.round(high, 3).tolist())
        key: tuple[Hashable, ...] = (*cache_key(self.model), self.volume.fingerprint, corners_key)
        logits, _ = self.cache.get_or_make(key, lambda: self._segment(low, high))
        planes = [plane.probability(roi) for plane in logits.planes]
        return torch.stack(planes).mean(0)

    def _segment(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> BoxLogits:
        """Segment the box between two corners, both inside, in RAS voxel indices of the volume."""
        spacing = np.asarray(self.volume.grid.ras.spacing)
        thick = spacing.max() > THICK * spacing.min()
        axes = (int(spacing.argmax()),) if thick else (0, 1, 2)
        return BoxLogits(tuple(self._plane(low, high, axis) for axis in axes))

    def _plane(self, low: NDArray[np.float64], high: NDArray[np.float64], axis: int) -> PlaneLogits:
        ras = self.volume.grid.ras
        plane = [other for other in range(3) if other != axis]
        size = (high - low + 1) * ras.spacing
        spacing = np.full(3, CROP * size[plane].max() / PIXELS)
        spacing[axis] = ras.spacing[axis]
        shape = np.full(3, PIXELS)
        shape[axis] = 1
        count = min(SLICES, round(float(high[axis] - low[axis])) + 1)
        crops, images, values = [], [], []
        for position in np.linspace(low[axis], high[axis], count):
            centre = (low + high) / 2
            centre[axis] = position
            roi = Roi.centred(centre, spacing, (int(shape[0]), int(shape[1]), int(shape[2])), ras)
            image, valid = read_roi(self.volume.array, roi)
            crops.append(roi)
            images.append(image.squeeze(axis).numpy())
            values.append(image[valid].numpy())
        black, white = np.percentile(np.concatenate(values), [BLACK, WHITE])
        first = crops[0]
        corners = (np.stack([low - 0.5, high + 0.5]) - first.origin) / first.step
        box = corners[:, plane].ravel()
        logits = []
        for pixels in images:
            embedding = self.model.encode_slice(pixels, window=(float(black), float(white)))
            logits.append(self.model.decode_slice(embedding, box=box).logits[0].float().cpu())
        self.encoded += count
        spacing[axis] *= max(1.0, (high - low)[axis] / max(1, count - 1))
        shape[axis] = count
        stack = Roi(
            first.origin,
            (float(spacing[0]), float(spacing[1]), float(spacing[2])),
            (int(shape[0]), int(shape[1]), int(shape[2])),
            ras,
        )
        return PlaneLogits(stack, torch.stack(logits, dim=axis))
