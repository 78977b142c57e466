"""Prompt encoder: what points, boxes and a previous mask mean, as maps and as tokens.

Sparse tokens alone learn slowly; a prompt is therefore also painted at full resolution, next to how
alike every voxel is to the clicked ones and to what a random walker makes of the clicks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam_app.models.encoder import Embedding
from medsam_app.models.random_walker import random_walker

#: Widths, in voxels of the window, of the bumps painted at clicks.
SIGMAS = (1.5, 6.0)
#: near and far bump of inside and outside clicks, likeness to both in two views, previous mask, box, walker.
DENSE_CHANNELS = 11
#: Most steps of the random walker at each scale, voxels of the window along one of its own. Walks that are
#: not followed to their end stay nearer to the clicks, which was better on labelled cases, and quicker.
WALKS = {2: 60, 1: 60}
#: Radius in voxels of what the first click takes for its kind, for the walker; it is 1 for the others.
FIRST_SEED = 2
#: How far a click speaks for voxels around it that look like its own: voxels of the window, standard
#: deviations of the window's intensities; and what both kinds of click together weigh at half their say.
SAY_SIGMA, SAY_CONTRAST, SAY_HALF = 6.0, 0.5, 0.3


@dataclass
class RoiPrompts:
    """Prompts in voxel indices of the window.

    Attributes:
        coords: (B, N, 3) float voxel indices (x, y, z).
        labels: (B, N) integers: 1 inside, 0 outside, -1 padding.
        boxes: (B, 2, 3) lower and upper corner, both inside the box; NaN where there is none. A box
            on a slice has both corners on that slice.
        mask: (B, 1, X, Y, Z) probability of a previous mask, or None.
        seeds: (B, 1, X, Y, Z) integers: 1 surely inside, -1 surely outside, 0 not known; or None. They
            are what the random walker starts from, instead of taking the window's faces for outside.
        learned: (B, T, C) what is added to the decoder's own tokens, of which each makes a mask: what is
            looked for, as an adapter has learned it. NaN where a sample has none.
    """

    coords: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    mask: Tensor | None = None
    seeds: Tensor | None = None
    learned: Tensor | None = None


def _bump(coords: Tensor, shape: torch.Size, sigma: float, on: Tensor) -> Tensor:
    """(B, X, Y, Z) Gaussian around one (B, 3) voxel per sample, zero where `on` (B,) is False."""
    lines = []
    for axis, n in enumerate(shape):
        offset = torch.arange(n, device=coords.device) - coords[:, axis, None]
        lines.append(torch.exp(-offset.square() / (2 * sigma**2)))
    lines[0] = lines[0] * on[:, None]
    return lines[0][:, :, None, None] * lines[1][:, None, :, None] * lines[2][:, None, None, :]


def sample_at(features: Tensor, coords: Tensor) -> Tensor:
    """Trilinear samples of (B, C, X, Y, Z) at (B, N, 3) voxel indices of the same grid: (B, N, C)."""
    size = torch.tensor(features.shape[2:], device=coords.device, dtype=coords.dtype)
    where = ((coords + 0.5) * 2 / size - 1).flip(-1)[:, :, None, None, :]
    out = F.grid_sample(features.float(), where.float(), padding_mode="border", align_corners=False)
    return out.flatten(2).transpose(1, 2)


def _box_map(boxes: Tensor, shape: torch.Size) -> Tensor:
    """(B, 1, X, Y, Z): 1 inside the box, 0 elsewhere and where there is no box.

    A box on a slice says nothing across it: it is painted as wide across as its wider side.
    """
    lower, upper = boxes[:, 0], boxes[:, 1]
    flat = upper - lower < 1
    reach = (upper - lower).amax(dim=1, keepdim=True) / 2
    lower = torch.where(flat, lower - reach, lower)
    upper = torch.where(flat, upper + reach, upper)
    inside = torch.ones(len(boxes), 1, *shape, dtype=torch.bool, device=boxes.device)
    for axis, n in enumerate(shape):
        index = torch.arange(n, device=boxes.device)
        line = (index >= lower[:, axis, None] - 0.5) & (index <= upper[:, axis, None] + 0.5)
        view = [len(boxes), 1, 1, 1, 1]
        view[axis + 2] = n
        inside &= line.view(view)
    return inside.float()


class PromptEncoder(nn.Module):
    """Dense maps and sparse tokens of the prompts.

    Args:
        dim: width of the tokens.
        coarse: width of the encoder's features at stride 8, sampled at the clicks.
    """

    frequencies: Tensor

    def __init__(self, *, dim: int, coarse: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, dim // 2) * 1.5)
        self.kinds = nn.Embedding(4, dim)  # outside click, inside click, lower corner, upper corner
        self.from_image = nn.Linear(coarse, dim)

    def position(self, coords: Tensor, shape: torch.Size) -> Tensor:
        """Random Fourier features, as in SAM, of (..., 3) voxel indices: (..., dim)."""
        size = torch.tensor(shape, device=coords.device, dtype=torch.float32)
        unit = (coords.float() + 0.5) / size * 2 - 1
        angle = 2 * torch.pi * unit @ self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    def grid_position(self, shape: torch.Size) -> Tensor:
        """(X Y Z, dim) positions of every voxel of a feature map, in C order."""
        axes = [torch.arange(n, device=self.frequencies.device) for n in shape]
        return self.position(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2), shape)

    def tokens(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        """(B, T, dim) tokens of clicks and corners, and which of them are real (B, T)."""
        shape = embedding.image.shape[2:]
        coords, labels = prompts.coords.float(), prompts.labels
        if prompts.boxes is not None:
            corners = prompts.boxes.float()
            there = ~torch.isnan(corners).any(-1)
            kind = torch.tensor([2, 3], device=labels.device)
            labels = torch.cat([labels, torch.where(there, kind, -1)], dim=1)
            coords = torch.cat([coords, torch.nan_to_num(corners)], dim=1)
        stride = shape[0] / embedding.coarse.shape[2]
        looks = sample_at(embedding.coarse, (coords + 0.5) / stride - 0.5)
        tokens = self.position(coords, shape) + self.kinds(labels.clamp_min(0)) + self.from_image(looks)
        return tokens, labels >= 0

    @torch.no_grad()
    def dense(self, embedding: Embedding, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        """Prompts painted on the window.

        Returns:
            (B, 11, X, Y, Z) channels, and the walker's evidence (B, 1, X, Y, Z) in [-1, 1], zero where
            there is nothing to walk from.
        """
        image, shape = embedding.image, embedding.image.shape[2:]
        coords, labels = prompts.coords.float(), prompts.labels
        batch = len(image)
        channels = image.new_zeros(batch, DENSE_CHANNELS, *shape)
        looks = sample_at(embedding.smooth, coords)
        for kind, bump_at, alike_at in ((1, 0, 4), (0, 2, 6)):
            chosen = labels == kind
            unlike = torch.full_like(image, 2.0)  # the most that intensities can differ
            for n in torch.nonzero(chosen.any(0)).flatten().tolist():
                on = chosen[:, n]
                for offset, sigma in enumerate(SIGMAS):
                    bumps = channels[:, bump_at + offset]
                    torch.maximum(bumps, _bump(coords[:, n], shape, sigma, on), out=bumps)
                apart = (image - looks[:, n, :, None, None, None]).abs_()
                torch.minimum(unlike, apart.add_(2.0 * ~on.view(-1, 1, 1, 1, 1)), out=unlike)
            asked = chosen.any(1).view(-1, 1, 1, 1, 1)
            channels[:, alike_at : alike_at + 2] = (1 - unlike) * asked
        if prompts.mask is not None:
            channels[:, 8:9] = prompts.mask
        box = None
        if prompts.boxes is not None:
            box = _box_map(prompts.boxes.float(), shape)
            channels[:, 9:10] = box
        walk, there = self._walk(embedding, prompts, box)
        channels[:, 10:11] = walk
        return channels, (2 * walk - 1) * there

    @torch.no_grad()
    def contest(self, embedding: Embedding, prompts: RoiPrompts) -> Tensor:
        """For which kind of click each voxel is: nearness times likeness, summed over the clicks of a kind.

        Returns:
            (B, 1, X, Y, Z) from -1 (outside clicks) to 1 (inside clicks), 0 far from all and wherever a
            window has clicks of one kind alone, which do not say where the object ends.
        """
        image, coords, labels = embedding.image, prompts.coords.float(), prompts.labels
        scale = 1 / (SAY_CONTRAST * image.flatten(2).std(-1).clamp_min(1e-4))[..., None, None, None]
        looks = sample_at(image, coords.round())
        inside, outside = torch.zeros_like(image[:, :1]), torch.zeros_like(image[:, :1])
        for n in range(labels.shape[1]):
            unlike = (image - looks[:, n, :, None, None, None]).mul_(scale).square_().mean(1, keepdim=True)
            near = _bump(coords[:, n], image.shape[2:], SAY_SIGMA, labels[:, n] >= 0)[:, None]
            say = unlike.div_(-2).exp_().mul_(near)
            kind = labels[:, n].view(-1, 1, 1, 1, 1)
            inside.addcmul_(say, (kind == 1).to(say))
            outside.addcmul_(say, (kind == 0).to(say))
        both = ((labels == 1).any(1) & (labels == 0).any(1)).view(-1, 1, 1, 1, 1)
        return (inside - outside) / (inside + outside + SAY_HALF) * both

    def _walk(self, embedding: Embedding, prompts: RoiPrompts, box: Tensor | None) -> tuple[Tensor, Tensor]:
        """Random walker, and (B, 1, 1, 1, 1) whether there was an inside seed.

        What half the resolution shows is where the walker at full resolution begins: it need not go far.
        """
        inside, outside = _seeds(prompts, box, embedding.valid, 1)
        there = inside.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        if not there.any():
            return torch.zeros_like(embedding.image[:, :1]), there
        coarse, valid = embedding.half
        walk = random_walker(coarse, valid, *_seeds(prompts, box, valid, 2), iterations=WALKS[2])
        start = F.interpolate(walk, scale_factor=2.0, mode="trilinear", align_corners=False)
        walk = random_walker(
            embedding.image, embedding.valid, inside, outside, start=start, iterations=WALKS[1]
        )
        return walk * there, there


def _seeds(prompts: RoiPrompts, box: Tensor | None, valid: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Voxels that a random walker takes for inside and for outside: two of (B, 1, X, Y, Z) booleans.

    Args:
        prompts: in voxels of the window.
        box: (B, 1, ...) the box painted on the window, or None.
        valid: (B, 1, X, Y, Z) booleans; says the shape.
        scale: voxels of the window along a voxel of this shape.
    """
    shape, device = valid.shape[2:], valid.device
    inside, outside = torch.zeros_like(valid), torch.zeros_like(valid)
    for axis, n in enumerate(shape):
        outside.narrow(axis + 2, 0, 1).fill_(True)
        outside.narrow(axis + 2, n - 1, 1).fill_(True)
    if prompts.seeds is not None:
        sure = F.avg_pool3d(prompts.seeds.float(), scale)
        seeded = prompts.seeds.flatten(1).any(1).view(-1, 1, 1, 1, 1)
        inside = sure > 0.5
        outside = torch.where(seeded, sure < -0.5, outside)
    coords, labels = (prompts.coords.float() + 0.5) / scale - 0.5, prompts.labels
    if box is not None and prompts.boxes is not None:
        around = F.max_pool3d(box, scale) > 0
        there = around.flatten(1).any(1)
        outside |= ~around & there.view(-1, 1, 1, 1, 1)
        # A box alone is walked from its middle.
        middle = (torch.nan_to_num(prompts.boxes.float()).mean(1, keepdim=True) + 0.5) / scale - 0.5
        alone = there & ~(labels == 1).any(1)
        coords = torch.cat([coords, middle], dim=1)
        labels = torch.cat([labels, torch.where(alone, 1, -1)[:, None]], dim=1)
    centres = torch.nan_to_num(coords).round().long().tolist()
    for sample, (places, kinds) in enumerate(zip(centres, labels.tolist(), strict=True)):
        radius = FIRST_SEED
        for place, kind in zip(places, kinds, strict=True):
            if kind < 0:
                continue
            near, ball = _ball(place, radius, shape)
            # The latest click wins where two seeds overlap.
            own, other = (inside, outside) if kind == 1 else (outside, inside)
            own[sample, 0][near] |= ball.to(device)
            other[sample, 0][near] &= ~ball.to(device)
            radius = 1
    return inside, outside


def _ball(centre: list[int], radius: int, shape: torch.Size) -> tuple[tuple[slice, ...], Tensor]:
    """A box of a window of that shape around a ball, and which of its voxels the ball has."""
    box, lines = [], []
    for at, n in zip(centre, shape, strict=True):
        first = max(0, at - radius)
        last = max(first, min(n, at + radius + 1))
        box.append(slice(first, last))
        lines.append((torch.arange(first, last) - at).square())
    x, y, z = torch.meshgrid(*lines, indexing="ij")
    return tuple(box), x + y + z <= radius**2
