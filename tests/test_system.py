"""Memory of the system, and the share of cached cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medsam_app.finetuning.training_windows import TrainingWindows, bytes_on_grid
from medsam_app.io.loading import load_volume, read_grid
from medsam_app.system import _free_in_container, free_memory, machine_memory
from tests.support.bad_kit import nifti
from tests.support.teaching_folder import ball_cases, small_plan


def test_free_memory_is_less_than_total() -> None:
    total, free = machine_memory(), free_memory()
    if total is not None:
        assert free is not None
        assert 0 < free < total


@pytest.mark.parametrize(
    ("limit", "used", "line"),
    [
        ("memory.max", "memory.current", "inactive_file 300"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file 300"),
    ],
)
def test_the_limit_of_a_container_applies(tmp_path: Path, limit: str, used: str, line: str) -> None:
    assert not list(_free_in_container(tmp_path))
    for name, text in ((limit, "1000\n"), (used, "600\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / limit).with_name("memory.stat").write_text(f"anon 5\n{line}\nslab 7\n")
    assert list(_free_in_container(tmp_path)) == [700]
    (tmp_path / limit).write_text("max\n")
    assert not list(_free_in_container(tmp_path))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_the_header_gives_the_grid(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith("gz"):
        nifti(file)
    else:
        image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
        image.SetSpacing((1.5, 2.0, 3.0))
        image.SetOrigin((5.0, -7.0, 1.0))
        image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
        sitk.WriteImage(image, str(file))
    assert not load_volume(file).grid.difference(read_grid(file))


def test_cases_are_cached_as_far_as_they_fit(tmp_path: Path) -> None:
    plan, cases = small_plan(spacing=0.7), ball_cases(tmp_path)
    sizes = [bytes_on_grid(case, plan) for case in cases]
    windows = TrainingWindows(cases, plan, memory=sum(sizes[:3]))
    assert (windows.cached, windows.count) == (3, 4)
    for size, arrays in zip(sizes, windows.cases._cache, strict=False):
        voxels = sum(arrays[key].nbytes for key in ("image", "label", "valid"))
        taken = voxels + sum(array.nbytes for array in arrays["label_cls_indices"])
        assert 0.8 * size < taken <= size
    assert TrainingWindows(cases, plan, memory=sizes[0] - 1).cached == 0
    assert TrainingWindows(cases, plan, memory=sizes[0] - 1).draw(0).image.shape == plan.window
