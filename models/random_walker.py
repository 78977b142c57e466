"""Random walker on a window: the probability that a walk from a voxel first meets an inside seed.

Grady, "Random walks for image segmentation", IEEE TPAMI 2006, with a small pull towards background
everywhere (his prior term), solved in batch by conjugate gradients with a Jacobi preconditioner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA = 3000.0
BACKGROUND_PULL = 1e-5


def edge_weights(image: Tensor, valid: Tensor) -> list[tuple[int, Tensor]]:
    """Conductance between each voxel and its next neighbour along each axis.

    Args:
        image: (B, C, X, Y, Z) intensities in [-1, 1].
        valid: (B, 1, X, Y, Z) booleans; no conductance leads out of the volume.

    Returns:
        for each axis, how much further the neighbour is in the window's voxels in C order, and
        conductances (B, X Y Z - that), zero where a voxel is the last along the axis. In a row all
        neighbours along an axis lie in one stretch of memory.
    """
    channels, shape = image.shape[1], image.shape[2:]
    spread = image.flatten(1).std(dim=1).clamp_min(1e-3).view(-1, 1)
    scale = BETA / (10.0 * spread * channels**0.5)
    voxels, known, weights = image.flatten(2), valid.flatten(1), []
    for axis, n in enumerate(shape):
        step = math.prod(shape[axis + 1 :])
        follows = torch.ones(shape, dtype=torch.bool, device=image.device)
        follows.select(axis, n - 1).fill_(False)
        inside = known[:, step:] & known[:, :-step] & follows.flatten()[:-step]
        change = (voxels[..., step:] - voxels[..., :-step]).square().sum(1)
        weights.append((step, (torch.exp(-scale * change) + 1e-6) * inside))
    return weights


def _neighbours(x: Tensor, weights: list[tuple[int, Tensor]]) -> Tensor:
    """Sum over the six neighbours of conductance times value, (B, X Y Z)."""
    total = torch.zeros_like(x)
    for step, weight in weights:
        total[:, :-step].addcmul_(weight, x[:, step:])
        total[:, step:].addcmul_(weight, x[:, :-step])
    return total


@torch.no_grad()
def random_walker(
    image: Tensor,
    valid: Tensor,
    inside: Tensor,
    outside: Tensor,
    *,
    start: Tensor | None = None,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> Tensor:
    """Probability of inside for every voxel.

    Args:
        image: (B, C, X, Y, Z) intensities in [-1, 1].
        valid: (B, 1, X, Y, Z) booleans, inside the volume.
        inside, outside: (B, 1, X, Y, Z) boolean seeds; where both are set, inside wins.
        start: (B, 1, X, Y, Z) what the probability may be, to begin with; by default nothing is known.
        iterations: most steps of conjugate gradients.
        tolerance: relative residual at which a solution is good enough.

    Returns:
        (B, 1, X, Y, Z) float32 in [0, 1]; zero without any inside seed.
    """
    weights = edge_weights(image.float(), valid)
    seeds = inside.float().flatten(1)
    free = ~(inside | outside).flatten(1)
    root = (_neighbours(torch.ones_like(seeds), weights) + BACKGROUND_PULL).sqrt_()
    # With unknowns scaled by the root of the degree, Jacobi's preconditioner is part of the system.
    scale = free / root
    b = _neighbours(seeds, weights) * scale
    for step, weight in weights:
        weight.mul_(scale[:, :-step]).mul_(scale[:, step:])
    goal = _dot(b, b) * tolerance**2
    x = torch.zeros_like(b) if start is None else start.flatten(1) * root * free
    r = b - x + _neighbours(x, weights)
    p = r.clone()
    rr = _dot(r, r)
    # A sample that is good enough is left as it is: what it becomes does not depend on the others.
    going = torch.ones_like(rr)
    for count in range(iterations):
        ap = p - _neighbours(p, weights)
        alpha = going * rr / _dot(p, ap).clamp_min(1e-30)
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, ap, value=-1)
        rr_new = _dot(r, r)
        if count % 10 == 9:
            going = (rr_new > goal).to(rr)
            if not going.any():
                break
        p.mul_(rr_new / rr.clamp_min(1e-30)).add_(r)
        rr = rr_new
    walk = (x * scale).view_as(inside)
    return torch.where(inside, 1.0, torch.where(outside, 0.0, walk)).clamp_(0, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Products summed over each sample: (B, 1)."""
    return torch.linalg.vecdot(a, b)[:, None]
