"""Thumbnails of results: three planes through a volume, side by side."""

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
#: Pixels between the planes, and their grey.
GAP, _BACK = 4, 24
#: Percentiles of what is near the labels that become black and white.
_BLACK, _WHITE = 1.0, 99.0
#: The window goes no farther beyond the intensities of what was found than this many times their range,
#: so that an organ next to air or bone keeps its contrast, but is this share of what is near it at least,
#: on either side.
_BEYOND, _NARROWEST = 1.5, 0.1
#: How much of the label's colour is mixed into its inside.
_OPACITY = 0.3
_LEAST_HEIGHT = 16


class _Plane(NamedTuple):
    """A slice as it is shown, row 0 at the top, the patient's right (or front) on the left.

    `image` and `labels` are (rows, columns); `size` is what it measures in mm, down and across.
    """

    image: NDArray
    labels: NDArray
    size: tuple[float, float]


def thumbnail(
    volume: Volume, labels: NDArray, *, colours: Mapping[int, str] | None = None, height: int = 160
) -> bytes:
    """Draw the axial, the coronal and the sagittal slice with the most labelled voxels.

    They stand in three squares, each as large as fits with millimetres alike down and across, in
    radiological convention: the patient's right on the left, the front at the top or on the left. Where
    nothing was found they go through the middle of the volume. Labels are outlined and lightly filled;
    one that is smaller than a pixel still gets a pixel.

    Args:
        labels: (i, j, k) whole numbers or bool on the volume's grid, 0 = background.
        colours: '#rrggbb' by label value; the others have that of the palette of objects.
        height: of the picture in pixels, 16 or more; it is 3 x height + 8 wide.

    Returns:
        A PNG.

    Raises:
        GridMismatch: the labels have another shape than the volume.
        SettingsError: a colour is none, or the height is too small.
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
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, format="png")
    return stored.getvalue()


def _planes(image: NDArray, labels: NDArray, ras: RasView) -> list[_Plane]:
    """Cut both (i, j, k) arrays."""
    counts = _counts(labels)
    turned = zip(ras.axes, ras.flips, strict=True)
    where = [_fullest(np.flip(counts[axis]) if flip else counts[axis]) for axis, flip in turned]
    planes = []
    for down, across, through in PLANES:
        cut_image, cut_labels = (
            np.flip(ras.from_file(array).transpose(through, down, across)[where[through]])
            for array in (image, labels)
        )
        size = [float(ras.shape[axis] * ras.spacing[axis]) for axis in (down, across)]
        planes.append(_Plane(cut_image, cut_labels, (size[0], size[1])))
    return planes


def _fullest(counts: NDArray[np.integer]) -> int:
    """The index with the largest count, the middle one of several; that of the middle if all are 0."""
    best = np.flatnonzero(counts == counts.max())
    return int(best[len(best) // 2])


def _counts(labels: NDArray) -> list[NDArray[np.int64]]:
    """Labelled voxels in each slice, by axis.

    It goes through memory once and in order, and adds up bytes: sums along three axes of a large volume
    would take seconds.
    """
    order = sorted(range(3), key=lambda axis: -abs(labels.strides[axis]))
    slabs = labels.transpose(order)
    first = np.zeros(len(slabs), dtype=np.int64)
    rest = np.zeros(slabs.shape[1:], dtype=np.int64)
    most = 255  # what a byte counts up to
    for start in range(0, len(slabs), most):
        part = np.zeros(slabs.shape[1:], dtype=np.uint8)
        for index in range(start, min(start + most, len(slabs))):
            found = slabs[index] != 0
            first[index] = np.count_nonzero(found)
            part += found
        rest += part
    by_axis = dict(zip(order, (first, rest.sum(axis=1), rest.sum(axis=0)), strict=True))
    return [by_axis[axis] for axis in range(3)]


def _window(planes: list[_Plane]) -> tuple[float, float]:
    """Intensities that become black and white."""
    near, inside = [], []
    for plane in planes:
        drawn = plane.labels != 0
        if drawn.any():
            near.append(plane.image[padded_bounds(drawn)].ravel())
            inside.append(plane.image[drawn])
        else:
            near.append(plane.image.ravel())
    low, high = np.percentile(np.concatenate(near), [_BLACK, _WHITE]).tolist()
    if inside:
        least, most = np.percentile(np.concatenate(inside), [_BLACK, _WHITE]).tolist()
        beyond = max(_BEYOND * (most - least), _NARROWEST * (high - low))
        low, high = max(low, least - beyond), min(high, most + beyond)
    return low, max(high, low + 1e-6)


def _draw(plane: _Plane, low: float, high: float, colours: Mapping[int, str], height: int) -> NDArray:
    """(rows, columns, 3) uint8 the slice with its labels, `height` at most on each side."""
    scale = height / max(plane.size)
    rows, columns = (min(height, max(1, round(scale * side))) for side in plane.size)
    grey = np.clip((plane.image.astype(np.float32) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    image = Image.fromarray(grey).resize((columns, rows), Image.Resampling.BILINEAR)
    drawn = np.repeat(np.asarray(image)[..., None], 3, axis=2).astype(np.float32)
    labels = _resized(_resized(plane.labels, rows, 0), columns, 1)
    # A pixel of an outline has another label above, below or next to it; what lies beyond the edge is none.
    padded = np.pad(labels, 1)
    beside = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    edge = np.any([other != labels for other in beside], axis=0)
    for value in np.unique(labels[labels != 0]).tolist():
        colour = checked_colour(colours.get(int(value), PALETTE[(int(value) - 1) % len(PALETTE)]))
        rgb = np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8).astype(np.float32)
        inside = labels == value
        drawn[inside] += _OPACITY * (rgb - drawn[inside])
        drawn[inside & edge] = rgb
    return np.rint(drawn).astype(np.uint8)


def _resized(labels: NDArray, count: int, axis: int) -> NDArray:
    """Resample labels along an axis: the nearest one, or the largest label of merged ones."""
    size = labels.shape[axis]
    if count >= size:
        return labels.take((np.arange(count) * size + size // 2) // count, axis=axis)
    return np.maximum.reduceat(labels, np.arange(count) * size // count, axis=axis)
