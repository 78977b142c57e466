"""Volumes and masks as bytes for the browser.

The browser has everything in the axis order closest to RAS: volumes with x running fastest, little endian;
masks as they lie here, with the way from one voxel to the next.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_app.grid.geometry import Grid
from medsam_app.grid.patch import Patch

#: Bytes of voxels made at a time.
BLOCK_BYTES = 8 << 20
#: Masks whose bits take more than this are deflated.
DEFLATE_ABOVE = 16 << 10
#: Upper bound of air (HU) used to guess CT when the file has no modality.
_CT_LOW, _CT_HIGH = -500, 300


def browser_dtype(array: NDArray) -> np.dtype:
    """Smallest of uint8, int16, uint16 and float32 that holds all values of an array exactly.

    Values that need more than single precision lose invisible digits.
    """
    if array.dtype.kind == "f" and not (array[::3, ::3, ::3] % 1 == 0).all():
        return np.dtype("<f4")
    if array.dtype.kind == "f" and not all((part % 1 == 0).all() for part in array):
        return np.dtype("<f4")
    low, high = float(array.min()), float(array.max())
    for name in ("<u1", "<i2", "<u2"):
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return np.dtype(name)
    return np.dtype("<f4")


def volume_header(array: NDArray, grid: Grid, *, name: str, modality: str | None) -> dict[str, Any]:
    """Return the header of a volume (i, j, k) that the page needs before the voxels."""
    ras, dtype = grid.ras, browser_dtype(array)
    low, high = float(array.min()), float(array.max())
    step = max(1, round((array.size / 2e6) ** (1 / 3)))
    window = [float(v) for v in np.percentile(array[::step, ::step, ::step], (1, 99))]
    if window[1] <= window[0]:
        window = [low, high if high > low else low + 1]
    ct = modality == "CT" or (modality is None and low <= _CT_LOW and high >= _CT_HIGH)
    return {
        "name": name,
        "modality": modality or ("CT" if ct else None),
        "ct": ct,
        "shape": list(ras.shape),
        "spacing": [float(v) for v in ras.spacing],
        "axes": list(ras.axes),
        "flips": list(ras.flips),
        "affine": np.asarray(grid.affine, dtype=float).tolist(),
        "file_shape": [int(n) for n in grid.shape],
        "file_spacing": [float(v) for v in grid.spacing],
        "orientation": grid.orientation,
        "dtype": dtype.name,
        "bytes": int(array.size) * dtype.itemsize,
        "range": [low, high],
        "window": window,
    }


def voxel_blocks(array: NDArray, grid: Grid, dtype: np.dtype) -> Iterator[bytes]:
    """The voxels in the browser's order, a few slices at a time.

    Args:
        dtype: the type that `volume_header` named.
    """
    view, dtype = grid.ras.from_file(array), dtype.newbyteorder("<")
    plane = max(1, int(view.shape[0] * view.shape[1]) * dtype.itemsize)
    slices = max(1, BLOCK_BYTES // plane)
    for first in range(0, view.shape[2], slices):
        yield view[:, :, first : first + slices].astype(dtype).tobytes(order="F")


def mask_part(key: str, patch: Patch, grid: Grid) -> tuple[dict, bytes]:
    """Header and bits of a mask within its bounding box.

    Bits come as voxels lie in memory, least significant first. The header says where a voxel's is: at `first`
    that of the lowest corner in the browser's order, and `strides` on the next one along each axis.

    Args:
        key: what the browser knows the mask by.
        patch: the mask.
        grid: the volume's grid.
    """
    ras = grid.ras
    patch = patch.tight()
    if not patch.mask.size:
        nothing = {"start": [0, 0, 0], "size": [0, 0, 0], "first": 0, "strides": [0, 0, 0]}
        return {"key": key, **nothing, "bytes": 0, "deflated": False}, b""
    box = np.ascontiguousarray(patch.mask)
    corners = ras.points_from_file(np.stack([patch.start, np.array(patch.stop) - 1]))
    bits = np.packbits(box, bitorder="little").tobytes()
    deflated = len(bits) > DEFLATE_ABOVE
    stored = zlib.compress(bits, 1) if deflated else bits
    seen = ras.from_file(box)  # a view; a voxel takes a byte
    header = {
        "key": key,
        "start": [int(v) for v in corners.min(axis=0)],
        "size": list(seen.shape),
        "first": sum(-step * (n - 1) for step, n in zip(seen.strides, seen.shape, strict=True) if step < 0),
        "strides": list(seen.strides),
        "bytes": len(stored),
        "deflated": deflated,
    }
    return header, stored


def frame(body: dict[str, Any], masks: Iterable[tuple[dict, bytes]]) -> bytes:
    """A state and masks in one answer: length of the header, the header in JSON, the masks' bits."""
    masks = list(masks)
    header = json.dumps(body | {"masks": [part[0] for part in masks]}).encode()
    return struct.pack("<I", len(header)) + header + b"".join(part[1] for part in masks)
