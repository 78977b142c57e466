"""Statistics of one label of one case: voxels, size and intensities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index

#: Reported percentiles of the intensities.
PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
#: Approximate largest number of voxels for percentiles within a label.
_SAMPLED = 100_000
#: Largest label value for which `ndimage.find_objects` is used directly; it lists all values up to the
#: largest.
_LISTED = 65_535

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Statistics of one label of one case.

    Attributes:
        value: label value.
        name: name of the label, or None.
        voxels: number of voxels.
        ml: volume in millilitres.
        extent_mm: size of its bounding box along (i, j, k) in mm.
        piece_mm: size of the bounding box of its largest connected component, which one window must contain.
        intensities: percentiles of its voxels by per cent; None without an image on the same grid.
    """

    value: int
    name: str | None
    voxels: int
    ml: float
    extent_mm: tuple[float, float, float]
    piece_mm: tuple[float, float, float]
    intensities: dict[float, float] | None


def label_facts(
    labels: NDArray[np.integer],
    grid: Grid,
    counts: Mapping[int, int],
    names: Mapping[int, str],
    image: NDArray | None,
) -> tuple[LabelFacts, ...]:
    """Return statistics of every label of a case.

    Args:
        labels: (i, j, k) label map on the grid.
        grid: grid of the label map.
        counts: number of voxels by label value above 0, in ascending order of the values.
        names: names by label value.
        image: (i, j, k) intensities on the same grid, or None.
    """
    facts = []
    for (value, voxels), box in zip(counts.items(), boxes(labels, list(counts)), strict=True):
        mask = labels[box] == value
        inside = None
        if image is not None:
            inside = image[box][mask]
            inside = percentiles(inside[:: -(-inside.size // _SAMPLED) or 1])
        facts.append(
            LabelFacts(
                value=value,
                name=names.get(value),
                voxels=voxels,
                ml=round(voxels * grid.voxel_volume_ml, 6),
                extent_mm=_in_mm(_shape(box), grid),
                piece_mm=_in_mm(largest_piece(mask), grid),
                intensities=inside,
            )
        )
    return tuple(facts)


def boxes(labels: NDArray[np.integer], values: list[int]) -> list[Box]:
    """Return the bounding box of each label value.

    Args:
        labels: (i, j, k) label map.
        values: label values above 0 in the map, in ascending order.
    """
    if values and values[-1] > _LISTED:  # otherwise one box per value up to the largest
        labels, values = np.searchsorted([0, *values], labels), list(range(1, len(values) + 1))
    slices = ndimage.find_objects(labels)
    return [slices[value - 1] for value in values]


def largest_piece(mask: NDArray[np.bool_]) -> Index:
    """Return the size in voxels of the bounding box of the largest face-connected component.

    Args:
        mask: (i, j, k) mask that is not empty.
    """
    pieces, _ = ndimage.label(mask)
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    return _shape(ndimage.find_objects(pieces)[largest])


def _shape(box: Box) -> Index:
    i, j, k = (int(side.stop - side.start) for side in box)
    return i, j, k


def _in_mm(voxels: Index, grid: Grid) -> tuple[float, float, float]:
    i, j, k = (round(n * float(mm), 4) for n, mm in zip(voxels, grid.spacing, strict=True))
    return i, j, k


def percentiles(values: NDArray) -> dict[float, float] | None:
    """Return the `PERCENTILES` of (n,) values, or None without values."""
    if values.size == 0:
        return None
    results = np.percentile(values, PERCENTILES)
    return {per_cent: round(float(value), 4) for per_cent, value in zip(PERCENTILES, results, strict=True)}
