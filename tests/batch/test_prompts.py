"""Prompts for the volumes of a folder: tables, coarse masks, prompt files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from medsam_app.batch.prompts import Prompts, objects_of_mask, objects_of_rows
from medsam_app.batch.settings import BatchSettings, make_settings
from medsam_app.errors import (
    AdapterError,
    GridMismatch,
    ModelError,
    PromptFileError,
    SettingsError,
    VolumeError,
)
from medsam_app.io.loading import load_volume
from medsam_app.io.volume_folder import find_volumes
from medsam_app.io.writing import save_mask
from medsam_app.prompts.types import Box, Point
from tests.support.volume_folders import write_volumes


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_volumes(tmp_path / "images", ["a.nii.gz", "sub/b.nii.gz", "other/b.nii.gz"])


def objects_of_table(images: Path, text: str) -> dict[str, list]:
    table = images.with_name("table.csv")
    table.write_text(text)
    volumes = find_volumes(images)
    case_prompts = Prompts(images, make_settings({"prompts": table})).of(volumes)
    grid = load_volume(images / "a.nii.gz").grid
    return {
        volume.case: objects_of_rows(prompts.rows, grid)
        for volume, prompts in zip(volumes, case_prompts, strict=True)
    }


def test_points_and_boxes_of_a_table(images: Path) -> None:
    objects = objects_of_table(
        images,
        "image,label,name,i,j,k,sign,i2,j2,k2\n"
        "a.nii.gz,2,liver,3,4,5,+,,,\n"
        "a,2,,1,1,1,,8,9,10\n"
        "a,2,,6,6,6,negative,,,\n"
        "sub/b,7,,1,2,3,1,,,\n",
    )
    (liver,) = objects["a"]
    assert (liver.label, liver.name) == (2, "liver")
    assert liver.prompts == [
        Box(lower=(1, 1, 1), upper=(8, 9, 10)),
        Point(coordinates=(3, 4, 5)),
        Point(coordinates=(6, 6, 6), positive=False),
    ]
    assert [item.label for item in objects["sub/b"]] == [7] and objects["other/b"] == []


def test_world_millimetres_and_semicolons(images: Path) -> None:
    grid = load_volume(images / "a.nii.gz").grid
    x, y, z = (f"{value:.3f}".replace(".", ",") for value in grid.to_world((3, 4, 5)))
    (item,) = objects_of_table(images, f"Image;Label;X;Y;Z\na;1;{x};{y};{z}\n")["a"]
    assert item.prompts == [Point(coordinates=(3, 4, 5))]


def test_all_problems_of_a_table_are_reported_together(images: Path) -> None:
    with pytest.raises(PromptFileError) as raised:
        objects_of_table(
            images,
            "image,label,i,j,k,sign\nnone,1,1,1,1,1\nb,1,1,1,1,1\na,0,1,1,1,1\na,1,x,1,1,1\na,1,1,1,1,maybe\n",
        )
    message = str(raised.value)
    assert "has 5 problems: line 2: there are no such image" in message
    assert "line 3: there are 2 images of that name" in message
    for part in ("line 4: the label", "line 5: i, j, k are numbers", "line 6: the sign"):
        assert part in message
    with pytest.raises(PromptFileError, match="wanted are image, label and i, j, k"):
        objects_of_table(images, "file,x\na,1\n")


def test_prompts_of_a_coarse_mask(images: Path, tmp_path: Path) -> None:
    volume = load_volume(images / "a.nii.gz")
    mask = np.zeros(volume.shape, dtype=np.uint8)
    mask[2:7, 3:12, 4:9] = 5
    mask[15:18, 3:6, 4:7] = 2
    save_mask(mask, volume, tmp_path / "a.nii.gz")
    settings = BatchSettings(from_masks="both")
    small, large = objects_of_mask(tmp_path / "a.nii.gz", volume, settings, "a")
    assert (small.label, large.label) == (2, 5)
    assert large.prompts == [Box(lower=(2, 3, 4), upper=(6, 11, 8)), Point(coordinates=(4, 5, 5))]
    jittered = settings.model_copy(update={"jitter": 0.3})
    drawn = [objects_of_mask(tmp_path / "a.nii.gz", volume, jittered, case)[1] for case in "aab"]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != large
    box, point = drawn[0].prompts
    assert isinstance(box, Box) and isinstance(point, Point)
    assert (
        np.abs(np.subtract(box.lower, (2, 3, 4))).max() <= 3 and mask[tuple(map(int, point.coordinates))] == 5
    )
    odd = os.fsdecode(b"bild_\xfc")  # a name that is not valid UTF-8
    assert objects_of_mask(tmp_path / "a.nii.gz", volume, jittered, odd)[1] != drawn[0]
    with pytest.raises(GridMismatch, match="does not lie on the grid"):
        objects_of_mask(tmp_path / "a.nii.gz", load_volume(images / "sub/b.nii.gz"), settings, "b")


def test_masks_and_prompt_files_are_found_by_name(images: Path, tmp_path: Path) -> None:
    volumes = find_volumes(images)
    coarse = tmp_path / "coarse"
    (coarse / "sub").mkdir(parents=True)
    (coarse / "sub/b.nrrd").write_text("x")
    by_mask = Prompts(images, make_settings({"masks": coarse})).of(volumes)
    assert [prompts.mask for prompts in by_mask] == [None, None, coarse / "sub/b.nrrd"]
    assert "no mask" in by_mask[0].missing
    (images / "sub/b.prompts.json").write_text("x")
    by_prompt_file = Prompts(images, make_settings({})).of(volumes)
    assert [prompts.prompt_file for prompts in by_prompt_file] == [None, None, images / "sub/b.prompts.json"]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"masks": ".", "prompts": "."}, SettingsError, "both say where"),
        ({"automatic": True}, AdapterError, "labels that an adapter or a net was taught"),
        ({"only": ["liver"]}, SettingsError, "are for 'automatic'"),
        ({"jitter": 0.1}, SettingsError, "are for 'masks'"),
        ({"format": "png"}, SettingsError, "'format' is wrong"),
        ({"prompts": "nowhere"}, VolumeError, "no file or folder"),
        ({"weights": "nowhere.pth"}, ModelError, "no file of weights"),
        ({"model": "sam3d_tini"}, ModelError, "Did you mean 'sam3d_tiny'"),
        ({"colour": "red"}, SettingsError, "'colour' is wrong"),
    ],
)
def test_invalid_settings(values: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make_settings(values)
