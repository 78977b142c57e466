"""The simulated person: how prompts begin, and that the next click falls where the mask is wrong."""

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


def test_shares_of_the_starts_add_up() -> None:
    assert sum(STARTS.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", STARTS)
def test_every_start_says_where_the_object_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_is_sure_of_an_outline_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = _starting_with("outline", monkeypatch).prompts()
    assert prompts.seeds is not None
    truth = _cubes()
    assert (prompts.seeds == 1).flatten(1).any(1).all()
    assert truth[prompts.seeds == 1].float().mean() > 0.99
    assert (~truth[prompts.seeds == -1]).float().mean() > 0.99


def test_some_rounds_have_no_click_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is fed back all the same; a careful person, who measures, is never silent."""
    monkeypatch.setattr(simulated_user, "SILENT", 1.0)
    person = _starting_with("click", monkeypatch)
    logits = torch.full((6, 1, 24, 24, 24), -1.0)
    person.correct(logits)
    prompts = person.prompts()
    assert (prompts.labels == 1).sum(1).tolist() == [1] * 6 and prompts.mask is not None
    person.correct(logits, careful=True)
    assert (person.prompts().labels == 1).sum(1).tolist() == [2] * 6


def test_next_click_falls_where_the_mask_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    person = _starting_with("click", monkeypatch)
    before = (person.prompts().labels == 1).sum(1)
    person.correct(torch.full((6, 1, 24, 24, 24), -1.0), careful=True)
    after = person.prompts()
    assert ((after.labels == 1).sum(1) == before + 1).all()
    person.correct(torch.full((6, 1, 24, 24, 24), 1.0), careful=True)
    assert (person.prompts().labels == 0).any(1).all()


def test_now_and_then_a_click_repeats_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    person = _starting_with("click", monkeypatch)
    monkeypatch.setattr(simulated_user, "REDUNDANT", 1.0)
    monkeypatch.setattr(simulated_user, "SILENT", 0.0)
    truth = _cubes()
    person.correct(truth.float() * 10 - 5)
    prompts = person.prompts()
    assert (prompts.labels >= 0).sum(1).eq(2).all()
    for n in range(len(truth)):
        i, j, k = prompts.coords[n, 1].long().tolist()
        assert bool(truth[n, 0, i, j, k]) == bool(prompts.labels[n, 1])
