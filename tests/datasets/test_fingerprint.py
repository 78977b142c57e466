"""Fingerprints: statistics of datasets, and all of their problems in one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import find_cases
from medsam_app.datasets.fingerprint import Fingerprint, fingerprint
from medsam_app.datasets.fingerprint_case import count_values, evenly, inspect_case
from medsam_app.datasets.gathering import Dataset
from medsam_app.datasets.label_census import PERCENTILES, boxes, largest_piece
from medsam_app.errors import MedsamError
from medsam_app.io.loading import load_volume
from tests.support.dicom_files import write_series
from tests.support.labelled_folders import (
    FLIPPED,
    OBLIQUE,
    SHAPE,
    decathlon,
    image,
    labels,
    nnunet,
    save,
    save_json,
)


def faulty_folder(folder: Path) -> Path:
    """Write two good cases and one for every problem; return the list of cases."""
    save_json(folder / "labels.json", {"1": "left lump", "2": "right lump", "9": "third lump"})
    rows = ["image,label,case,split"]

    def case(name: str, scan: np.ndarray, drawn: np.ndarray, *, of_label: np.ndarray = OBLIQUE) -> None:
        save(folder / f"{name}.nii.gz", scan)
        save(folder / f"{name}_l.nii.gz", drawn, of_label)
        rows.append(f"{name}.nii.gz,{name}_l.nii.gz,{name},train")

    case("good", image(0), labels())
    case("better", image(1), labels())
    case("same", image(0), labels())
    rows[-1] = rows[-1].replace("train", "dev")
    case("shorter", image(2), labels()[:, :, :5])
    case("turned", image(3), labels(), of_label=FLIPPED)
    case("both", image(4), labels()[:6] + 0.5)
    case("halves", image(5), labels() / 2)
    case("below", image(6), labels() - np.int16(1))
    case("empty", image(7), np.zeros_like(labels()))
    case("odd", image(8), labels() * 4)
    speck = np.zeros_like(labels())
    speck[2:4, 2:4, 2:4] = 1
    case("speck", image(9), speck)
    case("flat", np.full(SHAPE, 7, np.int16), labels())
    case("cine", np.stack([image(n) for n in range(10, 15)], axis=-1), labels()[:6])
    case("labels4d", image(15), np.stack([labels()] * 3, axis=-1))
    case("cut", image(16), labels() * 0)
    (folder / "cut.nii.gz").write_bytes((folder / "cut.nii.gz").read_bytes()[:200])
    case("text", image(17), labels())
    (folder / "text_l.nii.gz").write_text("no image")
    rows += [
        "nowhere.nii.gz,good_l.nii.gz,lost,train",
        "good.nii.gz,nowhere.nii.gz,lost too,train",
        "better.nii.gz,,undrawn,train",
        ",better_l.nii.gz,unscanned,train",
        ",,nothing,train",
        "better.nii.gz,better_l.nii.gz,better,train",
        "shorter.nii.gz,shorter_l.nii.gz,speck,dev",
    ]
    path = folder / "cases.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


#: Severity, kind and case of every problem of that folder, and a part of its message.
FAULTS = {
    ("error", "grids differ", "shorter"): "shape (12, 10, 5) instead of (12, 10, 8)",
    ("error", "grids differ", "turned"): "orientation LPS instead of",
    ("error", "grids differ", "both"): "shape (6, 10, 8) instead of (12, 10, 8)",
    ("error", "label map cannot be used", "both"): "values that are not whole numbers",
    ("error", "label map cannot be used", "halves"): "values that are not whole numbers",
    ("error", "label map cannot be used", "below"): "negative values (down to -1)",
    ("error", "label map cannot be used", "text"): "does not begin with a NIfTI header",
    ("error", "empty label map", "empty"): "no voxel above 0",
    ("error", "empty label map", "cut"): "no voxel above 0",
    ("error", "image cannot be read", "cut"): "cut short or damaged",
    ("error", "several frames", "cine"): "is 4D with 5 frames",
    ("error", "grids differ", "cine"): "shape (6, 10, 8) instead of (12, 10, 8)",
    ("error", "several frames", "labels4d"): "is 4D with 3 frames",
    ("error", "image missing", "lost"): "listed but not there",
    ("error", "label map missing", "lost too"): "listed but not there",
    ("error", "label map missing", "undrawn"): "has no label map",
    ("error", "image missing", "unscanned"): "has no image",
    ("error", "entry", "nothing"): "gives no image and no label",
    ("error", "grids differ", "speck"): "shape (12, 10, 5)",
    ("warning", "small object", "speck"): "1 (left lump) has 8;",
    ("warning", "small object", "shorter"): "1 (left lump) has 96, 2 (right lump) has 90",
    ("warning", "note on the image", "flat"): "Every voxel has the same value (7)",
    ("warning", "same image twice", "good"): "(good, same), in the splits dev and train",
    ("warning", "listed twice", "better"): "listed 2 times",
    ("warning", "listed twice", "shorter"): "listed 2 times (shorter, speck)",
    ("warning", "listed twice", "speck"): "2 cases are called 'speck'",
    ("warning", "value without a name", ""): "(in 1 case: odd)",
    ("warning", "name without a voxel", ""): "9 (third lump)",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Fingerprint:
    return fingerprint(find_cases(faulty_folder(tmp_path_factory.mktemp("faulty"))))


def test_all_problems_are_reported_in_one_run(faulty: Fingerprint) -> None:
    messages_by_key: dict[tuple[str, str, str], list[str]] = {}
    for problem in faulty.problems:
        messages_by_key.setdefault((problem.severity, problem.kind, problem.case), []).append(problem.message)
    assert messages_by_key.keys() == FAULTS.keys()
    for key, expected in FAULTS.items():
        assert any(expected in message for message in messages_by_key[key]), (key, messages_by_key[key])
    counts = {key: len(messages) for key, messages in messages_by_key.items() if len(messages) > 1}
    # Values 4 and 8; one of the two cases with equal names has the short label map.
    assert counts == {("warning", "value without a name", ""): 2, ("warning", "small object", "speck"): 2}
    assert [problem.severity for problem in faulty.problems] == sorted(
        problem.severity for problem in faulty.problems
    )


def test_usable_cases_are_those_that_can_be_loaded(faulty: Fingerprint) -> None:
    names = [case.case for case in faulty.cases if case.usable]
    assert names == ["good", "better", "same", "odd", "speck", "flat", "better"]
    assert (faulty.usable, faulty.unusable) == (7, 11 + 5)
    dataset = find_cases(faulty.path)
    for facts, case in zip(faulty.cases, dataset.cases, strict=True):
        try:
            loads = case.load()[1].any()
        except MedsamError:
            loads = False
        assert facts.usable == loads, facts.case


def test_unusable_cases_have_statistics_as_far_as_possible(faulty: Fingerprint) -> None:
    by_name = {case.case: case for case in faulty.cases}
    assert by_name["cut"].shape is None and by_name["cut"].intensities is None
    assert by_name["text"].shape == SHAPE and by_name["text"].labels == ()
    assert by_name["cine"].shape == SHAPE and by_name["cine"].inside is None
    assert [(label.value, label.voxels) for label in by_name["turned"].labels] == [(1, 144), (2, 120)]
    assert by_name["turned"].inside is None  # unknown on another grid


def test_statistics_of_a_dataset_without_problems(tmp_path: Path) -> None:
    folder = decathlon(tmp_path, cases=3)
    save(folder / "imagesTr/lump_2.nii.gz", image(2), FLIPPED)
    save(folder / "labelsTr/lump_2.nii.gz", np.where(labels() == 2, 0, labels()), FLIPPED)
    calls: list[tuple[str, float]] = []
    result = fingerprint(find_cases(folder), progress=lambda what, done: calls.append((what, done)))
    assert not result.problems and (result.usable, result.unusable) == (3, 0)
    assert calls == [(f"Lumps, lump_{n}", pytest.approx(n / 3)) for n in range(3)]
    assert result.modalities == {"MR": 3} and result.orientations == {"LAI": 2, "LPS": 1}
    assert result.splits == {}
    first = result.cases[0]
    assert (first.shape, first.spacing, first.orientation) == (SHAPE, (1.0, 2.0, 3.0), "LAI")
    assert list(first.intensities) == list(PERCENTILES)
    assert list(first.intensities.values()) == pytest.approx(np.percentile(image(0), PERCENTILES))
    inside = np.percentile(image(0)[labels() > 0], PERCENTILES)
    assert list(first.inside.values()) == pytest.approx(inside, abs=1e-4)
    assert [(label.value, label.name, label.voxels) for label in first.labels] == [
        (1, "left lump", 144),
        (2, "right lump", 120),
    ]
    assert first.labels[0].ml == pytest.approx(144 * 6 / 1000)
    within = np.percentile(image(0)[labels() == 2], PERCENTILES)
    assert list(first.labels[1].intensities.values()) == pytest.approx(within, abs=1e-4)
    assert first.labels[1].extent_mm == first.labels[1].piece_mm == (5.0, 12.0, 12.0)
    left, right = result.labels
    assert (left.cases, left.voxels, right.cases, right.voxels) == (3, 3 * 144, 2, 2 * 120)
    assert (left.ml_min, left.ml_median, left.ml_max) == pytest.approx((144 * 3e-3, 144 * 6e-3, 144 * 6e-3))
    assert result.shape.min == result.shape.max == SHAPE
    assert result.spacing.min == (1.0, 1.5, 2.0) and result.spacing.median == (1.0, 2.0, 3.0)
    (pooled,) = result.intensities
    values = np.concatenate([image(n).ravel() for n in range(3)])
    assert (pooled.modality, pooled.cases) == ("MR", 3)
    assert list(pooled.whole.values()) == pytest.approx(np.percentile(values, PERCENTILES))


def test_modalities_are_not_mixed(tmp_path: Path) -> None:
    cases = []
    for n, (modality, factor) in enumerate((("CT", 1), ("MR", 4))):
        save(tmp_path / f"{n}.nii.gz", image(n) * np.int16(factor))
        save(tmp_path / f"{n}_l.nii.gz", labels())
        files = {"image": tmp_path / f"{n}.nii.gz", "label": tmp_path / f"{n}_l.nii.gz"}
        cases.append(Case(dataset="d", modality=modality, case=str(n), names={}, **files))
    dataset = Dataset(path=tmp_path, layout="", cases=tuple(cases), problems=(), names_in="a file")
    result = fingerprint(dataset)
    for intensities, n, factor in zip(result.intensities, (0, 1), (1, 4), strict=True):
        expected = np.percentile(image(n) * factor, PERCENTILES)
        assert list(intensities.whole.values()) == pytest.approx(expected)


def test_formats(tmp_path: Path) -> None:
    """An image in three formats is recognised as the same image; DICOM gives the modality."""
    first = save(tmp_path / "images/a.nii.gz", image(1))
    read = sitk.ReadImage(first)
    scan = sitk.GetImageFromArray(sitk.GetArrayFromImage(read))
    scan.CopyInformation(read)
    for name in ("b.nrrd", "c.mha"):
        sitk.WriteImage(scan, tmp_path / "images" / name)
    write_series(tmp_path / "images/d", image(2).clip(0).astype(np.uint16))
    grid = load_volume(tmp_path / "images/d").affine
    for name in "abc":
        save(tmp_path / f"labels/{name}.nii.gz", labels())
    save(tmp_path / "labels/d.nii.gz", labels(), grid)
    result = fingerprint(find_cases(tmp_path))
    assert result.usable == 4 and result.modalities == {"CT": 1}
    assert len({(case.shape, case.spacing, case.orientation) for case in result.cases[:3]}) == 1
    (message,) = (problem.message for problem in result.problems if problem.kind == "same image twice")
    assert message.startswith("3 files hold the same image (a, b, c);")
    assert result.cases[3].intensities[95.0] == np.percentile(load_volume(tmp_path / "images/d").array, 95)


def test_channels_are_counted(tmp_path: Path) -> None:
    result = fingerprint(find_cases(nnunet(tmp_path)))
    assert [case.channels for case in result.cases] == [2, 2] and result.usable == 2
    assert [label.name for label in result.labels] == ["whole", "whole + core"]


def test_a_dataset_without_readable_cases(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label\nx.nii.gz,\n")
    result = fingerprint(find_cases(tmp_path / "a.csv"))
    assert (result.usable, result.unusable, result.shape, result.intensities) == (0, 1, None, ())


def test_problems_of_an_image_used_as_label_map_list_few_values(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", image(0))
    save(tmp_path / "a_seg.nii.gz", np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    messages = [problem.message for problem in fingerprint(find_cases(tmp_path)).problems]
    unnamed = [message for message in messages if "no name" in message]
    assert len(unnamed) == 9 and f"{np.prod(SHAPE) - 1 - 8} more label values" in unnamed[-1]


def test_counting_and_sampling() -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 300, size=(9, 8, 7)).astype(np.uint16)
    values, counts = np.unique(array[array > 0], return_counts=True)
    assert count_values(array) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert np.array_equal(np.sort(evenly(array, array.size)), np.sort(array, axis=None))
    large = rng.normal(size=(90, 80, 70)).astype(np.float32)
    few = evenly(large, 20_000)
    assert 10_000 < few.size <= 20_000 and np.array_equal(few, evenly(large, 20_000))
    assert np.percentile(few, PERCENTILES) == pytest.approx(np.percentile(large, PERCENTILES), abs=0.15)


def test_real_cases(shared_data: Path) -> None:
    dataset = find_cases(shared_data)
    chosen = {case.dataset: case for case in reversed(dataset.cases)}
    for name in ("msd_hippocampus", "pyradiomics", "itksnap_mricrop"):
        inspected = inspect_case(chosen[name])
        volume, drawn = chosen[name].load()
        assert inspected.facts.usable and inspected.facts.shape == volume.shape
        assert sum(label.voxels for label in inspected.facts.labels) == np.count_nonzero(drawn)
        assert all(label.name for label in inspected.facts.labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_boxes_of_labels_and_of_their_largest_pieces(dtype: type) -> None:
    drawn = np.zeros((20, 12, 9), dtype=dtype)
    drawn[1:4, 2:4, 3:8] = 3
    drawn[15:17, 2, 3] = 3
    drawn[4, 4, 8] = 3  # touches at a corner only
    drawn[8:13, 5:7, :] = 7
    assert boxes(drawn, [3, 7]) == [np.s_[1:17, 2:5, 3:9], np.s_[8:13, 5:7, 0:9]]
    assert largest_piece(drawn == 3) == (3, 2, 5)
    assert largest_piece(drawn == 7) == (5, 2, 9)
    assert boxes(np.zeros_like(drawn), []) == []


def test_boxes_of_labels_with_huge_values() -> None:
    drawn = np.zeros((6, 5, 4), dtype=np.int64)
    drawn[:2, :3, :4] = 2
    drawn[3:, 1:, 1:] = 2_000_000_000
    assert boxes(drawn, [2, 2_000_000_000]) == [np.s_[0:2, 0:3, 0:4], np.s_[3:6, 1:5, 1:4]]
