"""Search for labelled cases in every layout, and problems visible from file names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medsam_app.datasets.cases import list_cases
from medsam_app.datasets.find import Dataset, find_cases
from medsam_app.errors import DatasetError, VolumeError
from tests.support.dicom_files import write_series
from tests.support.labelled_folders import FLIPPED, decathlon, image, labels, nnunet, save, save_json

ONE_TWO = {1: "left lump", 2: "right lump"}


def pairs(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Return the files of each case relative to the folder."""
    folder = dataset.path if dataset.path.is_dir() else dataset.path.parent
    return {
        case.case: (str(case.image.relative_to(folder)), str(case.label.relative_to(folder)))
        for case in dataset.cases
    }


def kinds(dataset: Dataset) -> list[tuple[str, str, str]]:
    return sorted((problem.severity, problem.kind, problem.case) for problem in dataset.problems)


def test_decathlon(tmp_path: Path) -> None:
    dataset = find_cases(decathlon(tmp_path))
    assert dataset.layout == "Medical Segmentation Decathlon" and not dataset.problems
    assert pairs(dataset) == {
        f"lump_{n}": (f"imagesTr/lump_{n}.nii.gz", f"labelsTr/lump_{n}.nii.gz") for n in (0, 1)
    }
    first = dataset.cases[0]
    assert (first.dataset, first.modality, first.names) == ("Lumps", "MR", ONE_TWO)
    volume, map = first.load()
    assert np.array_equal(volume.array, image(0)) and np.array_equal(map, labels())
    assert find_cases(tmp_path / "dataset.json") == dataset


def test_decathlon_reports_missing_and_unlisted_files(tmp_path: Path) -> None:
    folder = decathlon(tmp_path, cases=3)
    (folder / "labelsTr/lump_0.nii.gz").unlink()
    shutil.copy(folder / "imagesTr/lump_1.nii.gz", folder / "imagesTr/more.nii.gz")
    dataset = find_cases(folder)
    assert kinds(dataset) == [("error", "label map missing", "lump_0"), ("warning", "not listed", "more")]
    assert list(pairs(dataset)) == ["lump_1", "lump_2"]


def test_nnunet_of_the_first_version(tmp_path: Path) -> None:
    folder = decathlon(tmp_path)
    for n in (0, 1):
        file = folder / f"imagesTr/lump_{n}.nii.gz"
        file.rename(file.with_name(f"lump_{n}_0000.nii.gz"))
    dataset = find_cases(folder)
    assert pairs(dataset)["lump_1"] == ("imagesTr/lump_1_0000.nii.gz", "labelsTr/lump_1.nii.gz")
    assert not dataset.problems


def test_nnunet(tmp_path: Path) -> None:
    dataset = find_cases(nnunet(tmp_path))
    assert dataset.layout == "nnU-Net v2 raw folder" and kinds(dataset) == [("warning", "channels", "")]
    assert "the first (T1) is inspected, the others are not used" in dataset.problems[0].message
    assert pairs(dataset)["lump_0002"] == ("imagesTr/lump_0002_0000.nii.gz", "labelsTr/lump_0002.nii.gz")
    case = dataset.cases[0]
    assert [file.name for file in case.channels] == ["lump_0001_0000.nii.gz", "lump_0001_0001.nii.gz"]
    assert (case.modality, case.names) == ("MR", {1: "whole", 2: "whole + core"})


