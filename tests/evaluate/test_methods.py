"""Methods that are measured side by side: with and without an adapter, told the label, without a prompt."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_app.adapters.adapter import Adapter
from medsam_app.evaluate.click_through import CaseInfo, CaseScores, ClickPlan, evaluate_case
from medsam_app.evaluate.methods import load_methods
from medsam_app.evaluate.options import EvaluateOptions
from medsam_app.evaluate.protocols import Methods
from medsam_app.evaluate.run import evaluate_folder
from medsam_app.evaluate.summary import summarise
from medsam_app.grid.masks import dice
from medsam_app.io.volume import Volume
from medsam_app.models.load import load_model
from medsam_app.predict.core.prediction import MaskPrediction
from medsam_app.predict.model_choice import ModelChoice
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.simulated_clicks import click_inside, next_click
from tests.support.evaluation_data import SPACING, two_balls, write_folder

NAME = "sam3d_tiny + taught"
TOLD = "sam3d_tiny + taught, told the label"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes what the model says, and has learned prompts for label 1."""
    torch.manual_seed(0)
    made = Adapter.create("lora", load_model("sam3d_tiny"), labels=[1])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made.save(tmp_path_factory.mktemp("adapter") / "taught.safetensors", {"labels": {1: "ball"}})


@pytest.mark.slow
def test_adapter_base_and_label_are_what_predictors_say(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An adapter of random numbers makes much of bfloat16's rounding.
    monkeypatch.setattr("medsam_app.models.load.fast_dtype", lambda device: None)
    folder = write_folder(tmp_path / "data", cases=0)
    options = {"clicks": [1], "labels": ["1"], "device": "cpu", "distances": False}
    found = evaluate_folder(folder, adapter=adapter, base=True, **options)
    assert (found.model, found.adapter, found.clicks, found.shown) == ("sam3d_tiny", "taught", 1, (1,))
    assert [summary.method for summary in found.summaries] == [NAME, "sam3d_tiny", TOLD]
    image, labels, affine = two_balls(9)
    truth = labels == 1
    adapted = VolumePredictor("sam3d_tiny", adapter=adapter, refine=False, device="cpu")
    alone = VolumePredictor("sam3d_tiny", refine=False, device="cpu")
    for predictor in (adapted, alone):
        predictor.set_volume(Volume.from_array(image, affine))
    click = click_inside(truth, spacing=SPACING)
    by_hand = {
        NAME: adapted.predict(points=[click]),
        TOLD: adapted.predict(points=[click], label=1),
        "sam3d_tiny": alone.predict(points=[click]),
    }
    first = {s.method: s for s in found.scores if s.click == 1 and s.value == 1}
    for method, prediction in by_hand.items():
        assert first[method].dice == dice(prediction.mask, truth)
        assert first[method].quality == pytest.approx(prediction.score, abs=1e-4)
    assert len({round(first[method].quality or 0, 3) for method in by_hand}) == 3  # it matters which it is

    against_base, told = found.comparisons
    assert (against_base.method, against_base.against) == (NAME, "sam3d_tiny")
    assert (told.method, told.against, told.objects) == (TOLD, NAME, 1)
    ours, theirs = (
        np.mean([s.dice for s in found.scores if s.method == method]) for method in (NAME, "sam3d_tiny")
    )
    assert against_base.dice[1].value == pytest.approx(ours - theirs)


def test_without_the_base_there_is_the_adapter_alone(adapter: Path) -> None:
    methods = load_methods(
        EvaluateOptions(model=ModelChoice(adapter=adapter, device="cpu"), baselines=("confidence",))
    )
    assert list(methods.segmenters) == [NAME, "confidence"] and list(methods.labelled) == [TOLD]
    assert methods.pairs == ((TOLD, NAME),)
    assert list(methods.for_label(1)) == [NAME, "confidence", TOLD]
    assert list(methods.for_label(2)) == [NAME, "confidence"]


class Thresholds:
    """Labels by intensity alone: 1 around 300, 2 around 500, and 7 for what is brighter than all else."""

    labels = (1, 2, 7)

    def set_volume(self, volume: Volume) -> None:
        self.image = volume.array

    def predict_labels(self) -> np.ndarray:
        return np.select([self.image > 880, self.image > 400, self.image > 200], [7, 2, 1], 0)


@pytest.fixture(scope="module")
def mapped() -> tuple[CaseScores, Volume, np.ndarray]:
    image, labels, affine = two_balls()
    labels[:4, 30:, :] = 4  # large enough, and none that the method looks for
    volume = Volume.from_array(image, affine)
    plan = ClickPlan(clicks=1, shown=(1,))
    methods = Methods(mappers={"thresholds": Thresholds()})
    found = evaluate_case(
        methods, volume, labels, plan=plan, about=CaseInfo(dataset="d", case="a", names={7: "bright"})
    )
    return found, volume, labels


def test_a_label_map_is_click_nought(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    found, volume, labels = mapped
    method = Thresholds()
    method.set_volume(volume)
    guess = method.predict_labels()
    assert [(s.value, s.click, s.unmet, s.quality) for s in found.scores] == [
        (1, 0, 0, None),
        (2, 0, 0, None),
    ]
    for score in found.scores:
        assert score.dice == dice(guess == score.value, labels == score.value) > 0.9
        assert score.surface_dice is not None and score.hd95 is not None and score.seconds is not None
    (summary,) = summarise(found.scores, false=found.false)
    assert (summary.clicks, summary.false_labels) == (0, 1)


@pytest.mark.slow
def test_clicks_mend_what_was_found_without_one(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    """Click 0 is what the mapper found; then the method gets that mask, its label and the clicks."""
    _, volume, labels = mapped
    alone = VolumePredictor("sam3d_tiny", refine=False, device="cpu")
    alone.set_volume(volume)
    given = []

    class Mending:
        labels = (1, 2)

        @property
        def volume(self) -> Volume:
            return alone.volume

        def set_volume(self, volume: Volume) -> None:
            pass

        def with_label(self, value: int, *, initial_mask: np.ndarray | None = None) -> Mending:
            given.append((value, initial_mask))
            return self

        def predict(self, **prompts: object) -> MaskPrediction:
            return alone.predict(mask_input=given[-1][1], **prompts)

    class Shifted(Thresholds):
        def predict_labels(self) -> np.ndarray:
            return np.roll(super().predict_labels(), 4, axis=0)

    mapper = Shifted()
    methods = Methods(
        segmenters={"clicked": alone},
        labelled={"told": Mending()},
        mappers={"map": mapper},
        initial_maps={"told": "map"},
    )
    plan = ClickPlan(clicks=2, first="found", labels=("1",))
    found = evaluate_case(methods, volume, labels, plan=plan)
    rows = {method: [s for s in found.scores if s.method == method] for method in ("clicked", "told", "map")}
    assert [s.click for s in rows["clicked"]] == [1, 2] and [s.click for s in rows["told"]] == [0, 1, 2]
    value, initial_mask = given[-1]
    truth = labels == 1
    assert value == 1 and np.array_equal(initial_mask, mapper.predict_labels() == 1)
    click = next_click(initial_mask, truth, spacing=volume.spacing)
    assert click is not None
    mended = alone.predict(mask_input=initial_mask, points=[click[0]], point_labels=[int(click[1])])
    assert [s.dice for s in rows["told"][:2]] == [dice(initial_mask, truth), dice(mended.mask, truth)]
    assert rows["told"][0].dice == rows["map"][0].dice

    summaries = {each.method: each for each in summarise(found.scores, targets=(rows["map"][0].dice, 1.0))}
    assert list(summaries["told"].groups[0].dice) == [0, 1, 2] and summaries["told"].clicks == 2
    assert [reach.clicks.value for reach in summaries["told"].reach] == [0, 3]  # at once, and never
    assert list(summaries["clicked"].groups[0].dice) == [1, 2]
    assert summaries["told"].seconds == np.median([s.seconds for s in rows["told"][1:]])


def test_labels_that_are_not_there_are_counted(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    found, volume, labels = mapped
    (false,) = found.false
    assert (false.method, false.dataset, false.case, false.label, false.value) == (
        "thresholds", "d", "a", "bright", 7,
    )  # fmt: skip
    assert false.voxels == int((volume.array > 880).sum()) > 0
    assert found.small == 1  # the speck of label 3
    unasked = evaluate_case(
        Methods(mappers={"thresholds": Thresholds()}), volume, labels, plan=ClickPlan(labels=("1",))
    )
    assert [s.value for s in unasked.scores] == [1] and unasked.false == []


def test_a_method_that_finds_nothing(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    """Dice and surface Dice are 0, HD95 is not defined, and the summary says how often."""
    _, volume, labels = mapped

    class Nothing(Thresholds):
        def predict_labels(self) -> np.ndarray:
            return np.zeros(self.image.shape, dtype=np.uint8)

    found = evaluate_case(Methods(mappers={"no": Nothing()}), volume, labels, plan=ClickPlan(shown=(1,)))
    assert [(s.dice, s.surface_dice, s.hd95) for s in found.scores] == [(0.0, 0.0, None)] * 2
    (summary,) = summarise(found.scores)
    whole = summary.group("objects")
    assert whole is not None and whole.hd95[0].undefined == 2 and whole.hd95[0].value is None
    assert whole.dice[0].value == whole.surface_dice[0].value == 0.0 and not math.isnan(summary.seconds)
