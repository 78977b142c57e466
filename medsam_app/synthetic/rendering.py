"""Rendering of label maps as images with scanner-like statistics.

Every label has a random mean, spread and texture scale, as in SynthSeg (Billot et al., Medical Image Analysis
2023), so the same code renders random anatomy and real label maps. An invisible target cannot be learned:
`hidden_share` measures how much of an outline is invisible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_app.synthetic.anatomy import label_in
from medsam_app.synthetic.sampler import Draws, blur, thick_slices

#: Scales of texture, in waves per 64 voxels.
SCALES = (8, 16, 30)
#: A step between two labels is visible from this many standard deviations of noise and texture.
LEAST_STEP = 0.5
#: Least step times the square root of an outline's faces: short outlines need a larger step.
LEAST_CERTAINTY = 10.0
#: Texture is only visible for a target whose outline has at least this many faces.
TEXTURED_FACES = 300
#: Largest fraction of a target's outline that may be invisible.
MOST_HIDDEN = 0.5


@dataclass
class Palette:
    """Intensity statistics of the labels of a label map; intensities are about 0 to 1.

    Attributes:
        means, spreads: (count,) mean and standard deviation of each label.
        scales: (count,) index into SCALES of each label's texture.
        noise: standard deviation of the scanner's noise.
        blur: standard deviation of the point-spread function in voxels.
        bias: standard deviation of the logarithm of the bias field.
    """

    means: NDArray[np.float64]
    spreads: NDArray[np.float64]
    scales: NDArray[np.int64]
    noise: float
    blur: float
    bias: float

    def shows(self, faces: int) -> NDArray[np.bool_]:
        """Return whether edges between labels are visible.

        An edge is visible if the means differ, if one texture is stronger than the other, or if the textures
        have different scales.

        Args:
            faces: number of voxel faces of the edge.

        Returns:
            (count, count) booleans for pairs of labels.
        """
        grain = np.hypot(self.spreads, self.noise)
        weaker, stronger = np.minimum(grain[:, None], grain), np.maximum(grain[:, None], grain)
        needed = max(LEAST_STEP, LEAST_CERTAINTY / max(1, faces) ** 0.5)
        step = np.abs(self.means[:, None] - self.means) >= np.maximum(needed * stronger, 0.01)
        if faces < TEXTURED_FACES:
            return step
        rough = np.minimum(self.spreads[:, None], self.spreads) >= max(0.02, 1.5 * self.noise)
        return (
            step
            | (stronger >= np.maximum(2 * weaker, 0.03))
            | (rough & (self.scales[:, None] != self.scales))
        )


def random_palette(draws: Draws, count: int, target: list[int], kin: list[list[int]]) -> Palette:
    """Return a random palette of a CT, MR or PET image, sometimes with a faint target.

    Args:
        draws: random choices.
        count: number of labels.
        target: labels of the target; a faint target differs from most other labels by 1 to 2 standard
            deviations of the noise.
        kin: groups of labels with the same intensity statistics.
    """
    style = draws.uniform(0, 1)
    blurred, level = draws.uniform(0.25, 1.1), draws.log_uniform(0.02, 0.35) if draws.chance(0.7) else 0.0
    if style < 0.3:  # CT: soft tissues close together, some air, some bone
        means = 0.5 + 0.08 * draws.normals(count)
        kind = draws.uniforms(count)
        means = np.where(kind < 0.12, 0.0, np.where(kind > 0.9, 1.0, means))
        spreads = 0.02 * draws.uniforms(count)
    elif style < 0.43:  # PET: dark, a few hot regions
        hot = draws.uniforms(count) < 0.35
        means = np.where(hot, draws.uniform(0.3, 1.0), 0.15 * draws.uniforms(count))
        spreads = 0.2 * means * draws.uniforms(count)
        blurred = draws.uniform(0.5, 1.6)
    else:  # MR: anything
        means, spreads = draws.uniforms(count), 0.12 * draws.uniforms(count)
    scales = draws.choices.integers(0, len(SCALES), count)
    noise = level * max(0.1, float(means.std()))
    if draws.chance(0.15):
        noise, around = draws.uniform(0.02, 0.08), draws.uniform(0.2, 0.8)
        means = np.where(draws.uniforms(count) < 0.7, around + 0.2 * noise * draws.normals(count), means)
        sign = 1 if draws.chance(0.5) else -1
        faint = [*target, *(label for group in kin if set(group) & set(target) for label in group)]
        means[faint] = around + sign * noise * draws.uniform(1, 2)
        spreads *= min(1.0, noise / max(1e-6, float(spreads.max())))
    for group in kin:
        for values in (means, spreads, scales):
            values[group] = values[group[0]]
        means[group] += 0.3 * noise * draws.normals(len(group))
    bias = draws.uniform(0, 0.4) if draws.chance(0.6) else 0.0
    return Palette(means, spreads, scales, noise, blurred, bias)


def outline_pairs(labels: Tensor, inside: Tensor, count: int) -> NDArray[np.int64]:
    """Return the (count, count) number of faces of a target's outline for pairs of labels.

    Args:
        labels: (n, n, n) int64 below `count`.
        inside: (n, n, n) bool, the target.
        count: number of labels.
    """
    pairs = []
    for axis in range(3):
        length = labels.shape[axis] - 1
        before, after = (labels.narrow(axis, start, length) for start in (0, 1))
        first, second = (inside.narrow(axis, start, length) for start in (0, 1))
        pairs.append(((before * count + after) * (first ^ second)).flatten())
    faces = torch.bincount(torch.cat(pairs), minlength=count * count).view(count, count).cpu().numpy()
    faces[0, 0] = 0  # this entry counts the faces that are not on the outline
    return faces


def hidden_share(pairs: NDArray[np.int64], palette: Palette) -> float:
    """Return the fraction of an outline that is invisible in the image; 0 without an outline."""
    faces = int(pairs.sum())
    return float((pairs * ~palette.shows(faces)).sum() / max(1, faces))


def paint(draws: Draws, labels: Tensor, palette: Palette) -> Tensor:
    """Return the image (n, n, n) of a label map (n, n, n) int64, before noise and thick slices."""
    n, device = labels.shape[0], labels.device
    flat = labels.flatten()

    def spread_out(values: NDArray[np.float64]) -> Tensor:
        table = torch.tensor(values, dtype=torch.float32, device=device)
        return table.index_select(0, flat).view(n, n, n)

    image = spread_out(palette.means)
    for scale, waves in enumerate(SCALES):
        spreads = np.where(palette.scales == scale, palette.spreads, 0.0)
        if spreads.any():
            image += spread_out(spreads) * draws.smooth(n, max(2, waves * n // 64))
    image = blur(image, palette.blur)
    if palette.bias:
        image *= torch.exp(palette.bias * draws.smooth(n, draws.integer(1, 3)))
    return image


def painted(
    draws: Draws, labels: Tensor, count: int, target: list[int], kin: list[list[int]] | None = None
) -> Tensor | None:
    """Return an image (n, n, n) of a label map with a visible target, or None if all attempts hide it."""
    pairs = outline_pairs(labels, label_in(labels, target), count)
    for _ in range(4):
        palette = random_palette(draws, count, target, kin or [])
        if hidden_share(pairs, palette) <= MOST_HIDDEN:
            return degrade(draws, paint(draws, labels, palette), palette.noise)
    return None


def degrade(draws: Draws, image: Tensor, noise: float | None = None) -> Tensor:
    """Return a synthetic or real image (n, n, n) with random thick slices, noise and contrast.

    Args:
        draws: random choices.
        image: (n, n, n) intensities in any unit.
        noise: standard deviation of the noise in that unit (about half of it for correlated noise); None for
            a random fraction of the image's standard deviation.
    """
    n = image.shape[0]
    if noise is None:
        level = draws.log_uniform(0.02, 0.35) if draws.chance(0.7) else 0.0
        strength: Tensor | float = level * image.std()
    else:
        level = strength = noise
    if draws.chance(0.35):
        count = max(4, int(n / draws.uniform(1.5, 5)))
        image = thick_slices(image, draws.integer(0, 2), count, smooth=draws.chance(0.7))
    if level:
        grain = draws.noise(n, n, n)
        if draws.chance(0.3):  # noise correlated between neighbours, as after a smoothing reconstruction
            grain = blur(grain, 0.7) * 2
        image = image + grain * strength
    if draws.chance(0.5):
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp_min(1e-6)) ** draws.log_uniform(0.6, 1.7)
    return -image if draws.chance(0.08) else image
