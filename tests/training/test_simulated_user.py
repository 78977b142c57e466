"""Simulated user: first prompts, and clicks where the mask is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam_app.training import simulated_user
from medsam_app.training.simulated_user import STARTS, Interaction


def _cubes(batch: int = 6) -> torch.Tensor:
    target = torch.zeros(batch, 1, 24, 24, 24, dtype=torch.bool)
    target[:, :, 6:18, 6:18, 6:18] = True
    return target


def _starting_with(kind: str, monkeypatch: pytest.MonkeyPatch) -> Interaction:
    monkeypatch.setattr(simulated_user, "STARTS", {kind: 1.0})
    return Interaction(_cubes(), np.random.default_rng(0))


def test_probabilities_of_first_prompts_add_up_to_one() -> None:
    assert sum(STARTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", STARTS)
def test_every_first_prompt_locates_the_object(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = _starting_with(kind, monkeypatch).prompts()
    truth = _cubes()
    assert (prompts.boxes is not None) == ("box" in kind)
    assert (prompts.mask is not None) == (kind in ("mask", "outline"))
    assert (prompts.seeds is not None) == (kind == "outline")
    clicks = (prompts.labels == 1).sum(1)
    assert (clicks >= (0 if kind in ("box", "flat box") else 1)).all()
    if kind == "clicks":
        assert (clicks >= 2).all()
    for n, (coords, labels) in enumerate(zip(prompts.coords.long(), prompts.labels, strict=True)):
        for (i, j, k), label in zip(coords.tolist(), labels.tolist(), strict=True):
            if kind != "outline" and label >= 0:
                assert bool(truth[n, 0, i, j, k]) == bool(label)


def test_certain_voxels_of_an_outline_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = _starting_with("outline", monkeypatch).prompts()
    assert prompts.seeds is not None
    truth = _cubes()
    assert (prompts.seeds == 1).flatten(1).any(1).all()
    assert truth[prompts.seeds == 1].float().mean() > 0.99
    assert (~truth[prompts.seeds == -1]).float().mean() > 0.99


def test_rounds_without_a_click(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is fed back in such a round; a careful user always clicks."""
    monkeypatch.setattr(simulated_user, "SILENT", 1.0)
    user = _starting_with("click", monkeypatch)
    logits = torch.full((6, 1, 24, 24, 24), -1.0)
    user.correct(logits)
    prompts = user.prompts()
    assert (prompts.labels == 1).sum(1).tolist() == [1] * 6 and prompts.mask is not None
    user.correct(logits, careful=True)
    assert (user.prompts().labels == 1).sum(1).tolist() == [2] * 6


def test_the_next_click_is_where_the_mask_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    user = _starting_with("click", monkeypatch)
    before = (user.prompts().labels == 1).sum(1)
    user.correct(torch.full((6, 1, 24, 24, 24), -1.0), careful=True)
    after = user.prompts()
    assert ((after.labels == 1).sum(1) == before + 1).all()
    user.correct(torch.full((6, 1, 24, 24, 24), 1.0), careful=True)
    assert (user.prompts().labels == 0).any(1).all()


def test_redundant_clicks_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    user = _starting_with("click", monkeypatch)
    monkeypatch.setattr(simulated_user, "REDUNDANT", 1.0)
    monkeypatch.setattr(simulated_user, "SILENT", 0.0)
    truth = _cubes()
    user.correct(truth.float() * 10 - 5)
    prompts = user.prompts()
    assert (prompts.labels >= 0).sum(1).eq(2).all()
    for n in range(len(truth)):
        i, j, k = prompts.coords[n, 1].long().tolist()
        assert bool(truth[n, 0, i, j, k]) == bool(prompts.labels[n, 1])
