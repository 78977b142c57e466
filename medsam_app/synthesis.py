"""Synthetic training windows: random anatomy, painted the way scanners paint.

Everything is seeded through a `torch.Generator`. Windows are cubes of voxels without a unit; a label
map (n, n, n) is made first, then an image is painted from it by `paint` (as SynthSeg does: Billot et
al., Medical Image Analysis 2023), so that the same painter serves random shapes and real label maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Draws:
    """The random choices of one sample: a generator with the few draws used here."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def smooth(self, n: int, cells: int) -> Tensor:
        """(n, n, n) noise of unit variance that varies over about n / cells voxels."""
        coarse = self.normal(1, 1, cells + 2, cells + 2, cells + 2)
        noise = F.interpolate(coarse, size=(n, n, n), mode="trilinear", align_corners=True)[0, 0]
        return noise / noise.std().clamp_min(1e-3)


def _grid(n: int) -> Tensor:
    """(n, n, n, 3) voxel centres in [-1, 1]."""
    line = torch.linspace(-1, 1, n)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)


def _rotation(draws: Draws) -> Tensor:
    q, _ = torch.linalg.qr(draws.normal(3, 3))
    return q


def _blob(draws: Draws, n: int, centre: Tensor, size: float) -> Tensor:
    """Signed field, negative inside: an ellipsoid with a bumpy surface."""
    radii = size * torch.exp(0.35 * draws.normal(3))
    x = (_grid(n) - centre) @ _rotation(draws) / radii
    return x.norm(dim=-1) - 1 + draws.uniform(0, 0.35) * draws.smooth(n, draws.integer(2, 8))


def _tube(draws: Draws, n: int, centre: Tensor, size: float) -> Tensor:
    """Signed field of a branching vessel."""
    grid, field = _grid(n), torch.full((n, n, n), 9.0)
    start, direction = centre, F.normalize(draws.normal(3), dim=0)
    radius = max(1.3 * 2 / n, size * draws.uniform(0.1, 0.35))
    nodes = [(start, direction, radius), (start, -direction, radius)]
    for _ in range(draws.integer(0, 3)):
        nodes.append(
            (start + draws.uniform(-1, 1) * direction, F.normalize(draws.normal(3), dim=0), radius * 0.7)
        )
    for start, direction, radius in nodes:
        for _ in range(5):
            step = size * 0.6
            offset = grid - start
            along = (offset @ direction).clamp(0, step)
            distance = (offset - along[..., None] * direction).norm(dim=-1)
            field = torch.minimum(field, distance / radius - 1)
            start = start + step * direction
            direction = F.normalize(direction + 0.4 * draws.normal(3), dim=0)
            radius = max(1.3 * 2 / n, radius * draws.uniform(0.8, 1.05))
    return field + draws.uniform(0, 0.15) * draws.smooth(n, 6)


def _sheet(draws: Draws, n: int, centre: Tensor, size: float) -> Tensor:
    """Signed field of a thin curved sheet."""
    x = (_grid(n) - centre) @ _rotation(draws)
    bend = draws.uniform(0, 0.3) * draws.smooth(n, 2)
    thickness = max(2.5 / n, size * draws.uniform(0.08, 0.25))
    across = (x[..., 0] + bend).abs() / thickness - 1
    return torch.maximum(across, x[..., 1:].norm(dim=-1) / (1.5 * size) - 1)


def _noise(draws: Draws, n: int, centre: Tensor, size: float) -> Tensor:
    """Signed field of a cloud: thresholded noise within reach of the centre."""
    cloud = sum(draws.smooth(n, 2**k) / 2**k for k in range(1, 4))
    reach = (_grid(n) - centre).norm(dim=-1) / (1.5 * size)
    return torch.maximum(reach - 1, draws.uniform(-0.3, 0.2) - cloud + 0.5 * reach)


_SHAPES = (_blob, _blob, _blob, _tube, _sheet, _noise)


