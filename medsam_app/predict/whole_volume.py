"""Segmentation of an adapter's labels in a whole volume, without prompts.

The volume is resampled to the adapter's spacing and segmented in overlapping windows. A window is encoded
once and decoded once for each label. Where windows overlap, their logits are averaged with weights that are
largest at a window's centre. The logits are interpolated onto the file's grid before labels are compared.

Memory in addition to the volume: each voxel of the resampled volume takes 12 bytes, and 4 bytes for each
label. At most `STITCHED_VALUES` label values (2 GiB) are held at a time; with more labels the windows are
encoded again for each group of labels. Each voxel of the file takes 5 or 6 bytes. A CT of 512 x 512 x 300
voxels of 0.8 x 0.8 x 1.5 mm with five labels at 2 mm takes 0.3 GB and 0.4 GB. All of this is on the CPU; the
device holds the windows of one batch.
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

#: Most logits stitched at a time: labels x voxels of the resampled volume.
STITCHED_VALUES = 1 << 29
#: Voxels of the windows in a batch on a GPU; a CPU processes one window at a time.
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
    """Return the label map of a volume.

    A voxel gets the label with the largest logit, or 0 where no logit is above 0.

    Args:
        model: model with an enabled adapter that has learned labels.
        volume: the volume to segment.
        labels: values or names of the labels to segment; None for all.
        largest: whether to keep only the largest connected part of each label.
        overlap: fraction of a window that overlaps the next one, 0 <= overlap < 1.
        batch: windows per batch; None to choose by the device.
        probabilities: whether to include the probability of each label, at one more byte per voxel and label.
        progress: called with a sentence and the fraction done, after every batch.

    Raises:
        AdapterError: no adapter is enabled, it has not learned the labels, or its card has no spacing.
        SettingsError: the overlap or the batch is out of range.
    """
    start_time = time.perf_counter()
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
    channels = torch.stack([channel.float() for channel in read_roi(volume.array, roi)])
    array = np.zeros(volume.shape, dtype=np.min_scalar_type(max(names)))
    best = np.zeros(volume.shape, dtype=np.float32)
    probability_maps = (
        {value: np.zeros(volume.shape, dtype=np.uint8) for value in names} if probabilities else {}
    )
    values, group_size = list(names), max(1, STITCHED_VALUES // math.prod(roi.shape))
    groups = [values[n : n + group_size] for n in range(0, len(values), group_size)]
    tick = _ticker(progress, len(groups) * _window_count(roi.shape, window, overlap))
    for group in groups:
        tokens = [adapter.prompts.of(value) for value in group]
        logits = _stitched(model, channels, tokens, window=window, overlap=overlap, batch=batch, tick=tick)
        paint(logits, roi, group, array=array, best=best, chances=probability_maps)
    if largest:
        keep_largest_parts(array)
    return LabelMap(volume.grid, array, names, time.perf_counter() - start_time, probability_maps)


def whole_roi(grid: Grid, spacing: Sequence[float], window: Index) -> Roi:
    """Return the window that covers a whole volume, at least as large as a window of the model.

    Args:
        grid: the volume's grid.
        spacing: (3,) mm along the RAS axes.
        window: voxels of the model's windows along the RAS axes.
    """
    ras = grid.ras
    count = np.asarray(ras.shape) * ras.spacing / np.asarray(spacing)
    # Rounding errors must not add a voxel: treat 96.0000001 as 96.
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
    """Write labels to the file's grid where their logit is above the largest so far.

    One slab of the file's grid is interpolated at a time, from the part of the window that it needs.

    Args:
        logits: (L, X, Y, Z) on the window.
        roi: the window.
        values: values of the L labels.
        array: (i, j, k) label map so far; changed in place.
        best: (i, j, k) largest logit so far, 0 where none was above 0; changed in place.
        chances: (i, j, k) probabilities by label, changed in place; other labels get none.
    """
    count, *rest = array.shape
    thickness = max(1, SLAB_VOXELS // math.prod(rest))
    for start in range(0, count, thickness):
        stop = min(start + thickness, count)
        axis, cut, part = _part_for(roi, start, stop)
        near = logits.narrow(axis + 1, cut.start, cut.stop - cut.start)
        for value, label_logits in zip(values, near, strict=True):
            slab_logits = write_box(label_logits, part, (start, 0, 0), (stop, rest[0], rest[1]))
            higher = slab_logits > best[start:stop]
            np.copyto(best[start:stop], slab_logits, where=higher)
            array[start:stop][higher] = value
            if value in chances:
                chances[value][start:stop] = to_probability(slab_logits)


def keep_largest_parts(array: NDArray) -> None:
    """Keep only the largest face-connected part of each label in a label map (i, j, k); changed in place."""
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
    channels: Tensor,
    tokens: Sequence[Tensor],
    *,
    window: Index,
    overlap: float,
    batch: int,
    tick: Callable[[int], None],
) -> Tensor:
    """Return (L, X, Y, Z) float32 logits of L labels, averaged over windows.

    Args:
        channels: (2, X, Y, Z) intensities, and 1 inside the volume or 0 outside.
        tokens: L tensors of shape (1, T, C).
        tick: called with the number of windows just processed.
    """

    def predict(windows: Tensor) -> Tensor:
        count = len(windows)
        embedding = model.encode_image(windows[:, :1], windows[:, 1:] > 0.5)
        coords = torch.zeros(count, 0, 3, device=windows.device)
        clicks = torch.zeros(count, 0, dtype=torch.int64, device=windows.device)
        label_logits = []
        for token in tokens:
            prompts = RoiPrompts(coords, clicks, learned=token.expand(count, -1, -1))
            label_logits.append(model.decode(embedding, prompts).best()[0].float())
        tick(count)
        return torch.nan_to_num(
            torch.cat(label_logits, dim=1), nan=EXCLUDED, posinf=-EXCLUDED, neginf=EXCLUDED
        )

    stitched = sliding_window_inference(
        channels[None],
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
        The RAS axis along i, the range of the window's voxels along it, and the window of that range.
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
