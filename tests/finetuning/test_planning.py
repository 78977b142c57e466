"""Plans derived from datasets, and the split into training and validation."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsam_app.commands.plan_table import show_plan
from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import find_cases
from medsam_app.datasets.fingerprint import Fingerprint, fingerprint
from medsam_app.datasets.fingerprint_file import read_fingerprint, save_fingerprint
from medsam_app.errors import DatasetError, SettingsError
from medsam_app.finetuning.plan import Plan, make_plan, merge_settings, read_settings
from medsam_app.finetuning.planning import plan_for
from medsam_app.finetuning.split import restrict_dataset, split_cases, trainable_cases
from tests.support.labelled_folders import decathlon, example, labels, save, save_json


def balls(
    folder: Path, *, radii: tuple[float, ...], cases: int = 3, spacing: float = 1.0, modality: str = "CT"
) -> Path:
    """Write volumes of 80 x 70 x 60 voxels with one ball per radius in mm, 40, 60, ... HU in air."""
    grid = np.indices((80, 70, 60)) + 0.5
    rng = np.random.default_rng(0)
    entries = []
    for case in range(cases):
        drawn = np.zeros(grid.shape[1:], np.uint8)
        for value, radius in enumerate(radii, start=1):
            centre = np.array([40, 35, 30]) if value == 1 else np.array([8 * value - 8, 8, 8])
            squared_distance = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0)
            drawn[squared_distance < (radius / spacing) ** 2] = value
        scan = np.where(drawn > 0, 20 + 20 * drawn.astype(float), -1000.0)
        save(
            folder / f"{case}.nii.gz",
            (scan + rng.normal(size=scan.shape)).astype(np.int16),
            np.diag([-spacing, spacing, spacing, 1]),
        )
        save(folder / f"{case}_l.nii.gz", drawn, np.diag([-spacing, spacing, spacing, 1]))
        entries.append({"image": f"{case}.nii.gz", "label": f"{case}_l.nii.gz"})
    names = {str(value): f"ball {value}" for value in range(1, len(radii) + 1)}
    described = {"name": "Balls", "modality": {"0": modality}, "labels": names, "training": entries}
    save_json(folder / "dataset.json", described)
    return folder


def fingerprint_of(path: Path) -> Fingerprint:
    return fingerprint(find_cases(path))


def test_large_objects_fill_three_quarters_of_the_window(tmp_path: Path) -> None:
    facts = fingerprint_of(balls(tmp_path, radii=(50.0,), spacing=2.0))
    resolved = plan_for(facts)
    assert resolved.plan.spacing == pytest.approx(100 / 48, abs=0.01)
    assert resolved.plan.window == (64, 64, 64)
    assert "fill 75%" in resolved.reasons["spacing"]
    assert resolved.plan.labels == {1: "ball 1"}
    assert resolved.cases == 3
    smaller = plan_for(facts, side=47)
    assert smaller.plan.window == (32, 32, 32)
    assert smaller.plan.spacing == pytest.approx(100 / 24, abs=0.01)


def test_spacing_is_never_finer_than_the_volumes_and_windows_are_smaller_then(tmp_path: Path) -> None:
    resolved = plan_for(fingerprint_of(balls(tmp_path, radii=(14.0,))))
    assert resolved.plan.spacing == 1.0
    assert resolved.plan.window == (48, 48, 48)  # 28 voxels are three quarters of 37
    wide = plan_for(fingerprint_of(tmp_path), spacing=0.5)
    assert (wide.plan.spacing, wide.plan.window) == (0.5, (64, 64, 64))
    assert wide.reasons["spacing"] == "as asked for"
    narrow = plan_for(fingerprint_of(tmp_path), window=(32, 32, 32))
    assert narrow.plan.spacing == pytest.approx(28 / 24, abs=0.01)


def test_the_smallest_label_keeps_six_voxels(tmp_path: Path) -> None:
    facts = fingerprint_of(balls(tmp_path, radii=(58.0, 6.0), spacing=2.0))
    resolved = plan_for(facts)
    assert resolved.plan.spacing == 2.0
    assert "6 voxels" in resolved.reasons["spacing"] or "own finest" in resolved.reasons["spacing"]
    fine = [replace(case, spacing=(1.0, 1.0, 1.0)) for case in facts.cases]
    resolved = plan_for(replace(facts, cases=tuple(fine)))
    assert resolved.plan.spacing == 2.0
    assert "has 6 voxels" in resolved.reasons["spacing"]
    alone = plan_for(facts, labels=["ball 1"])
    assert alone.plan.spacing > 2.2
    tiny = plan_for(replace(facts, cases=tuple(fine)), window=(32, 32, 32))
    assert "exceed a window" in tiny.reasons["spacing"]


def test_ct_is_clipped_to_the_labels_with_a_margin(tmp_path: Path) -> None:
    resolved = plan_for(fingerprint_of(balls(tmp_path / "ct", radii=(20.0, 9.0))))
    low, high = resolved.plan.clip or (0, 0)
    assert low == pytest.approx(40 - 150, abs=5)
    assert high == pytest.approx(60, abs=5)  # the volumes hold nothing brighter
    assert resolved.plan.bias == 0
    assert plan_for(fingerprint_of(tmp_path / "ct"), clip=None).plan.clip is None
    one = plan_for(fingerprint_of(tmp_path / "ct"), labels=["2"])
    assert (one.plan.clip or (0, 0))[0] == pytest.approx(60 - 150, abs=5)
    magnetic = plan_for(fingerprint_of(balls(tmp_path / "mr", radii=(20.0,), modality="MR")))
    assert magnetic.plan.clip is None
    assert magnetic.plan.bias > 0


def test_scattered_pieces_are_shown_one_at_a_time(tmp_path: Path) -> None:
    for case in range(2):
        drawn = np.zeros((80, 70, 60), np.uint8)
        drawn[3:11, 3:11, 3:11] = 1
        drawn[70:78, 60:68, 50:57] = 1
        save(tmp_path / f"{case}_image.nii.gz", drawn.astype(np.int16) * 9, np.eye(4))
        save(tmp_path / f"{case}_label.nii.gz", drawn, np.eye(4))
    facts = fingerprint_of(tmp_path)
    assert (facts.labels[0].mm_median, facts.labels[0].piece_mm_95) == (75, 8)
    assert plan_for(facts).plan.window == (32, 32, 32)


def test_faulty_cases_are_left_out_with_a_warning(tmp_path: Path) -> None:
    example(tmp_path)
    facts = fingerprint_of(tmp_path)
    resolved = plan_for(facts)
    assert resolved.plan.labels == {1: "left lump", 2: "right lump"}
    assert resolved.cases == 3
    text = " ".join(resolved.warnings)
    assert "2 cases are left out (label map missing 1, grids differ 1)" in text
    assert "only one case has them: label 3" in text
    dataset = find_cases(tmp_path)
    cases = trainable_cases(dataset.cases, facts, resolved.plan)
    assert [case.case for case in cases] == ["lump_0001", "lump_0002", "lump_0004"]
    assert len(trainable_cases(dataset.cases, facts, plan_for(facts, labels=[3]).plan)) == 1


def test_one_case_cannot_be_measured(tmp_path: Path) -> None:
    resolved = plan_for(fingerprint_of(decathlon(tmp_path, cases=1)))
    assert resolved.plan.labels == {1: "left lump", 2: "right lump"}
    assert "none to measure on" in resolved.warnings[0]


def test_labels_are_requested_by_name_or_value(tmp_path: Path) -> None:
    facts = fingerprint_of(decathlon(tmp_path))
    assert plan_for(facts, labels=["RIGHT lump"]).plan.labels == {2: "right lump"}
    assert plan_for(facts, labels=[2, "1"]).plan.labels == {1: "left lump", 2: "right lump"}
    assert plan_for(facts, labels={"2": "tumour"}).plan.labels == {2: "tumour"}
    for unknown in ("lft lump", "7"):
        with pytest.raises(SettingsError, match=r"no label '.*left lump \(1\), right lump \(2\)"):
            plan_for(facts, labels=[unknown])
    with pytest.raises(SettingsError, match="no label '7'"):
        plan_for(facts, labels={7: "tumour"})


def test_a_value_that_means_two_things_is_refused(tmp_path: Path) -> None:
    facts = fingerprint_of(decathlon(tmp_path))
    first, second = facts.cases
    renamed = tuple(replace(label, name=f"other {label.value}") for label in second.labels)
    facts = replace(facts, cases=(first, replace(second, dataset="Others", labels=renamed)))
    with pytest.raises(SettingsError, match=r"1 does not mean the same everywhere \('left lump' in Lumps"):
        plan_for(facts)
    assert plan_for(facts, labels={1: "lump"}).plan.labels == {1: "lump"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batsh": 4}, "Did you mean 'batch'?"),
        ({"window": (40, 32, 32)}, "multiple of 16"),
        ({"base": "sam_vit_b"}, "take one of sam3d_tiny"),
        ({"base": "sam3d_vit_b", "side": 16}, "32 voxels or more; got 16"),
        ({"minutes": 2, "steps": 2}, "Exactly one"),
        ({"validate_steps": 10}, "give 'validate_minutes'"),
        ({"steps": 100, "validate_minutes": 10}, "give 'validate_steps'"),
    ],
)
def test_faulty_options_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        plan_for(fingerprint_of(decathlon(tmp_path)), **given)
    assert message in str(refusal.value)


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a_image.nii.gz", labels())
    save(tmp_path / "a_label.nii.gz", labels() * 0)
    with pytest.raises(SettingsError, match=r"No case of .* can be used"):
        plan_for(fingerprint_of(tmp_path))


def test_an_earlier_plan_can_be_the_settings_of_the_next(tmp_path: Path) -> None:
    facts = fingerprint_of(decathlon(tmp_path / "data"))
    file = tmp_path / "settings.json"
    before = plan_for(facts, steps=50, batch=2)
    file.write_text(before.plan.text())
    assert plan_for(facts, **read_settings(file)).plan == before.plan
    after = plan_for(facts, **merge_settings(read_settings(file), {"minutes": 5.0, "batch": 4})).plan
    assert (after.steps, after.minutes, after.batch) == (None, 5.0, 4)


def test_bases_with_other_windows(tmp_path: Path) -> None:
    plan = plan_for(fingerprint_of(balls(tmp_path, radii=(14.0,))), base="sam3d_vit_b").plan
    assert plan.window == (64, 64, 64)


def test_fingerprints_are_read_back(tmp_path: Path) -> None:
    facts = fingerprint_of(example(tmp_path / "data"))
    file = tmp_path / "fingerprint.json"
    save_fingerprint(file, facts)
    assert read_fingerprint(file) == facts
    file.write_text(file.read_text().replace('"usable"', '"useable"'))
    with pytest.raises(DatasetError, match="no fingerprint of this version"):
        read_fingerprint(file)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_fingerprint(tmp_path / "nowhere.json")


def test_the_table_shows_values_and_reasons(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    show_plan(plan_for(fingerprint_of(decathlon(tmp_path)), steps=20, learning_rate=1e-4))
    shown = capsys.readouterr()
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in shown.out.splitlines() if line.strip()}
    assert rows["labels"] == "1 left lump, 2 right lump all that 2 cases have"
    assert rows["steps"] == "20 as asked for"
    assert rows["learning_rate"] == "0.0001 as asked for"
    assert rows["spacing"].startswith("1 mm the volumes' own finest")
    assert rows["clip"].startswith("all not CT alone")
    assert "minutes" not in rows
    assert "Few cases have these labels: left lump 2" in shown.err


def case(dataset: str, number: int) -> Case:
    nothing = Path("none")
    return Case(dataset=dataset, modality="", case=f"c{number:03}", names={}, image=nothing, label=nothing)


def a_plan(**more: Any) -> Plan:
    return make_plan({"labels": {1: "a"}, "spacing": 1, "window": (32, 32, 32), "minutes": 1} | more)


def test_the_split_depends_only_on_names_and_seed() -> None:
    cases = [case("a", n) for n in range(40)] + [case("b", n) for n in range(20)]
    learned, measured = split_cases(cases, a_plan())
    assert len(measured) == 9
    assert [case.dataset for case in measured].count("a") == 6
    assert sorted(map(str, learned + measured)) == sorted(map(str, cases))
    mixed = random.Random(0).sample(cases, len(cases))
    assert sorted(map(str, split_cases(mixed, a_plan())[1])) == sorted(map(str, measured))
    assert split_cases(cases, a_plan(seed=1))[1] != measured
    # The same on every machine.
    assert [held_out.case for held_out in split_cases([case("a", n) for n in range(10)], a_plan())[1]] == [
        "c007",
        "c009",
    ]


@pytest.mark.parametrize(
    ("count", "part", "expected"), [(0, 0.15, 0), (1, 0.5, 0), (2, 0.01, 1), (2, 0.89, 1), (3, 0.5, 2)]
)
def test_few_cases_are_split(count: int, part: float, expected: int) -> None:
    learned, measured = split_cases([case("a", n) for n in range(count)], a_plan(held_out=part))
    assert (len(learned), len(measured)) == (count - expected, expected)


@pytest.mark.parametrize(
    ("sizes", "part", "expected"),
    [((1, 1), 0.15, 1), ((1, 9), 0.15, 2), ((5, 5, 5), 0.2, 3), ((1, 1, 1, 7), 0.5, 5)],
)
def test_datasets_contribute_their_fraction(sizes: tuple[int, ...], part: float, expected: int) -> None:
    cases = [case(f"d{d}", n) for d, size in enumerate(sizes) for n in range(size)]
    learned, measured = split_cases(cases, a_plan(held_out=part))
    assert len(measured) == expected
    if max(sizes) > 1:
        assert {item.dataset for item in learned} == {item.dataset for item in cases}


@pytest.mark.parametrize(
    ("name", "spacing", "window", "clip"),
    [("msd_hippocampus", 1.0, (32, 48, 32), None), ("chaos_ct_liver", 4.06, (64, 64, 48), (-162, 379))],
)
def test_plans_of_real_data(shared_data: Path, name: str, spacing: float, window: tuple, clip: Any) -> None:
    dataset = restrict_dataset(find_cases(shared_data), datasets=[name])
    some = replace(dataset, cases=dataset.cases[:40])
    facts = fingerprint(some)
    resolved = plan_for(facts, datasets=(name,))
    assert (resolved.plan.spacing, resolved.plan.window, resolved.plan.clip) == (spacing, window, clip)
    assert resolved.plan.datasets == (name,)
    assert len(trainable_cases(some.cases, facts, resolved.plan)) == len(some.cases)


def test_splits_and_datasets_are_chosen(shared_data: Path) -> None:
    some = restrict_dataset(find_cases(shared_data), split="dev", datasets=["msd_hippocampus"], most=5)
    assert len(some.cases) == 5
    some = restrict_dataset(find_cases(shared_data), split="dev", datasets=["msd_hippocampus"])
    assert {(case.split, case.dataset) for case in some.cases} == {("dev", "msd_hippocampus")}
    with pytest.raises(SettingsError, match="no split"):
        restrict_dataset(find_cases(shared_data), split="dve")
