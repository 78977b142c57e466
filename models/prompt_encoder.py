"""Prompt encoder: points, boxes and a previous mask as dense maps and as tokens.

Training with sparse tokens alone is slow. Prompts are therefore also painted at full resolution, together
with each voxel's similarity to the clicked voxels and the result of a random walker.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.models.encoder import Embedding
from medsam_app.models.random_walker import random_walker

#: Standard deviations of the Gaussians painted at clicks, in voxels of the window.
SIGMAS = (1.5, 6.0)
#: Narrow and wide Gaussian of inside and of outside clicks, similarity to both in two views, previous mask,
#: box, random walker.
DENSE_CHANNELS = 11
#: Maximum iterations of the random walker for each scale, in voxels of the window per voxel of the walker.
#: Stopping before convergence keeps the result nearer to the clicks, which was better on labelled cases and
#: takes less time.
WALKS = {2: 60, 1: 60}
#: Radius in voxels of the random walker's seed at the first click; the others have radius 1.
FIRST_SEED = 2
#: Reach of a click in the contest: in voxels of the window, and in standard deviations of its intensities.
#: The last number is the total weight of both kinds of click at which the contest has half its effect.
CONTEST_SIGMA, CONTEST_CONTRAST, CONTEST_HALF = 6.0, 0.5, 0.3


@dataclass
class RoiPrompts:
    """Prompts in voxel indices of the window.

    Attributes:
        coords: (B, N, 3) float voxel indices (x, y, z).
        labels: (B, N) integers: 1 inside, 0 outside, -1 padding.
        boxes: (B, 2, 3) lower and upper corner, both inside the box; NaN for a sample without a box. A box
            on a slice has both corners on that slice.
        mask: (B, 1, X, Y, Z) probability of a previous mask, or None.
        seeds: (B, 1, X, Y, Z) integers: 1 certainly inside, -1 certainly outside, 0 unknown; or None. The
            random walker starts from them instead of treating the window's faces as outside.
        learned: (B, T, C) an adapter's learned prompt, which is added to the decoder's mask tokens; NaN for a
            sample without one.
    """

    coords: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    mask: Tensor | None = None
    seeds: Tensor | None = None
    learned: Tensor | None = None


def _bump(coords: Tensor, shape: torch.Size, sigma: float, present: Tensor) -> Tensor:
    """Return a Gaussian (B, X, Y, Z) around one (B, 3) voxel per sample; zero if `present` (B,) is False."""
    profiles = []
    for axis, n in enumerate(shape):
        offset = torch.arange(n, device=coords.device) - coords[:, axis, None]
        profiles.append(torch.exp(-offset.square() / (2 * sigma**2)))
    profiles[0] = profiles[0] * present[:, None]
    return profiles[0][:, :, None, None] * profiles[1][:, None, :, None] * profiles[2][:, None, None, :]


def sample_at(features: Tensor, coords: Tensor) -> Tensor:
    """Sample (B, C, X, Y, Z) trilinearly at (B, N, 3) voxel indices of the same grid: (B, N, C)."""
    size = torch.tensor(features.shape[2:], device=coords.device, dtype=coords.dtype)
    where = ((coords + 0.5) * 2 / size - 1).flip(-1)[:, :, None, None, :]
    out = F.grid_sample(features.float(), where.float(), padding_mode="border", align_corners=False)
    return out.flatten(2).transpose(1, 2)


def _box_map(boxes: Tensor, shape: torch.Size) -> Tensor:
    """Paint boxes: (B, 1, X, Y, Z), 1 inside the box, 0 outside and for samples without a box.

    A box on a slice has no extent across the slice; it is painted as wide there as its longest side.
    """
    lower, upper = boxes[:, 0], boxes[:, 1]
    flat = upper - lower < 1
    half_width = (upper - lower).amax(dim=1, keepdim=True) / 2
    lower = torch.where(flat, lower - half_width, lower)
    upper = torch.where(flat, upper + half_width, upper)
    inside = torch.ones(len(boxes), 1, *shape, dtype=torch.bool, device=boxes.device)
    for axis, n in enumerate(shape):
        index = torch.arange(n, device=boxes.device)
        covered = (index >= lower[:, axis, None] - 0.5) & (index <= upper[:, axis, None] + 0.5)
        line_shape = [len(boxes), 1, 1, 1, 1]
        line_shape[axis + 2] = n
        inside &= covered.view(line_shape)
    return inside.float()


class PromptEncoder(nn.Module):
    """Dense maps and sparse tokens of the prompts.

    Args:
        dim: channels of the tokens.
        coarse: channels of the encoder's features at stride 8, which are sampled at the clicks.
    """

    frequencies: Tensor

    def __init__(self, *, dim: int, coarse: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, dim // 2) * 1.5)
        self.kinds = nn.Embedding(4, dim)  # outside click, inside click, lower corner, upper corner
        self.from_image = nn.Linear(coarse, dim)

    def position(self, coords: Tensor, shape: torch.Size) -> Tensor:
        """Return random Fourier features (..., dim) of (..., 3) voxel indices, as in SAM."""
        size = torch.tensor(shape, device=coords.device, dtype=torch.float32)
        unit = (coords.float() + 0.5) / size * 2 - 1
        angle = 2 * torch.pi * unit @ self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def grid_position(self, shape: torch.Size) -> Tensor:
        """Return the position encodings (X Y Z, dim) of all voxels of a feature map, in C order."""
        axes = [torch.arange(n, device=self.frequencies.device) for n in shape]
        return self.position(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2), shape)

    def tokens(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        """Return the tokens of clicks and corners (B, T, dim), and False for padding tokens (B, T)."""
        shape = embedding.image.shape[2:]
        coords, labels = prompts.coords.float(), prompts.labels
        if prompts.boxes is not None:
            corners = prompts.boxes.float()
            present = ~torch.isnan(corners).any(-1)
            corner_kinds = torch.tensor([2, 3], device=labels.device)
            labels = torch.cat([labels, torch.where(present, corner_kinds, -1)], dim=1)
            coords = torch.cat([coords, torch.nan_to_num(corners)], dim=1)
        stride = shape[0] / embedding.coarse.shape[2]
        features = sample_at(embedding.coarse, (coords + 0.5) / stride - 0.5)
        tokens = self.position(coords, shape) + self.kinds(labels.clamp_min(0)) + self.from_image(features)
        return tokens, labels >= 0

    @torch.no_grad()
    def dense(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        """Paint the prompts on the window.

        Returns:
            The dense channels (B, 11, X, Y, Z), and the random walker's evidence (B, 1, X, Y, Z) in [-1, 1],
            zero for samples without an inside seed.
        """
        image, shape = embedding.image, embedding.image.shape[2:]
        coords, labels = prompts.coords.float(), prompts.labels
        batch = len(image)
        channels = image.new_zeros(batch, DENSE_CHANNELS, *shape)
        clicked = sample_at(embedding.smooth, coords)
        for kind, bump_at, likeness_at in ((1, 0, 4), (0, 2, 6)):
            chosen = labels == kind
            difference = torch.full_like(image, 2.0)  # the largest possible difference of intensities
            for n in torch.nonzero(chosen.any(0)).flatten().tolist():
                present = chosen[:, n]
                for offset, sigma in enumerate(SIGMAS):
                    bumps = channels[:, bump_at + offset]
                    torch.maximum(bumps, _bump(coords[:, n], shape, sigma, present), out=bumps)
                click_difference = (image - clicked[:, n, :, None, None, None]).abs_()
                torch.minimum(
                    difference, click_difference.add_(2.0 * ~present.view(-1, 1, 1, 1, 1)), out=difference
                )
            any_click = chosen.any(1).view(-1, 1, 1, 1, 1)
            channels[:, likeness_at : likeness_at + 2] = (1 - difference) * any_click
        if prompts.mask is not None:
            channels[:, 8:9] = prompts.mask
        box = None
        if prompts.boxes is not None:
            box = _box_map(prompts.boxes.float(), shape)
            channels[:, 9:10] = box
        probability, has_seeds = self._walk(embedding, prompts, box)
        channels[:, 10:11] = probability
        return channels, (2 * probability - 1) * has_seeds

    @torch.no_grad()
    def contest(self, embedding: Embedding, prompts: RoiPrompts) -> Tensor:
        """Compare inside and outside clicks at each voxel, by nearness times similarity of intensity.

        The weights of all clicks of a kind are summed.

        Returns:
            (B, 1, X, Y, Z) from -1 (outside clicks) to 1 (inside clicks); 0 far from all clicks, and in
            windows with clicks of one kind only, which do not define a boundary.
        """
        image, coords, labels = embedding.image, prompts.coords.float(), prompts.labels
        scale = 1 / (CONTEST_CONTRAST * image.flatten(2).std(-1).clamp_min(1e-4))[..., None, None, None]
        clicked = sample_at(image, coords.round())
        inside, outside = torch.zeros_like(image[:, :1]), torch.zeros_like(image[:, :1])
        for n in range(labels.shape[1]):
            difference = (
                (image - clicked[:, n, :, None, None, None]).mul_(scale).square_().mean(1, keepdim=True)
            )
            nearness = _bump(coords[:, n], image.shape[2:], CONTEST_SIGMA, labels[:, n] >= 0)[:, None]
            weight = difference.div_(-2).exp_().mul_(nearness)
            kind = labels[:, n].view(-1, 1, 1, 1, 1)
            inside.addcmul_(weight, (kind == 1).to(weight))
            outside.addcmul_(weight, (kind == 0).to(weight))
        both_kinds = ((labels == 1).any(1) & (labels == 0).any(1)).view(-1, 1, 1, 1, 1)
        return (inside - outside) / (inside + outside + CONTEST_HALF) * both_kinds

    def _walk(self, embedding: Embedding, prompts: RoiPrompts, box: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the random walker's probability, and whether there is an inside seed (B, 1, 1, 1, 1).

        The result at half resolution is the initial guess at full resolution, where a few iterations then
        suffice.
        """
        inside, outside = _seeds(prompts, box, embedding.valid, 1)
        has_seeds = inside.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        if not has_seeds.any():
            return torch.zeros_like(embedding.image[:, :1]), has_seeds
        coarse, valid = embedding.half
        probability = random_walker(coarse, valid, *_seeds(prompts, box, valid, 2), iterations=WALKS[2])
        start = F.interpolate(probability, scale_factor=2.0, mode="trilinear", align_corners=False)
        probability = random_walker(
            embedding.image, embedding.valid, inside, outside, start=start, iterations=WALKS[1]
        )
        return probability * has_seeds, has_seeds


