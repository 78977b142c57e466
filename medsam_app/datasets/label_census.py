"""Statistics of one label of one case: voxels, size and intensities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Index

#: Percentiles of intensities that are reported.
PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
#: Percentiles within a label are taken of at most about this many voxels.
_SAMPLED = 100_000
#: Values of labels up to this one are looked up in a list.
_LISTED = 65_535

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """One label of one case.

    Attributes:
        name: None where nothing names it.
        ml: its volume in millilitres.
        extent_mm: size of its bounding box along (i, j, k).
        piece_mm: the same of its largest connected piece, which is what one window has to show.
        intensities: percentiles of the voxels within it, by per cent; None where the image is not known
            there.
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
    """Facts of every label of a case.

    Args:
        labels: (i, j, k) label map on the grid.
        counts: voxels by value, in rising order of the values above 0 that the map has.
        names: by value.
        image: (i, j, k) intensities on the same grid, or None.
    """
    facts = []
    for (value, voxels), box in zip(counts.items(), boxes(labels, list(counts)), strict=True):
        drawn = labels[box] == value
        inside = None
        if image is not None:
            inside = image[box][drawn]
            inside = percentiles(inside[:: -(-inside.size // _SAMPLED) or 1])
        facts.append(
            LabelFacts(
                value=value,
                name=names.get(value),
                voxels=voxels,
                ml=round(voxels * grid.voxel_volume_ml, 6),
                extent_mm=_in_mm(_shape(box), grid),
                piece_mm=_in_mm(largest_piece(drawn), grid),
                intensities=inside,
            )
        )
    return tuple(facts)


def boxes(labels: NDArray[np.integer], values: list[int]) -> list[Box]:
    """Bounding box of each value.

    Args:
        labels: (i, j, k) label map.
        values: those above 0 that it has, in rising order.
    """
    if values and values[-1] > _LISTED:  # one box is made for each value up to the highest
        labels, values = np.searchsorted([0, *values], labels), list(range(1, len(values) + 1))
    found = ndimage.find_objects(labels)
    return [found[value - 1] for value in values]


def largest_piece(drawn: NDArray[np.bool_]) -> Index:
    """Voxels along (i, j, k) of the bounding box of the largest piece that hangs together by faces."""
    pieces, _ = ndimage.label(drawn)
    largest = int(np.bincount(pieces.ravel())[1:].argmax())
    return _shape(ndimage.find_objects(pieces)[largest])


def _shape(box: Box) -> Index:
    i, j, k = (int(along.stop - along.start) for along in box)
    return i, j, k


def _in_mm(voxels: Index, grid: Grid) -> tuple[float, float, float]:
    i, j, k = (round(n * float(mm), 4) for n, mm in zip(voxels, grid.spacing, strict=True))
    return i, j, k


def percentiles(values: NDArray) -> dict[float, float] | None:
    """`PERCENTILES` of (n,) values, None of none."""
    if values.size == 0:
        return None
    found = np.percentile(values, PERCENTILES)
    return {per_cent: round(float(value), 4) for per_cent, value in zip(PERCENTILES, found, strict=True)}
