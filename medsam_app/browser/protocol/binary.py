"""Binary encoding of volumes and masks for the browser.

The browser uses the axis order closest to RAS. Volumes are sent little endian with x running fastest. Masks
are sent in C order of the file's axes (i, j, k), with the strides along the browser's axes.
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

#: Size of one block of voxels in bytes.
BLOCK_BYTES = 8 << 20
#: Size in bytes of packed bits above which a mask is deflated.
DEFLATE_ABOVE = 16 << 10
#: A file without modality is taken for CT if its minimum and maximum (HU) lie beyond these.
_CT_LOW, _CT_HIGH = -500, 300


def browser_dtype(array: NDArray) -> np.dtype:
    """Return the smallest of uint8, int16, uint16 and float32 that holds all values of an array exactly.

    Values that need more than single precision are rounded to float32; the difference is not visible.
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
    """Return the header of a volume with axes (i, j, k), which the page needs before the voxels."""
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
    """Yield the voxels in the browser's order, a few slices at a time.

    Args:
        array: voxels with axes (i, j, k).
        grid: grid of the volume.
        dtype: dtype in the header of `volume_header`.
    """
    view, dtype = grid.ras.from_file(array), dtype.newbyteorder("<")
    plane = max(1, int(view.shape[0] * view.shape[1]) * dtype.itemsize)
    slices = max(1, BLOCK_BYTES // plane)
    for first in range(0, view.shape[2], slices):
        yield view[:, :, first : first + slices].astype(dtype).tobytes(order="F")


def mask_part(key: str, patch: Patch, grid: Grid) -> tuple[dict, bytes]:
    """Return the header and the packed bits of a mask within its bounding box.

    The bits are in the order of the voxels in memory, least significant bit first. In the header, `first` is
    the bit index of the lowest corner in the browser's order, and `strides` are the steps in bits along each
    of the browser's axes.

    Args:
        key: identifies the mask in the browser.
        patch: the mask.
        grid: grid of the volume.
    """
    ras = grid.ras
    patch = patch.tight()
    if not patch.mask.size:
        empty = {"start": [0, 0, 0], "size": [0, 0, 0], "first": 0, "strides": [0, 0, 0]}
        return {"key": key, **empty, "bytes": 0, "deflated": False}, b""
    box = np.ascontiguousarray(patch.mask)
    corners = ras.points_from_file(np.stack([patch.start, np.array(patch.stop) - 1]))
    bits = np.packbits(box, bitorder="little").tobytes()
    deflated = len(bits) > DEFLATE_ABOVE
    stored = zlib.compress(bits, 1) if deflated else bits
    view = ras.from_file(box)  # one byte per voxel, so strides in bytes are strides in bits
    header = {
        "key": key,
        "start": [int(v) for v in corners.min(axis=0)],
        "size": list(view.shape),
        "first": sum(-step * (n - 1) for step, n in zip(view.strides, view.shape, strict=True) if step < 0),
        "strides": list(view.strides),
        "bytes": len(stored),
        "deflated": deflated,
    }
    return header, stored


def frame(body: dict[str, Any], masks: Iterable[tuple[dict, bytes]]) -> bytes:
    """Return a state and masks as one frame.

    A frame contains the length of the header (uint32), the header in JSON, and the bits of the masks.
    """
    masks = list(masks)
    header = json.dumps(body | {"masks": [part[0] for part in masks]}).encode()
    return struct.pack("<I", len(header)) + header + b"".join(part[1] for part in masks)
