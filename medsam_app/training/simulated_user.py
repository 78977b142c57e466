"""Simulated user who prompts a batch of training windows and corrects the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsam_app.grid.patch import Index
from medsam_app.models.sam3d import RoiPrompts
from medsam_app.predict.windowed.tiles import sure_of
from medsam_app.prompts.simulated_clicks import click_inside, largest_component, next_click

#: Probability of each kind of first prompt; see `Interaction`.
STARTS = {
    "click": 0.52, "clicks": 0.08, "box": 0.11, "flat box": 0.06, "box and click": 0.08, "mask": 0.07,
    "outline": 0.08,
}  # fmt: skip
#: Probability of a click where the mask is already right.
REDUNDANT = 0.12
#: Probability of a round without a new click, in which only the mask is fed back.
SILENT = 0.06
#: Probability of a click anywhere in the largest error instead of at its centre.
HURRIED = 0.4
#: Standard deviation of the jitter of a box's corners, as a fraction of its size.
BOX_JITTER = 0.07


class Interaction:
    """Prompts of a batch, given and extended by a simulated user.

    The first prompt is one of: a click (deepest or anywhere inside), two or three clicks, a 3D box, a box on
    one slice, a box with a click inside, a rough mask with a correcting click, or a rough outline to be
    refined, as in a tile of a large object.

    Args:
        targets: (B, 1, X, Y, Z) booleans, each with at least one voxel unless the sample is unprompted.
        rng: source of random choices; one generator per sample makes the choices independent of the batch.
        starts: probability of each kind of first prompt; `STARTS` by default.
        unprompted: (B,) whether the sample starts without a prompt.
    """

    def __init__(
        self,
        targets: Tensor,
        rng: np.random.Generator | Sequence[np.random.Generator],
        *,
        starts: Mapping[str, float] | None = None,
        unprompted: Sequence[bool] | None = None,
    ) -> None:
        self.truth = targets[:, 0].cpu().numpy()
        self.device = targets.device
        batch = len(targets)
        self.rngs = rng.spawn(batch) if isinstance(rng, np.random.Generator) else list(rng)
        starts = STARTS if starts is None else starts
        self.clicks: list[list[tuple[Index, bool]]] = [[] for _ in range(batch)]
        self.boxes = np.full((batch, 2, 3), np.nan, dtype=np.float32)
        self.mask: Tensor | None = None
        self.seeds: Tensor | None = None
        rough = np.zeros(self.truth.shape, dtype=np.float32)
        seeds = np.zeros(self.truth.shape, dtype=np.int8)
        for n in range(batch):
            kind = self.rngs[n].choice(list(starts), p=list(starts.values()))
            if unprompted is not None and unprompted[n]:
                continue
            if kind == "mask":
                rough[n] = self._rough_mask(n)
            elif kind == "outline":
                rough[n], seeds[n] = self._rough_outline(n)
            elif kind == "click":
                self._click_inside(n, anywhere=self.rngs[n].random() < 0.5)
            elif kind == "clicks":
                for _ in range(int(self.rngs[n].integers(2, 4))):
                    self._click_inside(n, anywhere=True)
            else:
                flat = kind == "flat box" or (kind != "box" and self.rngs[n].random() < 0.3)
                self.boxes[n] = self._box(n, flat=flat)
            if kind == "box and click":
                self._click_inside(n, anywhere=True)
        if rough.any():
            self.mask = torch.from_numpy(rough)[:, None].to(self.device)
        if seeds.any():
            self.seeds = torch.from_numpy(seeds)[:, None].to(self.device)

    def first_clicks(self) -> None:
        """Click on the deepest voxel of each sample that has no click yet."""
        for n, clicks in enumerate(self.clicks):
            if not clicks and self.truth[n].any():
                self._click_inside(n, anywhere=False)

    def prompts(self) -> RoiPrompts:
        """Return the prompts so far in the form the model accepts."""
        most = max(1, max(len(c) for c in self.clicks))
        coords = torch.zeros(len(self.clicks), most, 3)
        labels = torch.full((len(self.clicks), most), -1)
        for n, clicks in enumerate(self.clicks):
            for m, (voxel, positive) in enumerate(clicks):
                coords[n, m] = torch.tensor(voxel, dtype=torch.float32)
                labels[n, m] = int(positive)
        boxes = None if np.isnan(self.boxes).all() else torch.from_numpy(self.boxes).to(self.device)
        return RoiPrompts(coords.to(self.device), labels.to(self.device), boxes, self.mask, self.seeds)

    def correct(self, logits: Tensor, *, careful: bool = False) -> None:
        """Feed the mask back and add a click in the largest error of each sample.

        Args:
            logits: (B, 1, X, Y, Z) output of the model.
            careful: always click, at the centre of the largest error, instead of varying as people do.
        """
        self.mask = torch.sigmoid(logits.detach().float())
        masks = (logits.detach()[:, 0] > 0).cpu().numpy()
        for n, mask in enumerate(masks):
            if not careful and self.rngs[n].random() < SILENT:
                continue
            hurried = not careful and self.rngs[n].random() < HURRIED
            redundant = not careful and self.rngs[n].random() < REDUNDANT
            click = self._redundant(n, mask) if redundant else None
            click = click or next_click(mask, self.truth[n], rng=self.rngs[n] if hurried else None)
            if click is not None:
                self.clicks[n].append(click)

    def _click_inside(self, n: int, *, anywhere: bool) -> None:
        self.clicks[n].append((click_inside(self.truth[n], rng=self.rngs[n] if anywhere else None), True))

    def _redundant(self, n: int, mask: NDArray[np.bool_]) -> tuple[Index, bool] | None:
        """Return a click where the mask is already right; None if no such voxel exists."""
        truth = self.truth[n]
        positive = self.rngs[n].random() < 0.6
        right = (
            (mask & truth)
            if positive
            else ndimage.binary_dilation(mask | truth, iterations=4) & ~(mask | truth)
        )
        voxels = np.flatnonzero(right)
        if not len(voxels):
            return None
        voxel = np.unravel_index(int(self.rngs[n].choice(voxels)), truth.shape)
        return (int(voxel[0]), int(voxel[1]), int(voxel[2])), positive

    def _box(self, n: int, *, flat: bool) -> NDArray[np.float32]:
        part, box = largest_component(self.truth[n])
        low = np.array([s.start for s in box], dtype=np.float32)
        high = np.array([s.stop - 1 for s in box], dtype=np.float32)
        axis = int(self.rngs[n].integers(3))
        if flat:
            counts = part.sum(axis=tuple(a for a in range(3) if a != axis))
            index = int(counts.argmax())
            span = np.argwhere(part.take(index, axis=axis))
            in_plane = [a for a in range(3) if a != axis]
            start = np.array([box[a].start for a in in_plane])
            low[in_plane], high[in_plane] = start + span.min(0), start + span.max(0)
            low[axis] = high[axis] = box[axis].start + index
        jitter = self.rngs[n].normal(size=(2, 3)) * BOX_JITTER * (high - low)
        size = np.array(self.truth.shape[1:]) - 1
        corners = np.clip(np.stack([low, high]) + jitter, 0, size)
        return np.sort(corners, axis=0).astype(np.float32)

    def _rough_mask(self, n: int) -> NDArray[np.bool_]:
        """Return the truth grown, shrunk or moved, like another tool's mask; add clicks that correct it."""
        truth = self.truth[n]
        steps = int(self.rngs[n].integers(1, 4))
        morph = ndimage.binary_dilation if self.rngs[n].random() < 0.5 else ndimage.binary_erosion
        rough = morph(truth, iterations=steps)
        rough = np.roll(rough, tuple(self.rngs[n].integers(-2, 3, size=3)), axis=(0, 1, 2))
        rough = rough if rough.any() else truth
        if (rough & truth).any():  # the predictor adds a click in the middle of a given mask
            self.clicks[n].append((click_inside(rough & truth), True))
        click = next_click(rough, truth)
        if click is not None:
            self.clicks[n].append(click)
        return rough

    def _rough_outline(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """Return the probability of a blurred, slightly wrong outline, and its certain voxels (`sure_of`)."""
        truth = self.truth[n]
        signed = ndimage.distance_transform_edt(truth) - ndimage.distance_transform_edt(~truth)
        rng = self.rngs[n]
        displacement = ndimage.gaussian_filter(rng.normal(size=truth.shape), rng.uniform(2.0, 6.0))
        signed += displacement / max(float(displacement.std()), 1e-6) * rng.uniform(0.3, 2.0)
        blurred = ndimage.gaussian_filter(signed, 1.0).clip(-20, 20)
        probability = (1 / (1 + np.exp(-blurred / 1.2))).astype(np.float32)
        seeds = sure_of(probability > 0.5)
        if (probability > 0.5).any():
            self.clicks[n].append((click_inside(probability > 0.5), True))
        return probability, seeds
