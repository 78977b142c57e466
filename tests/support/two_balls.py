"""Volumes with a bright and a dark ball, and an adapter trained to segment both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_app.adapters.adapter import Adapter
from medsam_app.grid.roi import read_roi
from medsam_app.io.volume import Volume
from medsam_app.models.load import load_model
from medsam_app.models.sam3d import RoiPrompts, Sam3D
from medsam_app.predict.whole_volume import whole_roi

BRIGHT, DARK = 3, 7
NAMES = {BRIGHT: "bright ball", DARK: "dark ball"}
SPACING, WINDOW = 4.0, (16, 16, 16)
CARD: dict[str, Any] = {"spacing": (SPACING,) * 3, "window": WINDOW, "labels": NAMES, "licence": "CC0-1.0"}
STEPS = 80


def balls(
    shape: tuple[int, int, int], affine: NDArray[np.float64], *, seed: int = 0
) -> tuple[Volume, NDArray[np.uint8]]:
    """Return a noisy volume with both balls on opposite sides of its centre, and its label map.

    Args:
        shape: voxels along (i, j, k).
        affine: (4, 4) voxel indices to mm in RAS+.
        seed: of radii, directions and noise.
    """
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T
    at += affine[:3, 3]
    half = np.abs(affine[:3, :3]) @ (np.array(shape) / 2)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    way = rng.choice([-1, 1], 3) * np.minimum(half - 14, 18) * rng.uniform(0.8, 1, 3)
    array = rng.normal(100, 8, shape)
    labels = np.zeros(shape, dtype=np.uint8)
    for value, side, intensity in ((BRIGHT, 1, 200), (DARK, -1, 0)):
        inside = np.linalg.norm(at - middle - side * way, axis=-1) < rng.uniform(10, 14)
        array[inside] += intensity - 100
        labels[inside] = value
    return Volume.from_array(array.astype(np.float32), affine), labels


def taught(path: Path, *, steps: int = STEPS) -> Path:
    """Train an adapter on windows of such volumes and save it."""
    torch.manual_seed(0)
    model = load_model("sam3d_tiny")
    assert isinstance(model, Sam3D)
    adapter = Adapter.create("ssf", model, labels=list(NAMES), also=["decoder"])
    adapter.enable()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=4e-3)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    clicks = torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.int64)
    for step in range(steps):
        volume, truth = balls(((13, 12, 13), WINDOW)[step % 2], affine, seed=100 + step)
        roi = whole_roi(volume.grid, CARD["spacing"], WINDOW)
        image, valid = (array[None, None] for array in read_roi(volume.array, roi))
        with torch.no_grad():
            embedding = model.encode_image(image, valid)
        loss = torch.zeros(())
        for value in NAMES:
            logits = model.decode(embedding, RoiPrompts(*clicks, learned=adapter.prompts.of(value))).logits
            inside, _ = read_roi(truth == value, roi)
            target = (valid & (inside > 0.5)).float().expand_as(logits)
            probability = logits.sigmoid()
            overlap = (2 * (probability * target).sum((2, 3, 4)) + 1) / (
                (probability + target).sum((2, 3, 4)) + 1
            )
            loss = (
                loss + torch.nn.functional.binary_cross_entropy_with_logits(logits, target) - overlap.mean()
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapter.eval()
    return adapter.save(path, CARD)