def random_anatomy(draws: Draws, n: int) -> tuple[Tensor, Tensor]:
    """Random tissue with random objects in it.

    Returns:
        labels (n, n, n) int64, and a target (n, n, n) bool made of one or a few of the labels.
    """
    tissues = draws.integer(1, 5)
    fields = torch.stack([draws.smooth(n, draws.integer(1, 5)) for _ in range(tissues)])
    labels = fields.argmax(0)
    if draws.chance(0.3):  # air around a body
        body = _blob(draws, n, 0.3 * draws.normal(3), draws.uniform(0.8, 1.2))
        labels = torch.where(body < 0, labels, tissues)
    next_label = tissues + 1
    chosen: list[int] = []
    count = draws.integer(1, 6)
    wanted = draws.integer(0, count - 1)
    for index in range(count):
        target = index == wanted
        centre = (
            draws.uniform(0, 0.45) * F.normalize(draws.normal(3), dim=0) if target else draws.rand(3) * 2 - 1
        )
        size = draws.log_uniform(0.1, 1.5 if target and draws.chance(0.3) else 0.8)
        field = _SHAPES[draws.integer(0, len(_SHAPES) - 1)](draws, n, centre, size)
        labels = torch.where(field < 0, next_label, labels)
        parts = [next_label]
        next_label += 1
        if draws.chance(0.3):  # a wall around a lumen, or a lesion within an organ
            inner = (
                field + draws.uniform(0.15, 0.5) if draws.chance(0.6) else _blob(draws, n, centre, size * 0.4)
            )
            labels = torch.where((inner < 0) & (field < 0), next_label, labels)
            parts.append(next_label)
            next_label += 1
        if target:
            chosen = parts if draws.chance(0.5) else [parts[draws.integer(0, len(parts) - 1)]]
    if draws.chance(0.12):  # a whole tissue instead
        chosen = [draws.integer(0, tissues - 1)]
    return labels, torch.isin(labels, torch.tensor(chosen))


def _blur(image: Tensor, sigma: float) -> Tensor:
    if sigma < 0.2:
        return image
    radius = max(1, math.ceil(2.5 * sigma))
    line = torch.exp(-torch.arange(-radius, radius + 1).float().square() / (2 * sigma**2))
    line = line / line.sum()
    x = image[None, None]
    for axis in range(3):
        view, pad = [1, 1, 1, 1, 1], [0] * 6
        view[axis + 2] = len(line)
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        x = F.conv3d(F.pad(x, pad, mode="replicate"), line.view(view))
    return x[0, 0]


def paint(draws: Draws, labels: Tensor) -> Tensor:
    """An image of a label map, with the statistics of CT, MR or PET.

    Args:
        labels: (n, n, n) int64.

    Returns:
        (n, n, n) float32, arbitrary unit.
    """
    n, count = labels.shape[0], int(labels.max()) + 1
    style = draws.uniform(0, 1)
    if style < 0.35:  # CT: soft tissues close together, some air, some bone
        means = 0.5 + 0.08 * draws.normal(count)
        kind = draws.rand(count)
        means = torch.where(kind < 0.12, 0.0, torch.where(kind > 0.9, 1.0, means))
        spreads = 0.02 * draws.rand(count)
    elif style < 0.5:  # PET: dark, a few hot regions
        means = torch.where(draws.rand(count) < 0.35, draws.uniform(0.3, 1.0), 0.15 * draws.rand(count))
        spreads = 0.2 * means * draws.rand(count)
    else:  # MR: anything
        means, spreads = draws.rand(count), 0.12 * draws.rand(count)
    texture = draws.smooth(n, min(n // 2, draws.integer(6, 24)))
    image = means[labels] + spreads[labels] * texture
    image = _blur(image, draws.uniform(0, 2.0) if 0.35 <= style < 0.5 else draws.uniform(0, 1.1))
    if draws.chance(0.6):
        image = image * torch.exp(draws.uniform(0, 0.4) * draws.smooth(n, draws.integer(1, 3)))
    return image


def degrade(draws: Draws, image: Tensor) -> Tensor:
    """Thick slices, noise and contrast, for synthetic and real images alike: (n, n, n) to (n, n, n)."""
    n = image.shape[0]
    spread = image.std().clamp_min(1e-6)
    if draws.chance(0.35):
        size = [n, n, n]
        size[draws.integer(0, 2)] = max(4, int(n / draws.uniform(1.5, 5)))
        thick = F.interpolate(image[None, None], size=size, mode="area")
        mode = "trilinear" if draws.chance(0.7) else "nearest"
        image = F.interpolate(thick, size=(n, n, n), mode=mode)[0, 0]
    if draws.chance(0.7):
        noise = draws.normal(n, n, n)
        if draws.chance(0.3):
            noise = _blur(noise, 0.7) * 2
        image = image + noise * spread * draws.log_uniform(0.02, 0.35)
    if draws.chance(0.5):
        low, high = image.min(), image.max()
        image = ((image - low) / (high - low).clamp_min(1e-6)) ** draws.log_uniform(0.6, 1.7)
    return -image if draws.chance(0.08) else image
