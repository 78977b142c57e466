"""Masks over their images, to be looked at.

python docs/make_contact_sheet.py FOLDER sheet.png CASE:LABEL ...

Each row is one object after three simulated clicks: axial, coronal and sagittal slice through the first
click, the truth outlined in green and the mask in orange. FOLDER holds a `manifest.json`; CASE is
`dataset/case` as it stands there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from medsam_app.clicks import next_click
from medsam_app.predictor import VolumePredictor
from medsam_app.scores import dice
from medsam_app.volume import load_mask, load_volume

SIDE = 240


def plane(volume, axis: int, index: int, mask, truth) -> Image.Image:  # type: ignore[no-untyped-def]
    """One slice with both outlines, at the right aspect, upright, patient's right on the left."""
    ras = volume.grid.ras
    image, mask, truth = (ras.from_file(a).take(index, axis) for a in (volume.array, mask, truth))
    low, high = np.percentile(image, [1, 99.5])
    grey = np.clip((image.astype(float) - low) / max(high - low, 1e-6), 0, 1) * 255
    colour = np.repeat(grey[..., None], 3, -1).astype(np.uint8)
    for area, paint in ((truth, (60, 220, 90)), (mask, (255, 150, 40))):
        colour[area & ~ndimage.binary_erosion(area)] = paint
    spacing = np.delete(ras.spacing, axis)
    size = np.array(image.shape) * spacing
    size = np.maximum(1, (size / size.max() * SIDE).astype(int))
    picture = Image.fromarray(np.ascontiguousarray(colour.transpose(1, 0, 2)[::-1, ::-1]))
    sheet = Image.new("RGB", (SIDE, SIDE))
    sheet.paste(picture.resize((int(size[0]), int(size[1])), Image.Resampling.NEAREST))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("objects", nargs="+", help="CASE:LABEL")
    options = parser.parse_args()
    cases = {c["id"]: c for c in json.loads((options.folder / "manifest.json").read_text())["cases"]}
    predictor = VolumePredictor()
    rows = []
    for wanted in options.objects:
        name, label = wanted.rsplit(":", 1)
        volume = load_volume(options.folder / cases[name]["image"])
        truth = load_mask(options.folder / cases[name]["label"], volume.grid) == int(label)
        predictor.set_volume(volume)
        mask, points, signs = np.zeros_like(truth), [], []
        for _ in range(3):
            click = next_click(mask, truth, spacing=volume.spacing)
            if click is None:
                break
            points.append(click[0])
            signs.append(int(click[1]))
            mask = predictor.predict(points=points, point_labels=signs).mask
        print(f"{wanted}: Dice {dice(mask, truth):.3f}")
        at = volume.grid.ras.points_from_file(points[0]).astype(int)
        rows.append([plane(volume, axis, int(at[axis]), mask, truth) for axis in (2, 1, 0)])
    sheet = Image.new("RGB", (3 * SIDE, SIDE * len(rows)))
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            sheet.paste(picture, (c * SIDE, r * SIDE))
    sheet.save(options.out)


if __name__ == "__main__":
    main()
