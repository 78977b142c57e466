"""Pseudo-objects: regions follow the edges of the image."""

from __future__ import annotations

import pytest
import torch

from medsam_app.pretraining.supervoxel_objects import LEAST, MOST, pseudo_object
from medsam_app.pretraining.windows import PseudoWindows, load_cases
from medsam_app.synthetic.sampler import Draws


def _ball(n: int = 32) -> torch.Tensor:
    line = torch.arange(n) - (n - 1) / 2
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    return (x**2 + y**2 + z**2).sqrt() < 11


def test_regions_follow_the_edges_of_the_image() -> None:
    ball = _ball()
    image = ball.float() * 100 + torch.randn(ball.shape, generator=torch.Generator().manual_seed(1))
    matches = 0
    for seed in range(40):
        region = pseudo_object(Draws(seed), image, torch.ones_like(ball))
        if region is None:
            continue
        assert LEAST <= float(region.float().mean()) <= MOST
        overlap = 2 * float((region & ball).sum()) / float(region.sum() + ball.sum())
        matches += overlap > 0.9
    assert matches >= 10


def test_a_flat_image_or_empty_volume_has_no_object() -> None:
    flat, everywhere = torch.full((16, 16, 16), 3.0), torch.ones(16, 16, 16, dtype=torch.bool)
    assert pseudo_object(Draws(0), flat, everywhere) is None
    assert pseudo_object(Draws(0), torch.randn(16, 16, 16), ~everywhere) is None


def test_a_region_cut_by_the_border_is_no_object() -> None:
    image = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    valid = torch.zeros(32, 32, 32, dtype=torch.bool)
    valid[:, :, 14:18] = True
    assert all(pseudo_object(Draws(seed), image, valid) is None for seed in range(20))


@pytest.mark.slow
def test_windows_repeat(shared_data) -> None:
    cases = [case for case in load_cases(shared_data, "train") if case.dataset == "sct_spinalcord"]
    source = PseudoWindows(cases)
    for seed in range(3):
        window, repeated = source.draw(Draws(seed), 32), source.draw(Draws(seed), 32)
        assert torch.equal(window.image, repeated.image)
        assert torch.equal(window.target, repeated.target)
        assert window.valid[window.target].all()
