"""Automatic mode: every label that an adapter has learned, in a whole volume, without a click.

The volume is resampled to the adapter's spacing and segmented in overlapping windows. A window is encoded
once and decoded once for each label; where windows overlap, logits are averaged, those near a window's middle
weighing most. They are interpolated onto the file's grid before labels are distinguished.

Memory in bytes, in addition to the volume: a voxel of the resampled volume takes 12 and 4 for each label, of
which there are at most `STITCHED_VALUES` values at a time (2 GiB); with more labels the windows are decoded
again. A voxel of the file takes 5 or 6. A CT of 512 x 512 x 300 voxels of 0.8 x 0.8 x 1.5 mm with five labels
at 2 mm takes 0.3 GB and 0.4 GB. All this is on the CPU; the device holds the windows of one batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsam_app.adapters.adapter import Adapter, adapter_in_use
from medsam_app.adapters.label_card import chosen_labels, spacing_of
from medsam_app.errors import AdapterError, SettingsError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.masks import keep_largest
from medsam_app.grid.patch import Index
from medsam_app.grid.roi import SLAB_VOXELS, Roi, read_roi, write_box
from medsam_app.io.volume import Volume
from medsam_app.models.sam3d import RoiPrompts, Sam3D
from medsam_app.predict.core.constraints import EXCLUDED
from medsam_app.predict.core.prediction import LabelMap, to_probability
from medsam_app.progress import Progress

#: Most logits that are stitched at a time: labels x voxels of the resampled volume.
STITCHED_VALUES = 1 << 29
#: Voxels of the windows that a GPU looks at together; a CPU takes one window after another.
BATCH_VOXELS = 1 << 20


@torch.inference_mode()
def segment_labels(
    model: Sam3D,
    volume: Volume,
    *,
    labels: Iterable[int | str] | None = None,
    largest: bool = False,
    overlap: float = 0.5,
    batch: int | None = None,
    probabilities: bool = False,
    progress: Progress | None = None,
) -> LabelMap:
    """The label map of a volume. A voxel has the label with the largest logit, 0 where none is above 0.

    Args:
        model: with an adapter switched on that has learned labels.
        volume: what is segmented.
        labels: values or names of the labels that are looked for; None for all.
        largest: whether of each label only the largest connected part is kept.
        overlap: how much of a window the next one shows again, from 0 to below 1.
        batch: windows that are examined together; None for what suits the device.
        probabilities: whether each label's own are given too, which takes a byte more a voxel and label.
        progress: called with a sentence and a fraction done, after every batch.

    Raises:
        AdapterError: no adapter is on, it has not learned the labels, or its card names no spacing.
        SettingsError: an overlap or a batch out of its range.
    """
    began = time.perf_counter()
    if not 0 <= overlap < 1:
        raise SettingsError(f"Windows overlap by a fraction from 0 to below 1; got {overlap:g}.")
    if batch is not None and batch < 1:
        raise SettingsError(f"At least 1 window is looked at together; got {batch}.")
    adapter = _adapter_of(model)
    names = chosen_labels(adapter.name, adapter.card, adapter.prompts.labels, labels)
    window: Index = adapter.card.window or model.roi_shape
    roi = whole_roi(volume.grid, spacing_of(adapter.name, adapter.card), window)
    if batch is None:
        batch = 1 if model.device.type == "cpu" else max(1, BATCH_VOXELS // math.prod(window))
    look = torch.stack([each.float() for each in read_roi(volume.array, roi)])
    array = np.zeros(volume.shape, dtype=np.min_scalar_type(max(names)))
    best = np.zeros(volume.shape, dtype=np.float32)
    chances = {value: np.zeros(volume.shape, dtype=np.uint8) for value in names} if probabilities else {}
    values, together = list(names), max(1, STITCHED_VALUES // math.prod(roi.shape))
    groups = [values[n : n + together] for n in range(0, len(values), together)]
    tick = _ticker(progress, len(groups) * _window_count(roi.shape, window, overlap))
    for group in groups:
        tokens = [adapter.prompts.of(value) for value in group]
        logits = _stitched(model, look, tokens, window=window, overlap=overlap, batch=batch, tick=tick)
        paint(logits, roi, group, array=array, best=best, chances=chances)
    if largest:
        keep_largest_parts(array)
    return LabelMap(volume.grid, array, names, time.perf_counter() - began, chances)


def whole_roi(grid: Grid, spacing: Sequence[float], window: Index) -> Roi:
    """The window over a whole volume, at least as large as one of the model's.

    Args:
        grid: of the volume.
        spacing: (3,) mm along the RAS axes.
        window: voxels of the model's windows along the RAS axes.
    """
    ras = grid.ras
    count = np.asarray(ras.shape) * ras.spacing / np.asarray(spacing)
    # An extent of 96.0000001 voxels is one of 96.
    x, y, z = (max(math.ceil(n - 1e-3), side) for n, side in zip(count, window, strict=True))
    return Roi.centred((np.asarray(ras.shape) - 1) / 2, spacing, (x, y, z), ras)


def paint(
    logits: Tensor,
    roi: Roi,
    values: Sequence[int],
    *,
    array: NDArray,
    best: NDArray[np.float32],
    chances: Mapping[int, NDArray[np.uint8]],
) -> None:
    """Draw labels on the file's grid where their logit is above the best so far.

    Only a slab of the file's grid is interpolated at a time, from the part of the window that it needs.

    Args:
        logits: (L, X, Y, Z) on the window.
        roi: the window.
        values: of the L labels.
        array: (i, j, k) label map so far; changed.
        best: (i, j, k) largest logit so far, 0 where none was above 0; changed.
        chances: (i, j, k) probabilities by label; changed. Of labels that are not in it none are drawn.
    """
    count, *rest = array.shape
    thick = max(1, SLAB_VOXELS // math.prod(rest))
    for start in range(0, count, thick):
        stop = min(start + thick, count)
        axis, cut, part = _part_for(roi, start, stop)
        near = logits.narrow(axis + 1, cut.start, cut.stop - cut.start)
        for value, each in zip(values, near, strict=True):
            found = write_box(each, part, (start, 0, 0), (stop, rest[0], rest[1]))
            higher = found > best[start:stop]
            np.copyto(best[start:stop], found, where=higher)
            array[start:stop][higher] = value
            if value in chances:
                chances[value][start:stop] = to_probability(found)


def keep_largest_parts(array: NDArray) -> None:
    """Leave of each label in a label map (i, j, k) only its largest part connected by faces of voxels."""
    for value, place in enumerate(ndimage.find_objects(array), start=1):
        if place is not None:
            mask = array[place] == value
            array[place][mask & ~keep_largest(mask)] = 0


def _adapter_of(model: Sam3D) -> Adapter:
    adapter = adapter_in_use(model)
    if adapter is None:
        raise AdapterError(
            "Labels are found without a click by an adapter that was taught them, but none is switched on; "
            "give such an adapter, or click on the object."
        )
    return adapter


def _stitched(
    model: Sam3D,
    look: Tensor,
    tokens: Sequence[Tensor],
    *,
    window: Index,
    overlap: float,
    batch: int,
    tick: Callable[[int], None],
) -> Tensor:
    """(L, X, Y, Z) float32 logits of labels, averaged over windows.

    Args:
        look: (2, X, Y, Z) intensities, and 1 inside the volume or 0.
        tokens: L of (1, T, C).
        tick: called with the number of windows that are done.
    """

    def predict(seen: Tensor) -> Tensor:
        count = len(seen)
        embedding = model.encode_image(seen[:, :1], seen[:, 1:] > 0.5)
        coords = torch.zeros(count, 0, 3, device=seen.device)
        clicks = torch.zeros(count, 0, dtype=torch.int64, device=seen.device)
        found = []
        for each in tokens:
            asked = RoiPrompts(coords, clicks, learned=each.expand(count, -1, -1))
            found.append(model.decode(embedding, asked).best()[0].float())
        tick(count)
        return torch.nan_to_num(torch.cat(found, dim=1), nan=EXCLUDED, posinf=-EXCLUDED, neginf=EXCLUDED)

    stitched = sliding_window_inference(
        look[None],
        window,
        batch,
        predict,
        overlap=overlap,
        mode="gaussian",
        sw_device=model.device,
        device=torch.device("cpu"),
    )
    return stitched[0]


def _part_for(roi: Roi, start: int, stop: int) -> tuple[int, slice, Roi]:
    """Return the part of a window from which voxels start..stop-1 along i are interpolated.

    Returns:
        the RAS axis along i, the window's voxels along it, and the window of these.
    """
    axis, origin, step = roi.file_lines()[0]
    ends = (np.array([start, stop - 1]) - origin) / step
    reach = max(1.0, 1 / abs(step))
    low, high = np.clip([ends.min() - reach, ends.max() + reach], 0, roi.shape[axis] - 1)
    cut = slice(math.floor(low), math.ceil(high) + 1)
    first, shape = list(roi.origin), list(roi.shape)
    first[axis] += cut.start * float(roi.step[axis])
    shape[axis] = cut.stop - cut.start
    x, y, z = shape
    return axis, cut, replace(roi, origin=(first[0], first[1], first[2]), shape=(x, y, z))


def _window_count(shape: Index, window: Index, overlap: float) -> int:
    """Return the number of MONAI's sliding windows for a shape."""
    steps = [max(1, int(side * (1 - overlap))) for side in window]
    sides = zip(shape, window, steps, strict=True)
    return math.prod(math.ceil((n - side) / step) + 1 for n, side, step in sides)


def _ticker(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Return a callback that counts windows and reports progress."""
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(f"Window {done} of {total}", done / total)

    return tick
