"""Predictions: the mask of one object as a patch of the file's grid, or a label map."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Corners, Index, Patch, box_slices
from medsam_app.grid.roi import Roi, file_box, write_box


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """The mask of one object.

    Attributes:
        grid: the volume's grid.
        patch: the mask within a box.
        score: expected Dice in [0, 1]; for models that are not calibrated, the quality they predict.
        unmet: indices of the prompts that the mask does not honour.
        changed_box: start and stop (excluded) of the voxels that differ from the mask before the last
            prompt; None if nothing changed. Changes by tiles are not included: they may alter the outline
            anywhere.
        roi: the window that was decoded last, before tiles.
        logits: (X, Y, Z) on that window.
        encoded: windows or slices encoded by this call; 0 if all were cached.
        seconds: duration of this call.
    """

    grid: Grid
    patch: Patch
    score: float
    unmet: tuple[int, ...]
    changed_box: Corners | None
    roi: Roi
    logits: torch.Tensor = field(repr=False)
    encoded: int
    seconds: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The (i, j, k) mask on the whole volume; a new array on each access."""
        return self.patch.to_array(self.grid.shape)

    @property
    def voxels(self) -> int:
        """Number of voxels inside the mask."""
        return self.patch.voxels

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.patch.mask.nbytes + self.logits.numel() * self.logits.element_size()

    def probability(self) -> NDArray[np.uint8]:
        """Return the probability of each voxel as a new (i, j, k) uint8 array, 255 for 1.

        It is the sigmoid of the window's logits, and 0 outside the window. It is at least 128 inside the mask
        and at most 127 outside: where clicks or finer outlines contradict the logits, it is clipped to these
        limits.
        """
        full = np.zeros(self.grid.shape, dtype=np.uint8)
        start, stop = file_box(self.roi, (0, 0, 0), np.asarray(self.roi.shape) - 1)
        full[box_slices(start, stop)] = to_probability(write_box(self.logits, self.roi, start, stop))
        np.minimum(full, 127, out=full, where=~self.mask)
        inside = full[self.patch.slices]
        np.maximum(inside, 128, out=inside, where=self.patch.mask)
        return full

    @property
    def volume_ml(self) -> float:
        """Volume of the mask in millilitres."""
        return self.voxels * self.grid.voxel_volume_ml


@dataclass(frozen=True, eq=False)
class Alternative:
    """A mask that the first prompts of an object may mean.

    Attributes:
        number: number by size, from 1; the number of a `Choice`.
        prediction: the mask, without refined outlines.
        shown: whether it is the mask that is shown without a choice.
    """

    number: int
    prediction: MaskPrediction
    shown: bool


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The labels of a whole volume.

    Attributes:
        grid: the volume's grid.
        array: (i, j, k) label values in the file's axis order, 0 for background; of the smallest unsigned
            type that holds them.
        names: name of each requested label value.
        seconds: duration of the segmentation.
        probabilities: for each label, if requested: (i, j, k) probability of the label against background,
            255 for 1, independent of the other labels.
    """

    grid: Grid
    array: NDArray[np.unsignedinteger]
    names: dict[int, str]
    seconds: float
    probabilities: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def volumes_ml(self) -> dict[int, float]:
        """Return the volume in millilitres of each requested label value."""
        values, counts = np.unique(self.array, return_counts=True)
        voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        return {value: voxels.get(value, 0) * self.grid.voxel_volume_ml for value in self.names}


def to_probability(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the sigmoid of logits as uint8, 255 for 1; at least 128 for logits above 0."""
    levels = np.ceil(256 / (1 + np.exp(-np.clip(logits, -30, 30)))) - 1
    return np.where(logits > 0, np.clip(levels, 128, 255), np.clip(levels, 0, 127)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class PromptState:
    """Result of a prefix of the prompts, with everything that the next prompt needs.

    Attributes:
        roi, logits: the window and its (X, Y, Z) logits.
        detailed: whether the patch has more detail than the logits (a mask prompt, tiles).
        patch, score, unmet, changed: as in `MaskPrediction`.
        seen: the mask from the logits alone; None if it was not needed.
        agreement: Dice with the mask before the last prompt; None for a first prompt.
    """

    roi: Roi
    logits: torch.Tensor
    detailed: bool
    patch: Patch
    score: float
    unmet: tuple[int, ...]
    changed: Corners | None
    seen: Patch | None = None
    agreement: float | None = None

    def prediction(
        self,
        grid: Grid,
        score: float,
        patch: Patch,
        unmet: tuple[int, ...],
        *,
        encoded: int,
        seconds: float,
    ) -> MaskPrediction:
        """Return the state as a prediction, with its final mask; see `MaskPrediction` for the arguments."""
        return MaskPrediction(
            grid=grid,
            patch=patch,
            score=score,
            unmet=unmet,
            changed_box=self.changed,
            roi=self.roi,
            logits=self.logits,
            encoded=encoded,
            seconds=seconds,
        )


class PackedState:
    """Cached state with its masks as bits, since masks of large organs take most of the memory."""

    def __init__(self, state: PromptState) -> None:
        self._state = replace(state, patch=Patch.empty(), seen=None)
        self._patch = _PackedPatch.of(state.patch)
        self._seen: _PackedPatch | None = None
        if state.seen is state.patch:
            self._seen = self._patch  # store a shared patch once
        elif state.seen is not None:
            self._seen = _PackedPatch.of(state.seen)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        logits = self._state.logits
        seen = 0 if self._seen is None or self._seen is self._patch else self._seen.bits.nbytes
        return logits.numel() * logits.element_size() + self._patch.bits.nbytes + seen

    def state(self) -> PromptState:
        """Return the state with its masks unpacked."""
        patch = self._patch.patch()
        if self._seen is None:
            return replace(self._state, patch=patch)
        seen = patch if self._seen is self._patch else self._seen.patch()
        return replace(self._state, patch=patch, seen=seen)


@dataclass(frozen=True, eq=False)
class _PackedPatch:
    """Patch with 8 voxels per byte.

    Attributes:
        start, shape: first voxel and size of the box.
        bits: packed voxels of the box in C order.
    """

    start: Index
    shape: Index
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, patch: Patch) -> _PackedPatch:
        i, j, k = patch.mask.shape
        return cls(patch.start, (i, j, k), np.packbits(patch.mask))

    def patch(self) -> Patch:
        mask = np.unpackbits(self.bits, count=math.prod(self.shape)).view(bool).reshape(self.shape)
        return Patch(self.start, mask)
