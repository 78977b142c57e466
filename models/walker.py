"""Random walker on a window: the probability that a walk from a voxel first meets an inside seed.

Grady, "Random walks for image segmentation", IEEE TPAMI 2006, with a small pull towards background
everywhere (his prior term), solved in batch by conjugate gradients with a Jacobi preconditioner.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETA = 3000.0
BACKGROUND_PULL = 1e-5
_AXES = (2, 3, 4)


def edge_weights(image: Tensor, valid: Tensor) -> list[Tensor]:
    """Conductance between each voxel and its next neighbour along each axis.

    Args:
        image: (B, C, X, Y, Z) intensities in [-1, 1].
        valid: (B, 1, X, Y, Z) booleans; no conductance leads out of the volume.

    Returns:
        three tensors (B, 1, ...), one shorter than the image along their axis.
    """
    channels = image.shape[1]
    spread = image.flatten(1).std(dim=1).clamp_min(1e-3).view(-1, 1, 1, 1, 1)
    scale = BETA / (10.0 * spread * channels**0.5)
    weights = []
    for axis in _AXES:
        n = image.shape[axis]
        step = image.narrow(axis, 1, n - 1) - image.narrow(axis, 0, n - 1)
        inside = valid.narrow(axis, 1, n - 1) & valid.narrow(axis, 0, n - 1)
        weight = torch.exp(-scale * step.square().sum(1, keepdim=True)) + 1e-6
        weights.append(weight * inside)
    return weights


def _neighbours(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Sum over the six neighbours of conductance times value."""
    total = torch.zeros_like(x)
    for axis, weight in zip(_AXES, weights, strict=True):
        n = x.shape[axis]
        total.narrow(axis, 0, n - 1).addcmul_(weight, x.narrow(axis, 1, n - 1))
        total.narrow(axis, 1, n - 1).addcmul_(weight, x.narrow(axis, 0, n - 1))
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
    free = ~(inside | outside)
    seeds = inside.float()
    root = (_neighbours(torch.ones_like(seeds), weights) + BACKGROUND_PULL).sqrt_()
    # With unknowns scaled by the root of the degree, Jacobi's preconditioner is part of the system.
    scale = free / root
    b = _neighbours(seeds, weights) * scale
    for axis, weight in zip(_AXES, weights, strict=True):
        n = scale.shape[axis]
        weight.mul_(scale.narrow(axis, 0, n - 1)).mul_(scale.narrow(axis, 1, n - 1))
    goal = _dot(b, b) * tolerance**2
    x = torch.zeros_like(b) if start is None else start * root * free
    r = b - x + _neighbours(x, weights)
    p = r.clone()
    rr = _dot(r, r)
    # A sample that is good enough is left as it is: what it becomes does not depend on the others.
    going = torch.ones_like(rr)
    for step in range(iterations):
        ap = p - _neighbours(p, weights)
        alpha = going * rr / _dot(p, ap).clamp_min(1e-30)
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, ap, value=-1)
        rr_new = _dot(r, r)
        if step % 10 == 9:
            going = (rr_new > goal).to(rr)
            if not going.any():
                break
        p.mul_(rr_new / rr.clamp_min(1e-30)).add_(r)
        rr = rr_new
    return torch.where(inside, 1.0, torch.where(outside, 0.0, x * scale)).clamp_(0, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Products summed over each sample: (B, 1, 1, 1, 1)."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).view(-1, 1, 1, 1, 1)
