"""Folders of small volumes with one bright ball each, and tables of the balls' positions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask
from tests.support.labelled_folders import save

SHAPE = (20, 22, 12)
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def ball(seed: int) -> tuple[NDArray[np.int16], NDArray[np.bool_], tuple[int, int, int]]:
    """Return (i, j, k) noise with a bright ball, the ball's mask, and its centre."""
    rng = np.random.default_rng(seed)
    i, j, k = (int(n // 2 + rng.integers(-3, 4)) for n in SHAPE)
    away = np.linalg.norm(
        (np.indices(SHAPE) - np.reshape((i, j, k), (3, 1, 1, 1))) * [[[[1]]], [[[1]]], [[[2]]]], axis=0
    )
    inside = away < rng.uniform(4, 6)
    return (rng.normal(100, 15, SHAPE) + 200 * inside).astype(np.int16), inside, (i, j, k)


def affine_of(seed: int) -> NDArray[np.float64]:
    """Return a (4, 4) affine with spacing 1, 1 and 2 mm: plain, flipped, oblique, or with permuted axes."""
    steps = np.diag([1.0, 1.0, 2.0])
    turns = (np.eye(3), np.diag([-1.0, -1.0, 1.0]), TURN, np.roll(np.eye(3), 1, axis=0), -TURN[:, ::-1])
    affine = np.eye(4)
    affine[:3, :3] = turns[seed % len(turns)] @ steps
    affine[:3, 3] = 5.0, -7.0, 3.0 + seed
    return affine


def write_volumes(folder: Path, names: Iterable[str]) -> Path:
    """Write one volume per name, each with its own ball and axes, and a table of clicks.

    Args:
        names: paths within the folder, with endings.
    """
    rows = ["image,label,i,j,k,sign"]
    for seed, name in enumerate(names):
        array, _, (i, j, k) = ball(seed)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if ".nii" in name:
            save(path, array, affine_of(seed))
        else:  # saved like a label map, with small numbers as values
            save_mask(array.clip(0), Volume.from_array(array, affine_of(seed)), path)
        rows += [f"{name},1,{i},{j},{k},1", f"{name},1,0,0,0,0"]
    table_of(folder).write_text("\n".join(rows) + "\n")
    return folder


def table_of(folder: Path) -> Path:
    """Return the path of a folder's table."""
    return folder.with_name(f"{folder.name}_clicks.csv")


def masks_in(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all masks in a folder, by path."""
    paths = sorted(path for path in folder.rglob("*.nii.gz") if not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