def _seeds(prompts: RoiPrompts, box: Tensor | None, valid: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Return the random walker's inside and outside seeds, each (B, 1, X, Y, Z) booleans.

    Args:
        prompts: prompts in voxels of the window.
        box: (B, 1, ...) box painted on the window, or None.
        valid: (B, 1, X, Y, Z) booleans; only the shape is used.
        scale: voxels of the window per voxel of the seeds, along each axis.
    """
    shape, device = valid.shape[2:], valid.device
    inside, outside = torch.zeros_like(valid), torch.zeros_like(valid)
    for axis, n in enumerate(shape):
        outside.narrow(axis + 2, 0, 1).fill_(True)
        outside.narrow(axis + 2, n - 1, 1).fill_(True)
    if prompts.seeds is not None:
        certainty = F.avg_pool3d(prompts.seeds.float(), scale)
        seeded = prompts.seeds.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        inside = certainty > 0.5
        outside = torch.where(seeded, certainty < -0.5, outside)
    coords, labels = (prompts.coords.float() + 0.5) / scale - 0.5, prompts.labels
    if box is not None and prompts.boxes is not None:
        box_voxels = F.max_pool3d(box, scale) > 0
        has_box = box_voxels.flatten(1).any(1)
        outside |= ~box_voxels & has_box.view(-1, 1, 1, 1, 1)
        # A box without an inside click has its seed in the centre.
        centre = (torch.nan_to_num(prompts.boxes.float()).mean(1, keepdim=True) + 0.5) / scale - 0.5
        box_only = has_box & ~(labels == 1).any(1)
        coords = torch.cat([coords, centre], dim=1)
        labels = torch.cat([labels, torch.where(box_only, 1, -1)[:, None]], dim=1)
    rounded = torch.nan_to_num(coords).round().long().tolist()
    for sample, (positions, kinds) in enumerate(zip(rounded, labels.tolist(), strict=True)):
        radius = FIRST_SEED
        for position, kind in zip(positions, kinds, strict=True):
            if kind < 0:
                continue
            box_slices, ball = _ball(position, radius, shape)
            # The latest click wins where two seeds overlap.
            same, opposite = (inside, outside) if kind == 1 else (outside, inside)
            same[sample, 0][box_slices] |= ball.to(device)
            opposite[sample, 0][box_slices] &= ~ball.to(device)
            radius = 1
    return inside, outside


def _ball(centre: list[int], radius: int, shape: torch.Size) -> tuple[tuple[slice, ...], Tensor]:
    """Return the slices of a ball's bounding box in a window, and the ball's voxels in that box."""
    box, squared_distances = [], []
    for index, size in zip(centre, shape, strict=True):
        first = max(0, index - radius)
        last = max(first, min(size, index + radius + 1))
        box.append(slice(first, last))
        squared_distances.append((torch.arange(first, last) - index).square())
    x, y, z = torch.meshgrid(*squared_distances, indexing="ij")
    return tuple(box), x + y + z <= radius**2