def test_nnunet_with_each_file_missing_once(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    for n in (3, 4, 5):
        for channel in range(2):
            save(folder / f"imagesTr/lump_000{n}_000{channel}.nii.gz", image(n))
        save(folder / f"labelsTr/lump_000{n}.nii.gz", labels())
    (folder / "imagesTr/lump_0003_0000.nii.gz").unlink()
    (folder / "imagesTr/lump_0004_0001.nii.gz").unlink()
    (folder / "labelsTr/lump_0005.nii.gz").unlink()
    save(folder / "imagesTr/plain.nii.gz", image(9))
    dataset = find_cases(folder)
    assert kinds(dataset) == [
        ("error", "image missing", "lump_0003"),
        ("error", "label map missing", "lump_0005"),
        ("error", "name", "plain"),
        ("warning", "channel missing", "lump_0004"),
        ("warning", "channels", ""),
    ]
    assert list(pairs(dataset)) == ["lump_0001", "lump_0002", "lump_0004"]
    assert any("call it plain_0000.nii.gz" in problem.message for problem in dataset.problems)


@pytest.mark.parametrize(
    ("images", "maps", "image_name", "label_name"),
    [
        ("images", "labels", "a.nii.gz", "a.nii.gz"),
        ("Images", "Masks", "a.nii", "a_mask.nii.gz"),
        ("imagesTr", "labelsTr", "a_0000.nii.gz", "a.nii.gz"),
        ("img", "segmentations", "a_img.nii.gz", "a-seg.nii"),
    ],
)
def test_two_folders(tmp_path: Path, images: str, maps: str, image_name: str, label_name: str) -> None:
    save(tmp_path / images / image_name, image(1), FLIPPED)
    save(tmp_path / maps / label_name, labels(), FLIPPED)
    save(tmp_path / images / "alone_0001.nii.gz", image(2))
    save(tmp_path / maps / "left.nii.gz", labels())
    save_json(tmp_path / "labels.json", {"0": "background", "1": "left lump", "2": "right lump"})
    dataset = find_cases(tmp_path)
    assert dataset.layout == f"two folders, {images} and {maps}"
    assert pairs(dataset) == {"a": (f"{images}/{image_name}", f"{maps}/{label_name}")}
    assert dataset.cases[0].names == ONE_TWO
    assert np.array_equal(dataset.cases[0].load()[1], labels())
    assert kinds(dataset) == [
        ("error", "image missing", "left"),
        ("error", "label map missing", "alone_0001"),
    ]


def test_a_number_at_the_end_is_a_channel_only_without_another_match(tmp_path: Path) -> None:
    for n in (1, 2):
        save(tmp_path / f"images/lung_000{n}.nii.gz", image(n))
        save(tmp_path / f"masks/lung_000{n}_mask.nii.gz", labels())
    dataset = find_cases(tmp_path)
    assert not dataset.problems and pairs(dataset) == {
        f"lung_000{n}": (f"images/lung_000{n}.nii.gz", f"masks/lung_000{n}_mask.nii.gz") for n in (1, 2)
    }


def test_two_folders_with_channels_dicom_and_a_second_folder_of_labels(tmp_path: Path) -> None:
    for channel in range(3):
        save(tmp_path / f"images/a_{channel:04d}.nii.gz", image(channel))
    save(tmp_path / "labels/a.nii.gz", labels())
    write_series(tmp_path / "images/scan.1", np.ones((9, 8, 6), np.int16))
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 8, 9), np.uint8)), tmp_path / "labels/scan.1.nrrd")
    save(tmp_path / "masks/a.nii.gz", labels())
    dataset = find_cases(tmp_path)
    assert kinds(dataset) == [("warning", "channels", ""), ("warning", "folder not used", "")]
    assert pairs(dataset)["scan.1"] == ("images/scan.1", "labels/scan.1.nrrd")
    assert [len(case.channels) for case in dataset.cases] == [3, 0]


def test_pairs_in_one_folder(tmp_path: Path) -> None:
    expected = {
        "a": ("a_image.nii.gz", "a_label.nii.gz"),
        "b": ("b_img.nii", "b_mask.nii.gz"),
        "c": ("c.nii.gz", "c_seg.nii.gz"),
        "d_0001": ("d_0001.nii.gz", "d_0001-Segmentation.nii.gz"),
    }
    for image_name, label_name in expected.values():
        save(tmp_path / image_name, image(1))
        save(tmp_path / label_name, labels())
    save(tmp_path / "only.nii.gz", image(2))
    save(tmp_path / "gone_label.nii.gz", labels())
    save(tmp_path / "a_seg.nii.gz", labels())
    dataset = find_cases(tmp_path)
    assert dataset.layout == "pairs in one folder" and pairs(dataset) == expected
    assert kinds(dataset) == [
        ("error", "image missing", "gone"),
        ("error", "label map missing", "only"),
        ("warning", "file not used", "a"),
    ]


def test_lists(tmp_path: Path) -> None:
    save(tmp_path / "x/scan.nii.gz", image(1))
    save(tmp_path / "y/drawn.nii.gz", labels())
    save_json(tmp_path / "labels.json", {"left lump": 1, "right lump": 2})
    row = {"image": "x/scan.nii.gz", "label": "y/drawn.nii.gz"}
    save_json(tmp_path / "list.json", [row | {"case": "p1", "split": "train"}, {"image": row["image"]}])
    (tmp_path / "list.csv").write_text(
        "\ufeffcase;Image ;label;split\np1;x/scan.nii.gz;y/drawn.nii.gz;train\n;x/scan.nii.gz;;\n",
        encoding="utf-8",
    )
    for name in ("list.json", "list.csv"):
        dataset = find_cases(tmp_path / name)
        assert dataset.layout == f"{name[5:].upper()} list"
        assert pairs(dataset) == {"p1": ("x/scan.nii.gz", "y/drawn.nii.gz")}
        assert (dataset.cases[0].split, dataset.cases[0].names) == ("train", ONE_TWO)
        assert kinds(dataset) == [("error", "label map missing", "scan")]
    assert "line 3 of" in dataset.problems[0].message


