"""The random walker, compared with closed forms and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam_app.models import random_walker as walker
from medsam_app.models.encoder import Embedding
from medsam_app.models.prompt_encoder import PromptEncoder, RoiPrompts, _seeds


def _ends(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    inside = torch.zeros(1, 1, n, 2, 2, dtype=torch.bool)
    outside = inside.clone()
    inside[:, :, 0] = True
    outside[:, :, -1] = True
    return inside, outside


def test_constant_image_gives_a_straight_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walker, "BACKGROUND_PULL", 0.0)
    n = 9
    image, valid = torch.zeros(1, 2, n, 2, 2), torch.ones(1, 1, n, 2, 2, dtype=torch.bool)
    p = walker.random_walker(image, valid, *_ends(n), tolerance=1e-7)
    expected = torch.linspace(1, 0, n).view(1, 1, n, 1, 1).expand_as(p)
    torch.testing.assert_close(p, expected, atol=1e-4, rtol=0)


def test_edge_in_the_image_holds_the_walk() -> None:
    image = torch.zeros(1, 1, 12, 2, 2)
    image[:, :, 7:] = 1.0
    valid = torch.ones(1, 1, 12, 2, 2, dtype=torch.bool)
    p = walker.random_walker(image, valid, *_ends(12))[0, 0, :, 0, 0]
    assert (p[:7] > 0.95).all()
    assert (p[7:] < 0.05).all()


def test_no_seed_no_mask_and_the_edge_of_the_volume_is_a_wall() -> None:
    image = torch.zeros(1, 1, 8, 4, 4)
    valid = torch.ones(1, 1, 8, 4, 4, dtype=torch.bool)
    nothing = torch.zeros_like(valid)
    assert not walker.random_walker(image, valid, nothing, nothing).any()
    valid[:, :, 4:] = False
    inside = nothing.clone()
    inside[:, :, 0, 0, 0] = True
    p = walker.random_walker(image, valid, inside, nothing)
    assert (p[:, :, :4] > 0.9).all()
    assert (p[:, :, 4:] < 0.1).all()


def test_batch_equals_each_alone() -> None:
    """A batch gives the same as its samples, also if one converges long before the other."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 2, 12, 12, 12, generator=generator)
    valid = torch.ones(2, 1, 12, 12, 12, dtype=torch.bool)
    inside, outside = torch.zeros_like(valid), torch.zeros_like(valid)
    inside[:, :, 5, 5, 5] = True
    outside[:, :, 0] = True
    inside[1, :, 4:] = True
    both = walker.random_walker(image, valid, inside, outside, iterations=400)
    for n in range(2):
        one = slice(n, n + 1)
        each = walker.random_walker(image[one], valid[one], inside[one], outside[one], iterations=400)
        torch.testing.assert_close(both[one], each, atol=1e-6, rtol=0)


def test_agrees_with_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walker, "BETA", 300.0)
    segmentation = pytest.importorskip("skimage.segmentation")
    rng = np.random.default_rng(0)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij"))
    data = (np.sqrt((x**2).sum(0)) < 0.6) * 1.0 + 0.1 * rng.normal(size=(16, 16, 16))
    seeds = np.zeros(data.shape, dtype=int)
    seeds[8, 8, 8] = 1
    seeds[0] = seeds[-1] = 2
    reference = segmentation.random_walker(data, seeds, beta=walker.BETA, mode="bf") == 1
    image = torch.from_numpy(data).float()[None, None]
    ours = walker.random_walker(
        image,
        torch.ones_like(image, dtype=torch.bool),
        torch.from_numpy(seeds == 1)[None, None],
        torch.from_numpy(seeds == 2)[None, None],
        iterations=1000,
        tolerance=1e-6,
    )
    mask = (ours[0, 0] > 0.5).numpy()
    assert 2 * (mask & reference).sum() / (mask.sum() + reference.sum()) > 0.97


@pytest.mark.parametrize("scale", [1, 2])
def test_seeds_are_balls_and_the_latest_wins(scale: int) -> None:
    torch.manual_seed(0)
    n, clicks = 24 // scale, 9
    coords = torch.rand(2, clicks, 3) * 28 - 2  # some outside the window
    coords[0, 4] = coords[0, 3] + 1.0
    labels = torch.randint(-1, 2, (2, clicks))
    labels[0, 3:5] = torch.tensor([1, 0])
    valid = torch.ones(2, 1, n, n, n, dtype=torch.bool)
    inside, outside = _seeds(RoiPrompts(coords, labels), None, valid, scale)
    index = torch.stack(torch.meshgrid(*[torch.arange(n)] * 3, indexing="ij"), dim=-1)
    for sample in range(2):
        expected = torch.zeros(n, n, n, dtype=torch.int)  # 1 inside, -1 outside
        expected[[0, -1]] = expected[:, [0, -1]] = expected[:, :, [0, -1]] = -1
        radius = 2
        for at, kind in zip((coords[sample] + 0.5) / scale - 0.5, labels[sample].tolist(), strict=True):
            if kind >= 0:
                expected[(index - at.round()).square().sum(-1) <= radius**2] = 1 if kind else -1
                radius = 1
        assert torch.equal(inside[sample, 0], expected == 1)
        assert torch.equal(outside[sample, 0], expected == -1)


def test_seeds_take_the_place_of_the_faces() -> None:
    embedding = Embedding(
        torch.zeros(1, 2, 16, 16, 16),
        torch.ones(1, 1, 16, 16, 16, dtype=torch.bool),
        *[torch.zeros(1, 8, 2, 2, 2)] * 3,
    )
    seeds = torch.zeros(1, 1, 16, 16, 16, dtype=torch.int8)
    seeds[:, :, :6], seeds[:, :, 12:] = 1, -1
    none = torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.int64)
    encoder = PromptEncoder(dim=16, coarse=8)
    _, evidence = encoder.dense(embedding, RoiPrompts(*none, seeds=seeds))
    assert (evidence[:, :, :5] > 0.9).all()  # the faces of the window included
    assert (evidence[:, :, 14:] < -0.9).all()
    _, nothing = encoder.dense(embedding, RoiPrompts(*none, seeds=torch.zeros_like(seeds)))
    assert not nothing.any()


def test_a_walk_that_begins_near_its_end_is_there_sooner() -> None:
    """Started at the solution it stays there; started at the coarse solution it ends nearer to it."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 1, 8, 8, 8, generator=generator)
    image = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="trilinear") / 20
    valid = torch.ones_like(image, dtype=torch.bool)
    inside, outside = torch.zeros_like(valid), torch.zeros_like(valid)
    inside[..., 7:10, 7:10, 7:10] = True
    outside[:, :, 0] = outside[:, :, -1] = True

    def walked(start: torch.Tensor | None, steps: int) -> torch.Tensor:
        return walker.random_walker(
            image, valid, inside, outside, start=start, iterations=steps, tolerance=1e-7
        )

    end = walked(None, 500)
    torch.testing.assert_close(walked(end, 10), end, atol=1e-4, rtol=0)
    near = (end + 0.05 * torch.randn(end.shape, generator=generator)).clamp(0, 1)
    assert (walked(near, 5) - end).abs().max() < 0.5 * (walked(None, 5) - end).abs().max()
