"""Benefit of the model's choices on labelled cases: python benchmarks/choices.py FOLDER

FOLDER holds a `manifest.json`. By default `train` cases are used, since this benchmark was used to choose
settings.
It prints the mean Dice of: the candidate mask with the highest predicted quality, and the best one, on
windows of the training mixture; one click in windows of several spacings; one to three clicks with several
margins by which the predicted quality of a wide window must be higher; ten clicks with and without the
contest of clicks, and with and without local corrections, in which later clicks change only the connected
part that they are in; the mask shown after one click, and the best of the alternatives to it; a box alone,
with and without the outlines of rough masks.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from labelled_objects import labelled_objects
from numpy.typing import NDArray

from medsam_app.evaluate.click_through import click_through
from medsam_app.evaluate.summary import SPOILT
from medsam_app.grid.masks import dice
from medsam_app.io.volume import Volume
from medsam_app.models import decoder
from medsam_app.models.load import load_model
from medsam_app.models.sam3d import Sam3D
from medsam_app.models.table import DEFAULT_MODEL
from medsam_app.predict.core.feature_cache import EmbeddingCache
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.predict.windowed import engine
from medsam_app.predict.windowed.window_choice import Framing
from medsam_app.pretraining.trainer import dice_of
from medsam_app.pretraining.windows import Mixture
from medsam_app.prompts.simulated_clicks import jittered_box, next_click
from medsam_app.prompts.types import Point
from medsam_app.training.simulated_user import Interaction

SPACINGS = (1.0, 1.5, 2.5, 4.0, 6.0)
#: 9: the wide window is never used.
TRUSTS = (9.0, 0.1, 0.05, 0.02, 0.0)
NEVER = 9.0
#: More than ten clicks, so that no click is a local correction.
FREE = 99


def candidates(model: Sam3D, folder: Path, windows: int) -> None:
    """Print the Dice of the chosen and the best candidate on windows with seeds that training never draws."""
    mixture = Mixture(folder, {"real": 0.7, "heads": 0.1, "synthetic": 0.2})
    quality, real = [], []
    for number in range(windows // 4):
        drawn = [mixture.draw(2**62 + 4 * number + n, 32) for n in range(4)]
        image, valid, target = (
            torch.stack([getattr(w, name) for w in drawn])[:, None] for name in ("image", "valid", "target")
        )
        person = Interaction(target, np.random.default_rng(number))
        with torch.inference_mode():
            embedding = model.encode_image(image, valid)
            for _ in range(3):
                found = model.decode(embedding, person.prompts())
                real.append(dice_of((found.logits > 0).float(), target.float(), valid.float()))
                quality.append(found.quality)
                person.correct(found.best()[0], careful=True)
    q, r = torch.cat(quality), torch.cat(real)
    chosen = r.gather(1, q.argmax(1, keepdim=True)).mean()
    together = np.corrcoef(q.flatten(), r.flatten())[0, 1]
    print(f"candidates on {len(q)} decodes: mean {r.mean():.3f}, chosen {chosen:.3f}", end=", ")
    print(f"best {r.amax(1).mean():.3f}")
    print(f"correlation of predicted and real Dice: {together:.2f}")


def windows(model: Sam3D, folder: Path, most: int) -> None:
    """Measure one click in windows of several spacings, and one to three clicks with several margins."""
    spaced: list[list[float]] = []
    trusted: dict[float, list[list[float]]] = defaultdict(list)
    for _, volume, truth in labelled_objects(folder, most):
        cache = EmbeddingCache(1 << 29)
        first = next_click(np.zeros_like(truth), truth, spacing=volume.spacing)
        assert first is not None
        row = []
        for spacing in SPACINGS:
            framing = Framing(first_mm=spacing, encodings=1, trust=NEVER, trust_again=NEVER)
            predictor = VolumePredictor(model, framing=framing, cache=cache, refine=False)
            predictor.set_volume(volume)
            row.append(dice(predictor.predict(points=[first[0]]).mask, truth))
        spaced.append(row)
        for trust in TRUSTS:
            framing = Framing(trust=trust, trust_again=trust)
            trusted[trust].append(clicked(model, framing, cache, volume, truth, clicks=3))
    values = np.array(spaced)
    print(f"{len(values)} objects, one click, by spacing of the window:")
    print("  ".join(f"{mm} mm {mean:.3f}" for mm, mean in zip(SPACINGS, values.mean(axis=0), strict=True)))
    print(f"the best of these for each object: {values.max(axis=1).mean():.3f}")
    for trust, rows in trusted.items():
        print(f"wide window {'never' if trust == NEVER else f'by {trust}'}: {means(rows)}")


def later_clicks(model: Sam3D, folder: Path, most: int) -> None:
    """Measure ten clicks with and without the contest of clicks, and with and without local corrections."""
    usual = decoder.CONTEST_WEIGHT, engine.FREE_PROMPTS
    ways: dict[tuple[float, int], list[list[float]]] = {
        (weight, free): [] for weight in (0.0, usual[0]) for free in (FREE, usual[1])
    }
    try:
        for _, volume, truth in labelled_objects(folder, most):
            cache = EmbeddingCache(1 << 29)
            for way, rows in ways.items():
                decoder.CONTEST_WEIGHT, engine.FREE_PROMPTS = way
                rows.append(clicked(model, Framing(), cache, volume, truth, clicks=10))
    finally:
        decoder.CONTEST_WEIGHT, engine.FREE_PROMPTS = usual
    print(f"{len(rows)} objects, one to ten clicks:")
    for (weight, free), rows in ways.items():
        spoilt = sum(max(row) - row[-1] >= SPOILT for row in rows)
        said = "all clicks free" if free == FREE else f"{free} free"
        print(f"contest {weight:.0f}, {said:<16}{means(rows)}; {spoilt} end {SPOILT} below their best")


def alternatives(model: Sam3D, folder: Path, most: int, split: str) -> None:
    """Measure the mask shown after one click, and the best of those offered."""
    rows: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for dataset, volume, truth in labelled_objects(folder, most, split):
        predictor = VolumePredictor(model, refine=False)
        predictor.set_volume(volume)
        first = next_click(np.zeros_like(truth), truth, spacing=volume.spacing)
        assert first is not None
        masks = predictor.alternatives([Point(coordinates=first[0])])
        scores = [dice(mask.prediction.mask, truth) for mask in masks]
        shown = next(score for mask, score in zip(masks, scores, strict=True) if mask.shown)
        rows[dataset].append((shown, max(scores), len(masks)))
    values = np.concatenate([np.array(found) for found in rows.values()])
    by_dataset = np.mean([np.mean(found, axis=0) for found in rows.values()], axis=0)
    for what, means in ((f"{len(values)} objects", values.mean(0)), (f"{len(rows)} datasets", by_dataset)):
        print(
            f"one click, mean of {what}: shown {means[0]:.3f}, best of {means[2]:.1f} offered {means[1]:.3f}"
        )


def boxes(model: Sam3D, folder: Path, most: int) -> None:
    """Measure a box alone, decoded as a box, and with the outlines of rough masks in it."""
    rows = []
    for number, (_, volume, truth) in enumerate(labelled_objects(folder, most)):
        box = jittered_box(truth, np.random.default_rng(number))
        cache, row = EmbeddingCache(1 << 29), []
        for redraws in (False, True):
            model.redraws_outlines = redraws
            predictor = VolumePredictor(model, cache=cache, refine=False)
            predictor.set_volume(volume)
            row.append(dice(predictor.predict(boxes=[box]).mask, truth))
        rows.append(row)
    as_box, as_outline = np.mean(rows, axis=0)
    print(f"{len(rows)} objects, a box alone: as a box {as_box:.3f}, with outlines {as_outline:.3f}")


def clicked(
    model: Sam3D,
    framing: Framing,
    cache: EmbeddingCache,
    volume: Volume,
    truth: NDArray[np.bool_],
    *,
    clicks: int,
) -> list[float]:
    """Return the Dice after each click."""
    predictor = VolumePredictor(model, framing=framing, cache=cache, refine=False)
    predictor.set_volume(volume)
    return [step.dice for step in click_through(predictor, truth, clicks=clicks)]


def means(rows: list[list[float]]) -> str:
    return " / ".join(f"{mean:.3f}" for mean in np.mean(rows, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=4, help="objects of a dataset")
    parser.add_argument("--windows", type=int, default=96, help="windows for the candidates")
    parser.add_argument(
        "--only", choices=["candidates", "windows", "clicks", "alternatives", "boxes"], help="one part"
    )
    parser.add_argument("--split", default="train", help="cases for the alternatives")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    options = parser.parse_args()
    model = load_model(options.model)
    assert isinstance(model, Sam3D)
    if options.only in (None, "candidates"):
        candidates(model, options.folder, options.windows)
    if options.only in (None, "windows"):
        windows(model, options.folder, options.most)
    if options.only in (None, "clicks"):
        later_clicks(model, options.folder, options.most)
    if options.only in (None, "boxes"):
        boxes(model, options.folder, options.most)
    if options.only in (None, "alternatives"):
        alternatives(model, options.folder, options.most, options.split)


if __name__ == "__main__":
    main()
