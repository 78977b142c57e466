"""Methods measured side by side: with and without adapter, with a label, without prompts."""

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
    """An adapter that changes the model's output and has learned prompts for label 1."""
    torch.manual_seed(0)
    random_adapter = Adapter.create("lora", load_model("sam3d_tiny"), labels=[1])
    with torch.no_grad():
        for parameter in random_adapter.parameters():
            parameter.add_(torch.randn_like(parameter))
    return random_adapter.save(
        tmp_path_factory.mktemp("adapter") / "taught.safetensors", {"labels": {1: "ball"}}
    )


@pytest.mark.slow
def test_adapter_base_and_label_match_predictors(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An adapter of random numbers amplifies the rounding of bfloat16.
    monkeypatch.setattr("medsam_app.models.load.fast_dtype", lambda device: None)
    folder = write_folder(tmp_path / "data", cases=0)
    options = {"clicks": [1], "labels": ["1"], "device": "cpu", "distances": False}
    evaluation = evaluate_folder(folder, adapter=adapter, base=True, **options)
    assert (evaluation.model, evaluation.adapter, evaluation.clicks, evaluation.shown) == (
        "sam3d_tiny",
        "taught",
        1,
        (1,),
    )
    assert [summary.method for summary in evaluation.summaries] == [NAME, "sam3d_tiny", TOLD]
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
    first = {s.method: s for s in evaluation.scores if s.click == 1 and s.value == 1}
    for method, prediction in by_hand.items():
        assert first[method].dice == dice(prediction.mask, truth)
        assert first[method].quality == pytest.approx(prediction.score, abs=1e-4)
    assert len({round(first[method].quality or 0, 3) for method in by_hand}) == 3  # the label has an effect

    against_base, against_unlabelled = evaluation.comparisons
    assert (against_base.method, against_base.against) == (NAME, "sam3d_tiny")
    assert (against_unlabelled.method, against_unlabelled.against, against_unlabelled.objects) == (
        TOLD,
        NAME,
        1,
    )
    ours, theirs = (
        np.mean([s.dice for s in evaluation.scores if s.method == method]) for method in (NAME, "sam3d_tiny")
    )
    assert against_base.dice[1].value == pytest.approx(ours - theirs)


def test_without_the_base_only_the_adapter_is_measured(adapter: Path) -> None:
    methods = load_methods(
        EvaluateOptions(model=ModelChoice(adapter=adapter, device="cpu"), baselines=("confidence",))
    )
    assert list(methods.segmenters) == [NAME, "confidence"] and list(methods.labelled) == [TOLD]
    assert methods.pairs == ((TOLD, NAME),)
    assert list(methods.for_label(1)) == [NAME, "confidence", TOLD]
    assert list(methods.for_label(2)) == [NAME, "confidence"]


class Thresholds:
    """Label mapper by intensity: 1 around 300, 2 around 500, and 7 for the brightest voxels."""

    labels = (1, 2, 7)

    def set_volume(self, volume: Volume) -> None:
        self.image = volume.array

    def predict_labels(self) -> np.ndarray:
        return np.select([self.image > 880, self.image > 400, self.image > 200], [7, 2, 1], 0)


@pytest.fixture(scope="module")
def mapped() -> tuple[CaseScores, Volume, np.ndarray]:
    image, labels, affine = two_balls()
    labels[:4, 30:, :] = 4  # large enough, but not a label of the method
    volume = Volume.from_array(image, affine)
    plan = ClickPlan(clicks=1, shown=(1,))
    methods = Methods(mappers={"thresholds": Thresholds()})
    scores = evaluate_case(
        methods, volume, labels, plan=plan, about=CaseInfo(dataset="d", case="a", names={7: "bright"})
    )
    return scores, volume, labels


def test_a_label_map_is_click_zero(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    case_scores, volume, labels = mapped
    method = Thresholds()
    method.set_volume(volume)
    guess = method.predict_labels()
    assert [(s.value, s.click, s.unmet, s.quality) for s in case_scores.scores] == [
        (1, 0, 0, None),
        (2, 0, 0, None),
    ]
    for score in case_scores.scores:
        assert score.dice == dice(guess == score.value, labels == score.value) > 0.9
        assert score.surface_dice is not None and score.hd95 is not None and score.seconds is not None
    (summary,) = summarise(case_scores.scores, false=case_scores.false)
    assert (summary.clicks, summary.false_labels) == (0, 1)


@pytest.mark.slow
def test_clicks_correct_an_unprompted_mask(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    """Start from the mapper's mask as click 0; the method gets this mask, its label and the clicks."""
    _, volume, labels = mapped
    alone = VolumePredictor("sam3d_tiny", refine=False, device="cpu")
    alone.set_volume(volume)
    calls = []

    class Correcting:
        labels = (1, 2)

        @property
        def volume(self) -> Volume:
            return alone.volume

        def set_volume(self, volume: Volume) -> None:
            pass

        def with_label(self, value: int, *, initial_mask: np.ndarray | None = None) -> Correcting:
            calls.append((value, initial_mask))
            return self

        def predict(self, **prompts: object) -> MaskPrediction:
            return alone.predict(mask_input=calls[-1][1], **prompts)

    class Shifted(Thresholds):
        def predict_labels(self) -> np.ndarray:
            return np.roll(super().predict_labels(), 4, axis=0)

    mapper = Shifted()
    methods = Methods(
        segmenters={"clicked": alone},
        labelled={"told": Correcting()},
        mappers={"map": mapper},
        initial_maps={"told": "map"},
    )
    plan = ClickPlan(clicks=2, first="found", labels=("1",))
    case_scores = evaluate_case(methods, volume, labels, plan=plan)
    rows = {
        method: [s for s in case_scores.scores if s.method == method] for method in ("clicked", "told", "map")
    }
    assert [s.click for s in rows["clicked"]] == [1, 2] and [s.click for s in rows["told"]] == [0, 1, 2]
    value, initial_mask = calls[-1]
    truth = labels == 1
    assert value == 1 and np.array_equal(initial_mask, mapper.predict_labels() == 1)
    click = next_click(initial_mask, truth, spacing=volume.spacing)
    assert click is not None
    corrected = alone.predict(mask_input=initial_mask, points=[click[0]], point_labels=[int(click[1])])
    assert [s.dice for s in rows["told"][:2]] == [dice(initial_mask, truth), dice(corrected.mask, truth)]
    assert rows["told"][0].dice == rows["map"][0].dice

    summaries = {
        summary.method: summary
        for summary in summarise(case_scores.scores, targets=(rows["map"][0].dice, 1.0))
    }
    assert list(summaries["told"].groups[0].dice) == [0, 1, 2] and summaries["told"].clicks == 2
    assert [reach.clicks.value for reach in summaries["told"].reach] == [0, 3]  # at once, and never
    assert list(summaries["clicked"].groups[0].dice) == [1, 2]
    assert summaries["told"].seconds == np.median([s.seconds for s in rows["told"][1:]])


def test_false_labels_are_counted(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    case_scores, volume, labels = mapped
    (false,) = case_scores.false
    assert (false.method, false.dataset, false.case, false.label, false.value) == (
        "thresholds", "d", "a", "bright", 7,
    )  # fmt: skip
    assert false.voxels == int((volume.array > 880).sum()) > 0
    assert case_scores.small == 1  # the speck of label 3
    unasked = evaluate_case(
        Methods(mappers={"thresholds": Thresholds()}), volume, labels, plan=ClickPlan(labels=("1",))
    )
    assert [s.value for s in unasked.scores] == [1] and unasked.false == []


def test_a_method_that_finds_nothing(mapped: tuple[CaseScores, Volume, np.ndarray]) -> None:
    """Expect Dice and surface Dice of 0, an undefined HD95, and its count in the summary."""
    _, volume, labels = mapped

    class Nothing(Thresholds):
        def predict_labels(self) -> np.ndarray:
            return np.zeros(self.image.shape, dtype=np.uint8)

    case_scores = evaluate_case(
        Methods(mappers={"no": Nothing()}), volume, labels, plan=ClickPlan(shown=(1,))
    )
    assert [(s.dice, s.surface_dice, s.hd95) for s in case_scores.scores] == [(0.0, 0.0, None)] * 2
    (summary,) = summarise(case_scores.scores)
    all_objects = summary.group("objects")
    assert (
        all_objects is not None and all_objects.hd95[0].undefined == 2 and all_objects.hd95[0].value is None
    )
    assert all_objects.dice[0].value == all_objects.surface_dice[0].value == 0.0 and not math.isnan(
        summary.seconds
    )
