"""What a prediction is: a mask within a patch of the file's grid, or a label map, and what is known of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.grid.roi import Index, Roi, file_box, mask_bounds, write_box

Corners = tuple[Index, Index]
_NO_MASK = np.zeros((0, 0, 0), dtype=bool)


@dataclass(frozen=True, eq=False)
class MaskPrediction:
    """The mask of one object.

    Attributes:
        grid: the volume's grid.
        start: (i, j, k) first voxel of the patch.
        patch: (a, b, c) bool in the file's axis order; the mask is zero outside the patch.
        score: predicted quality in [0, 1].
        unmet: indices of the prompts that the mask does not honour; empty when all are.
        changed_box: start and stop (excluded) of the voxels that differ from the mask before the last
            prompt; None when nothing changed. Tiles count for nothing here: they may change the outline
            anywhere.
        roi: the window that was looked at last, before tiles.
        logits: (X, Y, Z) on that window.
        encoded: windows encoded by this call; 0 when everything was cached.
        seconds: time this call took.
    """

    grid: Grid
    start: Index
    patch: NDArray[np.bool_]
    score: float
    unmet: tuple[int, ...]
    changed_box: Corners | None
    roi: Roi
    logits: torch.Tensor = field(repr=False)
    encoded: int
    seconds: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(i, j, k) the mask on the whole volume; a new array each time."""
        full = np.zeros(self.grid.shape, dtype=bool)
        full[box_slices(self.start, self.patch)] = self.patch
        return full

    @property
    def voxels(self) -> int:
        """Voxels inside the mask."""
        return int(self.patch.sum())

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.patch.nbytes + self.logits.numel() * self.logits.element_size()

    def probability(self) -> NDArray[np.uint8]:
        """(i, j, k) how likely each voxel is to be inside, 255 for surely; a new array each time.

        It is the sigmoid of the window's logits, and 0 outside the window. Within the mask it is at least 128
        and outside at most 127: where clicks or finer outlines say otherwise than the logits, it is just on
        their side.
        """
        full = np.zeros(self.grid.shape, dtype=np.uint8)
        start, stop = file_box(self.roi, (0, 0, 0), np.asarray(self.roi.shape) - 1)
        place = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        full[place] = to_probability(write_box(self.logits, self.roi, start, stop))
        np.minimum(full, 127, out=full, where=~self.mask)
        inside = full[box_slices(self.start, self.patch)]
        np.maximum(inside, 128, out=inside, where=self.patch)
        return full

    @property
    def volume_ml(self) -> float:
        """Volume of the mask in millilitres."""
        return self.voxels * self.grid.voxel_volume_ml


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The labels of a whole volume.

    Attributes:
        grid: the volume's grid.
        array: (i, j, k) label values in the file's axis order, 0 where there is none; of the smallest
            unsigned type that holds them.
        names: name of each label value that was looked for.
        seconds: time that it took.
        probabilities: of each label, where they were asked for: (i, j, k) how likely each voxel is to have
            it, 255 for surely, as if there were no other label.
    """

    grid: Grid
    array: NDArray[np.unsignedinteger]
    names: dict[int, str]
    seconds: float
    probabilities: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def volumes_ml(self) -> dict[int, float]:
        """Millilitres of each label value that was looked for."""
        values, counts = np.unique(self.array, return_counts=True)
        voxels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        return {value: voxels.get(value, 0) * self.grid.voxel_volume_ml for value in self.names}


def to_probability(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The sigmoid of logits, 255 for 1; 128 and more for those above 0."""
    chances = np.ceil(256 / (1 + np.exp(-np.clip(logits, -30, 30)))) - 1
    return np.where(logits > 0, np.clip(chances, 128, 255), np.clip(chances, 0, 127)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class State:
    """What one prefix of the prompts gave, and all that the next prompt needs of it.

    Attributes:
        roi, logits: the window and its (X, Y, Z) logits.
        detailed: whether the patch holds more than the logits do (a mask prompt, tiles).
        start, patch, score, unmet, changed: as in `MaskPrediction`.
        seen: start and patch of the mask that the logits alone make; None where nobody has asked.
    """

    roi: Roi
    logits: torch.Tensor
    detailed: bool
    start: Index
    patch: NDArray[np.bool_]
    score: float
    unmet: tuple[int, ...]
    changed: Corners | None
    seen: tuple[Index, NDArray[np.bool_]] | None = None


class PackedState:
    """A state that is kept, its masks as bits: of a large organ they are most of it."""

    def __init__(self, state: State) -> None:
        seen = None if state.seen is None or state.seen[1] is state.patch else state.seen
        self._state = replace(state, patch=_NO_MASK, seen=state.seen and (state.seen[0], _NO_MASK))
        self._patch, self._seen = _packed(state.patch), seen and _packed(seen[1])

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        masks = sum(each[0].nbytes for each in (self._patch, self._seen) if each is not None)
        return self._state.logits.numel() * self._state.logits.element_size() + masks

    def state(self) -> State:
        """The state, its masks made anew."""
        patch = _unpacked(*self._patch)
        if self._state.seen is None:
            return replace(self._state, patch=patch)
        seen = patch if self._seen is None else _unpacked(*self._seen)
        return replace(self._state, patch=patch, seen=(self._state.seen[0], seen))


def _packed(mask: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], Index]:
    i, j, k = mask.shape
    return np.packbits(mask), (i, j, k)


def _unpacked(bits: NDArray[np.uint8], shape: Index) -> NDArray[np.bool_]:
    mask = np.unpackbits(bits, count=math.prod(shape)).view(bool).reshape(shape)
    mask.setflags(write=False)
    return mask


def box_slices(start: Index, patch: NDArray) -> tuple[slice, ...]:
    """Where a patch lies in the whole volume."""
    return tuple(slice(s, s + n) for s, n in zip(start, patch.shape, strict=True))


def union_box(*patches: tuple[Index, NDArray]) -> Corners:
    """Start and stop of the box that holds several patches; patches of size zero count for nothing."""
    solid = [(start, patch) for start, patch in patches if patch.size]
    if not solid:
        return (0, 0, 0), (0, 0, 0)
    low = np.min([start for start, _ in solid], axis=0)
    high = np.max([np.add(start, patch.shape) for start, patch in solid], axis=0)
    return tuple(low.tolist()), tuple(high.tolist())


def on_box(start: Index, patch: NDArray[np.bool_], box: Corners) -> NDArray[np.bool_]:
    """A patch's mask on a box; the patch itself where it fills the box."""
    low, high = box
    size = tuple(b - a for a, b in zip(low, high, strict=True))
    if tuple(start) == tuple(low) and patch.shape == size:
        return patch
    out = np.zeros(size, dtype=bool)
    sides = list(zip(start, patch.shape, low, high, strict=True))
    place = tuple(slice(max(s, a) - a, max(min(s + n, b) - a, 0)) for s, n, a, b in sides)
    taken = tuple(slice(max(s, a) - s, max(min(s + n, b) - s, 0)) for s, n, a, b in sides)
    out[place] = patch[taken]
    return out


def difference_box(
    start_a: Index, patch_a: NDArray[np.bool_], start_b: Index, patch_b: NDArray[np.bool_]
) -> Corners | None:
    """Start and stop of the voxels where two masks differ, or None when they are the same."""
    box = union_box((start_a, patch_a), (start_b, patch_b))
    bounds = mask_bounds(on_box(start_a, patch_a, box) != on_box(start_b, patch_b, box))
    if bounds is None:
        return None
    low, high = (tuple((np.asarray(corner) + box[0]).tolist()) for corner in bounds)
    return low, high