def test_impossible_file_names_are_reported_as_missing(tmp_path: Path) -> None:
    names = ["x" * 5000, "x" * 300 + ".nii.gz", "a\0b.nii.gz", ""]
    entries = [{"image": name, "label": "nowhere.nii.gz"} for name in names]
    save_json(tmp_path / "list.json", entries)
    save_json(
        tmp_path / "msd/dataset.json", {"training": [*entries, "x", {"image": 3}], "labels": {"1": "a"}}
    )
    for path, count in ((tmp_path / "list.json", 3 * 2 + 1), (tmp_path / "msd", 3 * 2 + 1 + 2)):
        dataset = find_cases(path)
        assert len(dataset.problems) == count
        assert {problem.severity for problem in dataset.problems} == {"error"}


def test_duplicates_are_reported(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.nii.gz", image(ord(name)))
        save(tmp_path / f"{name}_seg.nii.gz", labels())
    rows = [
        "image,label,case",
        "a.nii.gz,a_seg.nii.gz,p",
        "./a.nii.gz,a_seg.nii.gz,q",
        "b.nii.gz,b_seg.nii.gz,p",
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    dataset = find_cases(tmp_path / "list.csv")
    messages = [problem.message for problem in dataset.problems if problem.kind == "listed twice"]
    assert len(messages) == len(dataset.problems) == 2
    assert "a.nii.gz is listed 2 times (p, q)" in messages[0] and "2 cases are called 'p'" in messages[1]


def test_manifest(tmp_path: Path) -> None:
    entries = []
    for n, split in enumerate(("train", "dev", "dev")):
        entry = {"dataset": "lumps", "case": str(n), "split": split, "modality": "CT"}
        entries.append(
            entry | {"image": f"{n}.nii.gz", "label": f"{n}_l.nii.gz", "labels": {"1": {"name": "x"}}}
        )
        if n < 2:
            save(tmp_path / f"{n}.nii.gz", image(n))
            save(tmp_path / f"{n}_l.nii.gz", labels())
    save_json(tmp_path / "manifest.json", {"cases": entries})
    dataset = find_cases(tmp_path)
    assert dataset.layout == "folder with a manifest.json"
    assert [(case.case, case.split) for case in dataset.cases] == [("0", "train"), ("1", "dev")]
    assert dataset.cases[1] == list_cases(tmp_path, split="dev")[0]
    assert kinds(dataset) == [("error", "image missing", "2"), ("error", "label map missing", "2")]


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.txt", "hello", "is no list of cases; give a folder, or a .csv or .json file"),
        ("a.csv", "image,mask\nx,y\n", "has no column 'label' (its columns: image, mask)"),
        ("a.csv", "", "has no column 'image' (its columns: none)"),
        ("a.csv", "image,label\n", "was read as CSV list, but lists no case"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"a": 1}', "is not a list of cases"),
        (
            "dataset.json",
            "{}",
            "is of no known kind: the Medical Segmentation Decathlon has a list 'training'",
        ),
        (
            "dataset.json",
            '{"training": [], "labels": [1]}',
            'names of labels must be like {"1": "liver"}',
        ),
        ("dataset.json", '{"channel_names": [], "labels": {}}', '"channel_names" must be like {"0": "CT"}'),
    ],
)
def test_invalid_lists_give_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DatasetError) as error:
        find_cases(written(tmp_path, name, text))
    assert message in str(error.value)


def test_a_folder_of_unknown_layout(tmp_path: Path) -> None:
    save(tmp_path / "x.nii.gz", image(0))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DatasetError) as error:
        find_cases(tmp_path)
    for looked in ("manifest.json", "dataset.json", "segmentations", "x_label.nii.gz", "CSV", ".nrrd"):
        assert looked in str(error.value)
    with pytest.raises(DatasetError, match="There is no file or folder"):
        find_cases(tmp_path / "nowhere")
    with pytest.raises(VolumeError, match="is no manifest of labelled cases"):
        find_cases(written(tmp_path, "manifest.json", "{}"))
