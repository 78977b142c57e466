"""Selection of cases: every layout, splits, datasets, labels, and missing files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsam_app.datasets.find import find_cases
from medsam_app.errors import DatasetError, SettingsError, VolumeError
from medsam_app.evaluate.cases import check_labels, select_cases
from medsam_app.evaluate.run import evaluate_folder
from tests.support import labelled_folders as kit
from tests.support.evaluation_data import write_folder


def siblings(folder: Path) -> Path:
    kit.save(folder / "images/anna.nii.gz", kit.image(0))
    kit.save(folder / "masks/anna.nii.gz", kit.labels())
    return folder


def pairs(folder: Path) -> Path:
    kit.save(folder / "anna.nii.gz", kit.image(0))
    kit.save(folder / "anna_seg.nii.gz", kit.labels())
    return folder


def csv_list(folder: Path) -> Path:
    pairs(folder)
    (folder / "cases.csv").write_text("image,label\nanna.nii.gz,anna_seg.nii.gz\n")
    return folder / "cases.csv"


def json_list(folder: Path) -> Path:
    pairs(folder)
    return kit.save_json(folder / "cases.json", [{"image": "anna.nii.gz", "label": "anna_seg.nii.gz"}])


LAYOUTS = {
    "Medical Segmentation Decathlon": lambda folder: kit.decathlon(folder, cases=1),
    "nnU-Net v2 raw folder": kit.nnunet,
    "two folders": siblings,
    "pairs": pairs,
    "CSV list": csv_list,
    "JSON list": json_list,
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_is_supported(make: Callable[[Path], Path], tmp_path: Path) -> None:
    dataset = find_cases(make(tmp_path / "data"))
    selection = select_cases(dataset, most=1)
    (case,) = selection.cases
    volume, labels = case.load()
    assert volume.shape == labels.shape == kit.SHAPE and np.array_equal(labels, kit.labels())
    assert (selection.split, selection.skipped) == ("", ())
    assert dataset.layout in selection.description and "nothing is said of splits" in selection.description


@pytest.mark.parametrize("layout", ["nnU-Net v2 raw folder", "CSV list"])
def test_layouts_are_measured(layout: str, tmp_path: Path) -> None:
    sentences: list[str] = []
    evaluation = evaluate_folder(
        LAYOUTS[layout](tmp_path / "data"),
        clicks=1,
        labels=["2"],
        most_cases=1,
        device="cpu",
        tell=sentences.append,
    )
    assert evaluation.layout == layout and evaluation.layout in sentences[0]
    (score,) = evaluation.scores
    assert (score.value, score.voxels, score.click) == (2, 120, 1) and score.dice > 0.2
    assert 0 <= (score.surface_dice or -1) <= 1 and score.hd95 is not None
    channels = "the first (T1) is inspected, the others are not used"
    assert any(channels in sentence for sentence in sentences) == (layout != "CSV list")


def write_list(folder: Path, splits: list[str]) -> Path:
    """Write a list with one case per split; all cases share the files of one."""
    pairs(folder)
    rows = [["anna.nii.gz", "anna_seg.nii.gz", f"case{n}", split] for n, split in enumerate(splits)]
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "case", "split"], *rows])
    return folder / "cases.csv"


@pytest.mark.parametrize(
    ("splits", "split", "expected_split", "cases", "sentence"),
    [
        (["train", "dev", "dev"], None, "dev", [1, 2], "2 of 3 cases"),
        (["train", "dev", "dev"], "train", "train", [0], "1 of 3 cases"),
        (["train", "dev", "dev"], "all", "", [0, 1, 2], "all splits"),
        (["train", "test", ""], None, "", [0, 1, 2], "all splits"),
        (["train", "all", ""], "all", "all", [1], "split 'all'"),
        (["", ""], None, "", [0, 1], "nothing is said of splits"),
    ],
)
def test_splits(
    tmp_path: Path, splits: list[str], split: str | None, expected_split: str, cases: list[int], sentence: str
) -> None:
    selection = select_cases(find_cases(write_list(tmp_path / "data", splits)), split=split)
    assert selection.split == expected_split and [case.case for case in selection.cases] == [
        f"case{n}" for n in cases
    ]
    assert sentence in selection.description and selection.description.startswith("Measuring ")
    assert "is listed" in selection.warnings[0]


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        (["train", "dev"], {"split": "dve"}, "There is no split 'dve'. Did you mean 'dev'?"),
        (["", ""], {"split": "dev"}, "says nothing of splits; leave it out"),
        (["", ""], {"datasets": ["case"]}, "There is no dataset 'case'. Did you mean 'cases'?"),
        (["", ""], {"most": 0}, "At least one case of a dataset is needed; got 0."),
    ],
)
def test_invalid_options(tmp_path: Path, splits: list[str], options: dict, message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        select_cases(find_cases(write_list(tmp_path / "data", splits)), **options)
    assert message in str(raised.value)


def test_missing_files_are_reported_and_counted(tmp_path: Path) -> None:
    """Count cases with missing files only in the selected split."""
    folder = write_folder(tmp_path / "data", cases=3)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cases"][0]["split"] = "train"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for number in (0, 1):
        (folder / f"balls_case{number}_labels.nii.gz").unlink()
    (folder / "balls_case1.nii.gz").unlink()
    dataset = find_cases(folder)
    selection = select_cases(dataset)
    assert [case.case for case in selection.cases] == ["case2", "only"]
    (skipped,) = selection.skipped
    assert (skipped.dataset, skipped.case) == (
        "balls",
        "case1",
    ) and "is listed but not there" in skipped.error
    assert [case.case for case in select_cases(dataset, split="all").skipped] == ["case0", "case1"]
    assert select_cases(dataset, datasets=["one"]).skipped == ()
    reported = []
    evaluation = evaluate_folder(
        dataset, clicks=1, datasets=["balls"], labels=["larger ball"], distances=False, skip=reported.append
    )
    assert list(evaluation.skipped) == reported == [skipped]
    assert [(s.case, s.value, s.surface_dice, s.hd95) for s in evaluation.scores] == [
        ("case2", 1, None, None)
    ]
    assert evaluation.small == 0  # the speck has another label
    assert evaluation.summaries[0].groups[0].hd95 == {}


def test_all_files_missing(tmp_path: Path) -> None:
    path = write_list(tmp_path / "data", ["", ""])
    (path.parent / "anna.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"can be measured; the first of 2 problems: The image"):
        select_cases(find_cases(path))


def test_unknown_labels(tmp_path: Path) -> None:
    cases = find_cases(kit.decathlon(tmp_path / "msd", cases=1)).cases
    check_labels(["left lump", "2", "77"], cases)
    with pytest.raises(SettingsError, match=r"There is no label 'left lamp'\. Did you mean 'left lump'\?"):
        check_labels(["left lamp"], cases)
    with pytest.raises(SettingsError, match="The labels have no names here; give a value instead of 'liver'"):
        check_labels(["liver"], find_cases(pairs(tmp_path / "pairs")).cases)
    with pytest.raises(VolumeError, match=r"none of their labels that were asked for \(77\) has 100 voxels"):
        evaluate_folder(tmp_path / "msd", labels=["77"], clicks=1, device="cpu")
