"""Statistics of masks without ground truth, compared with closed forms."""

from __future__ import annotations

import torch

from medsam_app.models.mask_quality import QualityHead, mask_statistics

N = 16


def _half() -> torch.Tensor:
    """Return logits of a mask that fills the lower half of the window."""
    logits = torch.full((1, 1, N, N, N), -9.0)
    logits[:, :, : N // 2] = 9.0
    return logits


def test_statistics_of_half_a_window() -> None:
    logits = _half()
    half = torch.zeros(1, 2, N // 2, N // 2, N // 2)
    half[:, 0, : N // 4] = 1.0
    walker = torch.where(logits > 0, 1.0, -1.0)
    result = mask_statistics(logits, half, walker, torch.ones_like(logits))[0, 0]
    inside, own, size, faces, walked, before, step, blank_step, spread, blank_spread = result.tolist()
    assert inside > 0.99
    assert own > 0.99
    assert abs(size - torch.log(torch.tensor(N**3 / 2)) / torch.log(torch.tensor(float(N**3)))) < 1e-5
    assert abs(faces - 0.5) < 1e-6
    assert abs(walked - 1) < 1e-6
    assert abs(before - 2 / 3) < 1e-6
    # A step of 1 is two standard deviations of the window (1/2), and the statistic's unit is two of these.
    assert abs(step - 1) < 0.01
    assert blank_step == 0
    assert spread < 1e-3
    assert blank_spread == 0


def test_statistics_of_nothing_are_finite() -> None:
    empty = torch.full((1, 2, N, N, N), -5.0)
    half, walker = torch.zeros(1, 2, N // 2, N // 2, N // 2), torch.zeros(1, 1, N, N, N)
    result = mask_statistics(empty, half, walker, None)
    assert torch.isfinite(result).all()
    assert result[0, 0, 3] == 0


def test_quality_leaves_the_masks_alone() -> None:
    torch.manual_seed(0)
    head, logits = QualityHead(8), _half().requires_grad_()
    half, walker = torch.rand(1, 2, N // 2, N // 2, N // 2), torch.zeros(1, 1, N, N, N)
    head(torch.randn(1, 1, 8), logits, half, walker, None).sum().backward()
    assert logits.grad is None
    assert all(p.grad is not None for p in head.parameters())
