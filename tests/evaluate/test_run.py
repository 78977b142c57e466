"""The measurement, on objects whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medsam_app.datasets.cases import list_cases
from medsam_app.errors import DatasetError, SettingsError, VolumeError
from medsam_app.evaluate.click_through import CaseInfo, ClickPlan, click_through, evaluate_case
from medsam_app.evaluate.protocols import Methods
from medsam_app.evaluate.run import Skipped, evaluate_folder
from medsam_app.grid.masks import dice
from medsam_app.io.volume import Volume
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.simulated_clicks import BOX_JITTER, jittered_box
from tests.support.evaluation_data import SPACING, two_balls, write_folder


class Known:
    """Segmenter that returns prepared masks and records its calls."""

    def __init__(self, volume: Volume, masks: list[np.ndarray]) -> None:
        self.volume, self.masks, self.calls = volume, masks, []

    def set_volume(self, volume: Volume) -> None:
        self.volume = volume

    def predict(self, *, points=None, point_labels=None, boxes=None):
        self.calls.append((list(points or []), list(point_labels or []), boxes))
        self.mask, self.score = self.masks[len(self.calls) - 1], None
        return self


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(device="cpu")


@pytest.fixture(scope="module")
def balls() -> tuple[Volume, np.ndarray]:
    image, labels, affine = two_balls()
    return Volume.from_array(image, affine), labels


def test_dice_of_known_masks() -> None:
    a, b = np.zeros((4, 4, 4), dtype=bool), np.zeros((4, 4, 4), dtype=bool)
    assert dice(a, b) == 1.0
    a[0] = True
    assert dice(a, b) == 0.0
    b[0, :2] = True
    assert dice(a, b) == pytest.approx(2 * 8 / 24)


@pytest.mark.slow
def test_objects_are_clicked_and_small_ones_counted(predictor, balls) -> None:
    volume, labels = balls
    methods = Methods(segmenters={"ours": predictor})
    case_scores = evaluate_case(
        methods, volume, labels, plan=ClickPlan(clicks=2), about=CaseInfo(names={1: "large"})
    )
    scores = case_scores.scores
    assert (case_scores.small, case_scores.false) == (1, [])
    assert [(s.label, s.value, s.click) for s in scores] == [
        (name, value, click) for name, value in (("large", 1), ("2", 2)) for click in (1, 2)
    ]
    assert [s.voxels for s in scores[::2]] == [(labels == value).sum() for value in (1, 2)]
    assert {s.method for s in scores} == {"ours"} and all(s.unmet == 0 for s in scores)
    assert min(s.dice for s in scores) > 0.9


def test_clicks_follow_the_protocol(balls) -> None:
    """Click first on the deepest voxel, then in the middle of the largest error, with its sign."""
    volume, labels = balls
    truth = labels == 1
    too_much = truth.copy()
    too_much[25:37, 4:12, 3:12] = True
    too_little = truth.copy()
    too_little[:12] = False
    method = Known(volume, [too_much, too_little, truth])
    steps = list(click_through(method, truth, clicks=5))
    assert len(method.calls) == 3  # a perfect mask needs no more clicks
    points, signs, boxes = method.calls[-1]
    assert boxes is None and signs == [1, 0, 1]
    errors = [truth, too_much & ~truth, truth & ~too_little]
    for point, error in zip(points, errors, strict=True):
        depth = ndimage.distance_transform_edt(error, sampling=SPACING)
        assert depth[point] == depth.max() > 0
    sizes = [2 * (mask & truth).sum() / (mask.sum() + truth.sum()) for mask in method.masks]
    assert [s.dice for s in steps] == pytest.approx([*sizes, 1.0, 1.0])
    assert [s.unmet for s in steps] == [0, 0, 0, 0, 0]
    assert [s.seconds is None for s in steps] == [False, False, False, True, True]


def test_clicks_that_are_not_honoured_are_counted(balls) -> None:
    volume, labels = balls
    truth = labels == 1
    none, everything = np.zeros_like(truth), np.ones_like(truth)
    steps = list(click_through(Known(volume, [none, everything, none]), truth, clicks=3))
    # positive, positive, negative: an empty mask misses two of them, a full mask the last.
    assert [s.unmet for s in steps] == [1, 0, 2]
    assert [s.dice for s in steps][::2] == [0.0, 0.0]


def test_a_box_replaces_the_first_click(balls) -> None:
    volume, labels = balls
    truth = labels == 2
    missing = truth.copy()
    missing[29:] = False
    method = Known(volume, [missing, truth])
    box = jittered_box(truth, np.random.default_rng(0))
    steps = list(click_through(method, truth, clicks=3, box=box))
    assert [call[2] for call in method.calls] == [[box], [box]]
    assert method.calls[0][:2] == ([], []) and method.calls[1][1] == [1]
    assert (truth & ~missing)[method.calls[1][0][0]]
    assert [s.dice for s in steps][1:] == [1.0, 1.0] and steps[0].dice == dice(missing, truth)


def test_box_jitter_is_at_most_a_tenth_and_seeded() -> None:
    truth = np.zeros((70, 70, 30), dtype=bool)
    truth[20:60, 0:40, 10:12] = True
    boxes = np.array([jittered_box(truth, np.random.default_rng(seed)) for seed in range(200)])
    off = boxes - np.array([[20, 0, 10], [59, 39, 11]])
    assert np.abs(off[..., :2]).max() == BOX_JITTER * 40 and not off[..., 2].any()
    assert boxes[:, 0, 1].min() == 0  # the box stays inside the volume
    assert len({tuple(box.ravel()) for box in boxes}) > 150
    np.testing.assert_array_equal(boxes[7], jittered_box(truth, np.random.default_rng(7)))


@pytest.mark.slow
def test_a_folder_is_measured(tmp_path: Path) -> None:
    """Measure all methods on the same objects; scores do not depend on the other methods."""
    folder = write_folder(tmp_path / "data", cases=1)
    heard: list[tuple[str, float]] = []
    options = {"first": "box", "device": "cpu", "seed": 3}
    evaluation = evaluate_folder(
        folder, clicks=2, baselines=["confidence"], progress=lambda *call: heard.append(call), **options
    )
    assert heard == [
        (f"{case}: {what}", start + share)
        for case, start in (("balls, case0", 0.0), ("one, only", 0.5))
        for what, share in (("reading", 0.0), ("larger ball", 0.0), ("2", 1 / 4))
    ]
    assert (evaluation.small, evaluation.skipped) == (2, ())
    assert evaluation.model == "sam3d_tiny" and len(evaluation.weights_sha256) == 64
    assert [s.method for s in evaluation.summaries] == ["sam3d_tiny", "confidence"]
    assert len(evaluation.scores) == 2 * 4 * 2
    ours, grown = ([s for s in evaluation.scores if s.method == m.method] for m in evaluation.summaries)
    assert [s.object for s in ours] == [s.object for s in grown] and len({s.object for s in ours}) == 4
    assert {(s.dataset, s.modality, s.label) for s in evaluation.scores} == {
        (dataset, modality, label)
        for dataset, modality in (("balls", "CT"), ("one", "MR"))
        for label in ("larger ball", "2")
    }
    alone = evaluate_folder(folder, clicks=1, **options)
    assert [s.dice for s in alone.scores] == [s.dice for s in ours if s.click == 1]
    assert evaluation.summaries[0].groups[0].dice[1] == alone.summaries[0].groups[0].dice[1]


def test_most_cases_are_spread_evenly(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", cases=5)
    assert [c.case for c in list_cases(folder, split="dev", most=3)] == ["case0", "case2", "case4", "only"]
    assert [c.case for c in list_cases(folder, split="dev")] == [*(f"case{n}" for n in range(5)), "only"]


def test_unreadable_cases_are_skipped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", cases=1, broken=True)
    reported: list[Skipped] = []
    evaluation = evaluate_folder(folder, clicks=1, device="cpu", skip=reported.append)
    assert list(evaluation.skipped) == reported and [s.case for s in reported] == ["case0"]
    assert "cut short or damaged" in reported[0].error
    assert {s.case for s in evaluation.scores} == {"only"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clicks": 0}, SettingsError, "At least one click an object is needed; got 0."),
        ({"most_cases": 0}, SettingsError, "At least one case of a dataset is needed; got 0."),
        ({"first": "bax"}, SettingsError, "There is no first prompt 'bax'. Did you mean 'box'?"),
        ({"baselines": ["waker"]}, SettingsError, "There is no baseline 'waker'. Did you mean 'walker'?"),
        ({"split": "test"}, SettingsError, "There is no split 'test'. Known: dev."),
    ],
)
def test_invalid_options(tmp_path: Path, options: dict, error: type[Exception], message: str) -> None:
    folder = write_folder(tmp_path / "data", cases=0)
    with pytest.raises(error) as raised:
        evaluate_folder(folder, **options)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "No labelled cases were found in "),
        ("{", "is no manifest of labelled cases: the file: Invalid JSON"),
        ("[]", "is no manifest of labelled cases: the file: "),
        ('{"cases": [{"dataset": "x"}]}', "is no manifest of labelled cases: cases.0.case: Field required."),
        ('{"cases": []}', "but lists no case; list some"),
    ],
)
def test_invalid_manifests(tmp_path: Path, manifest: str | None, message: str) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises((VolumeError, DatasetError)) as raised:
        evaluate_folder(tmp_path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_nothing_to_measure(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", cases=1, broken=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"].pop()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VolumeError, match="of 1 cases of split 'dev' 0 could be read"):
        evaluate_folder(folder, device="cpu")
