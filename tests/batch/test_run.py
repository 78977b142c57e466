"""Folder runs: every case gets its mask or its error message, also after faults and kills."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

from medsam_app.batch import run as batch
from medsam_app.batch.job import Job
from medsam_app.batch.record import HIDDEN, CaseRecord
from medsam_app.batch.run import FolderResult, preview_folder, segment_folder
from medsam_app.batch.worker import Worker
from medsam_app.errors import MedsamError, SaveError, SettingsError
from medsam_app.io.loading import load_mask, load_volume
from tests.support.bad_inputs import BAD_INPUTS
from tests.support.dicom_files import write_series
from tests.support.forked_cli import ForkedCli, run_cli
from tests.support.volume_folders import affine_of, ball, masks_in, table_of, write_volumes

NAMES = ["a.nii.gz", "deep/er/b.nii.gz", "deep/c.nii", "d.nrrd", "e.mha"]


def segment(images: Path, out: Path, **settings: Any) -> FolderResult:
    return segment_folder(
        images, out, **{"prompts": table_of(images), "refine": False, "device": "cpu"} | settings
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volumes(tmp_path_factory.mktemp("data") / "images", NAMES)


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FolderResult:
    """An uninterrupted run."""
    return segment(images, tmp_path_factory.mktemp("straight"))


@pytest.mark.slow
def test_every_mask_lies_on_its_image(images: Path, straight: FolderResult) -> None:
    assert [case.case for case in straight.cases] == ["a", "d", "deep/c", "deep/er/b", "e"]
    assert not straight.stopped and len(straight.having("done")) == 5
    for seed, name in enumerate(NAMES):
        case = name.split(".")[0]
        record = next(file for file in straight.cases if file.case == case)
        path = straight.output / f"{case}.nii.gz"
        assert [file.path for file in record.outputs] == [f"{case}.nii.gz"]
        assert path.stat().st_size == record.outputs[0].bytes
        saved: Any = nib.load(path)
        np.testing.assert_allclose(saved.affine, affine_of(seed), atol=1e-5)
        mask, truth = np.asarray(saved.dataobj) == 1, ball(seed)[1]
        assert (mask & truth).sum() > 0.8 * mask.sum() > 0.25 * truth.sum()
        (object_record,) = record.objects
        assert (object_record.voxels, object_record.prompts, object_record.unmet) == (mask.sum(), 2, 0)
        assert object_record.volume_ml == pytest.approx(mask.sum() * 2e-3)


@pytest.mark.slow
def test_files_next_to_the_masks(images: Path, straight: FolderResult) -> None:
    run = json.loads((straight.output / "run.json").read_text())
    assert run["finished"] and run["counts"] == {"cases": 5, "done": 5, "failed": 0, "skipped": 0}
    assert run["settings"]["model"] == "sam3d_tiny" and len(run["settings"]["weights"]) == 64
    assert {"read", "wait", "segment", "write"} == set(run["cases"][0]["seconds"])
    assert run["cases"][0]["peak_memory"] > 10**8
    rows = list(csv.DictReader((straight.output / "results.csv").open()))
    assert [row["case"] for row in rows] == [case.case for case in straight.cases]
    assert float(rows[0]["volume_ml"]) == pytest.approx(straight.cases[0].objects[0].volume_ml, abs=1e-4)
    page = (straight.output / "index.html").read_text()
    for case in straight.cases:
        assert case.thumbnail is not None
        assert (straight.output / case.thumbnail).read_bytes()[:4] == b"\x89PNG"
        assert case.case in page


@pytest.mark.slow
def test_finished_cases_are_not_repeated(images: Path, tmp_path: Path) -> None:
    first = segment(images, tmp_path)
    before = masks_in(tmp_path)
    again = segment(images, tmp_path)
    assert again.made == () and again.cases == first.cases
    # Only cases with a changed prompt, a missing mask or a changed mask are repeated.
    table = table_of(images).read_text()
    try:
        table_of(images).write_text(table + "e.mha,1,0,0,1,0\n")
        (tmp_path / "a.nii.gz").unlink()
        (tmp_path / "deep/c.nii.gz").write_bytes(b"")
        plan = preview_folder(images, tmp_path, prompts=table_of(images), refine=False)
        assert sorted(job.case for job in plan.todo) == ["a", "deep/c", "e"]
        assert sorted(segment(images, tmp_path).made) == ["a", "deep/c", "e"]
    finally:
        table_of(images).write_text(table)
    assert {name: mask for name, mask in masks_in(tmp_path).items() if name != "e.nii.gz"} == {
        name: mask for name, mask in before.items() if name != "e.nii.gz"
    }


def test_a_name_that_is_not_utf8(images: Path, straight: FolderResult, tmp_path: Path) -> None:
    odd = os.fsdecode(b"bild_\xfc")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{odd}.nii.gz").write_bytes((images / "a.nii.gz").read_bytes())
    (tmp_path / "masks").mkdir()
    mask = next(path for path in straight.output.glob("a.nii.gz"))
    (tmp_path / "masks" / f"{odd}.nii.gz").write_bytes(mask.read_bytes())
    options = {"masks": tmp_path / "masks", "prompts": None}
    for processed in ([odd], []):  # the second run recognises it
        result = segment(tmp_path / "in", tmp_path / "out", **options)
        assert [case.case for case in result.having("done")] == [odd] and list(result.made) == processed
    assert (tmp_path / "out" / f"{odd}.nii.gz").is_file()
    assert r"bild_\udcfc" in (tmp_path / "out/index.html").read_text()


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed(images: Path, tmp_path: Path) -> None:
    segment(images, tmp_path)
    with pytest.raises(SettingsError, match=r"other settings \(refine: False, here none\)"):
        segment(images, tmp_path, refine=None)
    again = segment(images, tmp_path, separate=True, overwrite=True)
    assert len(again.made) == 5
    assert [each.path for each in again.cases[0].outputs] == ["a/1_label_1.nii.gz"]


def test_existing_files_are_not_overwritten(images: Path, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_text("mine")
    with pytest.raises(SaveError, match=r"a\.nii\.gz exist already"):
        segment(images, tmp_path)
    assert (tmp_path / "a.nii.gz").read_text() == "mine"
    with pytest.raises(SaveError, match="among the images"):
        segment(images, images)


@pytest.mark.slow
def test_two_runs_exclude_each_other(images: Path, tmp_path: Path) -> None:
    (tmp_path / HIDDEN).mkdir()
    with FileLock(tmp_path / HIDDEN / "lock"), pytest.raises(SettingsError, match="Another run is at work"):
        segment(images, tmp_path)
    with FileLock(tmp_path / HIDDEN / "lock-1-of-2"):
        for shard in (None, "1/2", "1/3"):
            with pytest.raises(SettingsError, match="Another run is at work"):
                segment(images, tmp_path, shard=shard)
        segment(images, tmp_path, shard="2/2")


@pytest.mark.slow
def test_shards_give_the_same_as_one_run(images: Path, straight: FolderResult, tmp_path: Path) -> None:
    parts = [segment(images, tmp_path, shard=f"{n}/2") for n in (1, 2)]
    assert sorted(case.case for part in parts for case in part.cases) == [
        case.case for case in straight.cases
    ]
    assert masks_in(tmp_path) == masks_in(straight.output)
    assert (tmp_path / "run-1-of-2.json").is_file() and (tmp_path / "run-2-of-2.json").is_file()
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["case"] for row in rows] == [case.case for case in straight.cases]


@pytest.mark.slow
def test_bad_files_are_reported_and_do_not_affect_others(
    images: Path, straight: FolderResult, tmp_path: Path
) -> None:
    """Segment good files among all known bad files."""
    mixed = write_volumes(tmp_path / "mixed", NAMES)
    for number, bad in enumerate(BAD_INPUTS):
        folder = mixed / f"bad{number}"
        folder.mkdir()
        with contextlib.suppress(MedsamError):
            bad.run(folder)
    names = {volume.case for volume in batch.find_volumes(mixed)}
    assert len(names) > 60
    with table_of(mixed).open("a") as table:
        for case in sorted(names - {"a", "d", "e", "deep/c", "deep/er/b"}):
            table.write(f'"{case}",1,1,1,1,1\n')
    result = segment(mixed, tmp_path / "out")
    assert len(result.cases) == len(names)
    good = {name: mask for name, mask in masks_in(tmp_path / "out").items() if not name.startswith("bad")}
    assert good == masks_in(straight.output)
    failed = result.having("failed")
    assert len(failed) > 40
    for case in failed:
        assert case.message.strip().endswith((".", ";")) and "Traceback" not in case.message, case
        assert "not foreseen" not in case.message, case
        assert not case.outputs
    for case in result.having("done"):
        volume = load_volume(case.image, series=case.series)
        load_mask(result.output / case.outputs[0].path, volume.grid)


@pytest.mark.slow
def test_formats_of_the_images(tmp_path: Path) -> None:
    images = write_volumes(tmp_path / "images", ["a.nii", "b.nrrd", "c.mha", "d.nii.gz"])
    array, _, (i, j, k) = ball(9)
    write_series(images / "ct", (array + 100).clip(0).astype(np.uint16), FrameOfReferenceUID="1.2.3.7")
    with table_of(images).open("a") as table:
        table.write(f"ct,1,{i},{j},{k},1\n")
    result = segment(images, tmp_path / "out", format="input")
    assert [each.outputs[0].path for each in result.cases] == [
        "a.nii",
        "b.nrrd",
        "c.mha",
        "ct.seg.dcm",
        "d.nii.gz",
    ]
    for case in result.cases[:3]:
        load_mask(result.output / case.outputs[0].path, load_volume(case.image).grid)
    from medsam_app.io.dicom.seg_writer import read_dicom_seg

    labels, _ = read_dicom_seg(result.output / "ct.seg.dcm", load_volume(images / "ct").grid)
    assert labels.sum() == result.cases[3].objects[0].voxels


def test_objects_one_by_one_and_their_probabilities(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "two.csv"
    i, j, k = ball(0)[2]
    table.write_text(f"image,label,name,i,j,k\na,1,the ball,{i},{j},{k}\na,4,all,2,2,2\n")
    result = segment(images, tmp_path / "out", prompts=table, separate=True, probabilities=True)
    case = result.cases[0]
    assert [each.path for each in case.outputs] == [
        "a/1_the_ball.nii.gz", "a/4_all.nii.gz",
        "a/1_the_ball_probability.nii.gz", "a/4_all_probability.nii.gz",
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert [row["output"] for row in rows[:3]] == ["a/1_the_ball.nii.gz", "a/4_all.nii.gz", ""]
    assert [each.outcome for each in result.cases] == ["done", "skipped", "skipped", "skipped", "skipped"]
    for name, object_record in zip(("1_the_ball", "4_all"), case.objects, strict=True):
        mask: Any = nib.load(tmp_path / f"out/a/{name}.nii.gz")
        chance: Any = nib.load(tmp_path / f"out/a/{name}_probability.nii.gz")
        inside, probability = np.asarray(mask.dataobj) == 1, np.asarray(chance.dataobj)
        assert inside.sum() == object_record.voxels
        np.testing.assert_array_equal(probability > 0.5, inside)
        assert probability.min() >= 0 and probability.max() <= 1 and len(np.unique(probability)) > 20
        np.testing.assert_array_equal(mask.affine, chance.affine)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_its_results(
    images: Path, straight: FolderResult, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", small], capture_output=True
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        (small / "filler").write_bytes(bytes(268 * 1024))
        with pytest.raises(SaveError, match="No space left on device"):
            segment(images, small)
        (small / "filler").unlink()
        segment(images, small)
        assert masks_in(small) == masks_in(straight.output)
        assert not [path for path in small.rglob("*") if path.name.startswith(".saving-")]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_an_unexpected_error_fails_only_its_case(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Worker._read

    def worse(self: Worker, job: Job) -> Any:
        if job.case == "d":
            raise KeyError("surprise")
        if job.case == "e":
            raise MemoryError
        return read(self, job)

    monkeypatch.setattr(Worker, "_read", worse)
    result = segment(images, tmp_path)
    messages = {case.case: case.message for case in result.having("failed")}
    assert set(messages) == {"d", "e"} and len(result.having("done")) == 3
    assert "not foreseen ended this case (KeyError: 'surprise')" in messages["d"]
    assert "KeyError" in (tmp_path / HIDDEN / "errors/d.txt").read_text()
    assert "does not fit into the memory" in messages["e"]


def command(images: Path, out: Path, *more: str) -> list[str]:
    options = ["--prompts", str(table_of(images)), "--no-refine", "--device", "cpu", *more]
    return ["segment", str(images), str(out), *options]


@pytest.mark.forked
@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_with_the_same_files(
    images: Path, straight: FolderResult, tmp_path: Path
) -> None:
    draw = random.Random(4)
    log = tmp_path / HIDDEN / "journal.jsonl"
    for _ in range(20):
        child = ForkedCli(command(images, tmp_path))
        # A kill before the first case begins tests little, so wait for it.
        size, end = log.stat().st_size if log.exists() else 0, time.monotonic() + 60
        while child.returncode is None and time.monotonic() < end:
            if log.exists() and log.stat().st_size > size:
                time.sleep(draw.uniform(0, 0.4))
                break
            time.sleep(0.01)
        child.kill()
        child.wait()
        for path, mask in masks_in(tmp_path).items():  # complete or absent at any time
            assert mask == (straight.output / path).read_bytes()
    ended = run_cli(command(images, tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert "5 of 5 cases done" in ended.stdout
    assert masks_in(tmp_path) == masks_in(straight.output)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".saving-")]


@pytest.mark.forked
@pytest.mark.slow
def test_ctrl_c_ends_after_the_cases_in_progress(images: Path, tmp_path: Path) -> None:
    process = ForkedCli(command(images, tmp_path))
    log, end = tmp_path / HIDDEN / "journal.jsonl", time.monotonic() + 60
    while not log.exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err and "Traceback" not in err
    assert 1 <= json.loads((tmp_path / "run.json").read_text())["counts"]["done"] < 5


@pytest.mark.forked
@pytest.mark.slow
def test_the_command_reports_the_result(images: Path, tmp_path: Path) -> None:
    (images / "z.nii.gz").write_bytes(b"broken")
    try:
        with table_of(images).open("a") as table:
            table.write("z,1,0,0,0,1\n")
        dry_run = run_cli(command(images, tmp_path, "--dry-run"))
        assert dry_run.returncode == 0 and "6 cases: 6 to do, 0 done. Nothing was written." in dry_run.stdout
        assert not (tmp_path / "run.json").exists()
        run = run_cli(command(images, tmp_path))
        assert run.returncode == 1
        assert "5 of 6 cases done, 1 failed, 0 skipped" in run.stdout
        assert "Failed: z: 'z.nii.gz'" in run.stderr and "Traceback" not in run.stderr
    finally:
        (images / "z.nii.gz").unlink()
        lines = table_of(images).read_text().splitlines()
        table_of(images).write_text("\n".join(line for line in lines if not line.startswith("z,")) + "\n")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:many"])
def test_a_missing_cluster_is_reported(images: Path, tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingsError, match="No Ray cluster answers"):
        segment(images, tmp_path, engine="ray", ray_address=address)
    with pytest.raises(SettingsError, match="are for --engine ray"):
        segment(images, tmp_path, ray_address=address)


def descends(process: int) -> bool:
    """Return whether a process is a descendant of this one: other users may run Ray as well."""
    while process > 1:
        if process == os.getpid():
            return True
        stat = Path(f"/proc/{process}/stat").read_text()
        process = int(stat.rpartition(")")[2].split()[1])
    return False


@pytest.mark.slow
def test_ray_gives_the_same_when_a_worker_is_killed(
    images: Path, straight: FolderResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's workers run at a low priority and could wait for minutes here.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    killed: list[int] = []

    def kill(record: CaseRecord, done: int, count: int) -> None:
        if not killed:
            listing = subprocess.run(["pgrep", "-f", "ray::Worker"], capture_output=True, text=True)
            killed.extend([pid for pid in map(int, listing.stdout.split()) if descends(pid)][:1])
            os.kill(killed[0], signal.SIGKILL)

    result = segment(images, tmp_path, engine="ray", workers=2, watch=kill)
    assert killed and len(result.having("done")) == 5
    assert masks_in(tmp_path) == masks_in(straight.output)
