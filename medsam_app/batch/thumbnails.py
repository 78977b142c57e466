"""Thumbnails of results: three orthogonal slices of a volume, side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam_app.errors import GridMismatch, SettingsError
from medsam_app.grid.geometry import padded_bounds
from medsam_app.session.objects import PALETTE, checked_colour

if TYPE_CHECKING:  # heavy
    from medsam_app.grid.geometry import RasView
    from medsam_app.io.volume import Volume

#: RAS axes down, across and through the axial, the coronal and the sagittal plane.
PLANES = ((1, 0, 2), (2, 0, 1), (2, 1, 0))
#: Pixels between the planes, and the grey value of the background.
GAP, _BACK = 4, 24
#: Intensity percentiles near the labels that become black and white.
_BLACK, _WHITE = 1.0, 99.0
#: Limits of the intensity window on either side of the intensities inside the labels. At most this many times
#: their range, so that an organ next to air or bone keeps its contrast; at least this share of the range near
#: the labels.
_BEYOND, _NARROWEST = 1.5, 0.1
#: Share of the label's colour inside the label.
_OPACITY = 0.3
_LEAST_HEIGHT = 16


class _Plane(NamedTuple):
    """A slice as displayed: row 0 at the top, the patient's right (or front) on the left.

    `image` and `labels` are (rows, columns); `size` is the height and width in mm.
    """

    image: NDArray
    labels: NDArray
    size: tuple[float, float]


def thumbnail(
    volume: Volume, labels: NDArray, *, colours: Mapping[int, str] | None = None, height: int = 160
) -> bytes:
    """Draw the axial, the coronal and the sagittal slice with the most labelled voxels.

    Each slice is scaled isotropically to fit into a square, in radiological convention: the patient's right
    on the left, the front at the top or on the left. Without labels, the slices pass through the centre of
    the volume. Labels are outlined and lightly filled; a label smaller than a pixel still gets one pixel.

    Args:
        labels: (i, j, k) integers or bool on the volume's grid, 0 = background.
        colours: '#rrggbb' by label value; other labels use the palette of objects.
        height: height of the picture in pixels, 16 or more; its width is 3 x height + 8.

    Returns:
        A PNG.

    Raises:
        GridMismatch: the labels and the volume differ in shape.
        SettingsError: a colour is invalid, or the height is too small.
    """
    if labels.shape != tuple(volume.shape):
        raise GridMismatch(
            f"The labels of a thumbnail have the shape of the volume, {tuple(volume.shape)}; got "
            f"{labels.shape}."
        )
    if height < _LEAST_HEIGHT:
        raise SettingsError(f"A thumbnail is {_LEAST_HEIGHT} pixels high or more; got {height}.")
    planes = _planes(volume.array, labels, volume.grid.ras)
    low, high = _window(planes)
    picture = np.full((height, 3 * height + 2 * GAP, 3), _BACK, dtype=np.uint8)
    for number, plane in enumerate(planes):
        drawn = _draw(plane, low, high, colours or {}, height)
        rows, columns = drawn.shape[:2]
        top, left = (height - rows) // 2, number * (height + GAP) + (height - columns) // 2
        picture[top : top + rows, left : left + columns] = drawn
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png")
    return buffer.getvalue()


def _planes(image: NDArray, labels: NDArray, ras: RasView) -> list[_Plane]:
    """Return the three slices of both (i, j, k) arrays."""
    counts = _counts(labels)
    axis_flips = zip(ras.axes, ras.flips, strict=True)
    indices = [_fullest(np.flip(counts[axis]) if flip else counts[axis]) for axis, flip in axis_flips]
    planes = []
    for vertical, horizontal, normal in PLANES:
        cut_image, cut_labels = (
            np.flip(ras.from_file(array).transpose(normal, vertical, horizontal)[indices[normal]])
            for array in (image, labels)
        )
        size = [float(ras.shape[axis] * ras.spacing[axis]) for axis in (vertical, horizontal)]
        planes.append(_Plane(cut_image, cut_labels, (size[0], size[1])))
    return planes


def _fullest(counts: NDArray[np.integer]) -> int:
    """Return the index with the largest count; of several such indices, the middle one."""
    best = np.flatnonzero(counts == counts.max())
    return int(best[len(best) // 2])


def _counts(labels: NDArray) -> list[NDArray[np.int64]]:
    """Return the number of labelled voxels in each slice, by axis.

    This reads memory once and sequentially, and sums bytes: sums along three axes of a large volume would
    take seconds.
    """
    order = sorted(range(3), key=lambda axis: -abs(labels.strides[axis]))
    slabs = labels.transpose(order)
    per_slab = np.zeros(len(slabs), dtype=np.int64)
    totals = np.zeros(slabs.shape[1:], dtype=np.int64)
    batch = 255  # the largest count in a byte
    for start in range(0, len(slabs), batch):
        batch_counts = np.zeros(slabs.shape[1:], dtype=np.uint8)
        for index in range(start, min(start + batch, len(slabs))):
            labelled = slabs[index] != 0
            per_slab[index] = np.count_nonzero(labelled)
            batch_counts += labelled
        totals += batch_counts
    by_axis = dict(zip(order, (per_slab, totals.sum(axis=1), totals.sum(axis=0)), strict=True))
    return [by_axis[axis] for axis in range(3)]


def _window(planes: list[_Plane]) -> tuple[float, float]:
    """Return the intensities that become black and white."""
    nearby, inside = [], []
    for plane in planes:
        labelled = plane.labels != 0
        if labelled.any():
            nearby.append(plane.image[padded_bounds(labelled)].ravel())
            inside.append(plane.image[labelled])
        else:
            nearby.append(plane.image.ravel())
    low, high = np.percentile(np.concatenate(nearby), [_BLACK, _WHITE]).tolist()
    if inside:
        least, most = np.percentile(np.concatenate(inside), [_BLACK, _WHITE]).tolist()
        margin = max(_BEYOND * (most - least), _NARROWEST * (high - low))
        low, high = max(low, least - margin), min(high, most + margin)
    return low, max(high, low + 1e-6)


def _draw(plane: _Plane, low: float, high: float, colours: Mapping[int, str], height: int) -> NDArray:
    """Return the slice with its labels, (rows, columns, 3) uint8, at most `height` pixels on each side."""
    scale = height / max(plane.size)
    rows, columns = (min(height, max(1, round(scale * side))) for side in plane.size)
    grey = np.clip((plane.image.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    image = Image.fromarray(grey).resize((columns, rows), Image.Resampling.BILINEAR)
    picture = np.repeat(np.asarray(image)[..., None], 3, axis=2).astype(np.float32)
    labels = _resized(_resized(plane.labels, rows, 0), columns, 1)
    # An outline pixel has a neighbour with another label; pixels outside count as background.
    padded = np.pad(labels, 1)
    neighbours = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    edge = np.any([neighbour != labels for neighbour in neighbours], axis=0)
    for value in np.unique(labels[labels != 0]).tolist():
        colour = checked_colour(colours.get(int(value), PALETTE[(int(value) - 1) % len(PALETTE)]))
        rgb = np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8).astype(np.float32)
        inside = labels == value
        picture[inside] += _OPACITY * (rgb - picture[inside])
        picture[inside & edge] = rgb
    return np.rint(picture).astype(np.uint8)


def _resized(labels: NDArray, count: int, axis: int) -> NDArray:
    """Resample labels along an axis: nearest label to enlarge, largest of the merged labels to reduce."""
    size = labels.shape[axis]
    if count >= size:
        return labels.take((np.arange(count) * size + size // 2) // count, axis=axis)
    return np.maximum.reduceat(labels, np.arange(count) * size // count, axis=axis)
