"""Prompt files: exact round trips of prompts and masks, and error messages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medsam_app.errors import PromptFileError, SaveError
from medsam_app.grid.geometry import Grid
from medsam_app.io.loading import load_volume
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask
from medsam_app.models.identity import ModelIdentity
from medsam_app.prompts.types import Box, Choice, MaskPrompt, Point
from medsam_app.session.prompt_file import open_prompt_file, read_prompt_file
from medsam_app.session.prompt_schema import voxel_of, world_box
from medsam_app.session.session import Session

# Oblique, left-handed and anisotropic, so that any mix-up of axes is visible.
AFFINE = np.array([[-1.9, 0.3, 0.2, 31.0], [0.25, 1.4, -0.4, -20.0], [0.1, 0.5, 2.9, 7.5], [0, 0, 0, 1]])
SHAPE = (26, 24, 18)


def ball_volume(seed: int = 0) -> Volume:
    i, j, k = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    array = np.random.default_rng(seed).normal(0, 8, SHAPE)
    array[((i - 11) ** 2 + (j - 12) ** 2 + (k - 9) ** 2) < 30] += 200
    return Volume.from_array(array.astype(np.float32), AFFINE)


@pytest.fixture(scope="module")
def predictor():
    from medsam_app.predict.predictor import VolumePredictor

    return VolumePredictor(device="cpu")


def filled(session: Session) -> Session:
    """Add two objects with prompts of every kind."""
    ball, corner = session.add_object("ball", label=300, colour="#123456"), session.add_object("corner 角")
    session.add_prompt(ball.id, Box(lower=(5, 6, 4), upper=(17, 18, 14)))
    session.add_prompt(ball.id, Point(coordinates=(11.25, 12, 9)))
    session.add_prompt(ball.id, Box(lower=(6, 7, 9), upper=(16, 17, 9)))
    session.add_prompt(ball.id, Point(coordinates=(2, 2, 2), positive=False))
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 2:6, 1:3] = True
    session.add_prompt(corner.id, MaskPrompt.from_array(mask))
    return session


@pytest.fixture
def written(tmp_path) -> tuple[Path, Session]:
    session = filled(Session(ball_volume(), overlap="earlier"))
    return session.save_prompts(tmp_path / "case.prompts.json"), session


def edited(path: Path, change) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_objects_and_settings_are_read_back(written):
    path, session = written
    reopened = Session(ball_volume())
    assert reopened.load_prompts(path) == []
    assert reopened.objects == session.objects
    assert reopened.settings == session.settings
    assert reopened.undo_text == "open case.prompts.json"
    assert reopened.add_object().id not in {item.id for item in session.objects}
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file remains


def test_reading_and_writing_gives_the_same_file(written, tmp_path):
    path, session = written
    reopened = Session(session.volume)
    reopened.load_prompts(path)
    assert reopened.save_prompts(tmp_path / "again.prompts.json").read_text() == path.read_text()


@pytest.mark.slow
def test_replay_gives_the_same_mask_bit_for_bit(predictor, tmp_path):
    from medsam_app.predict.predictor import VolumePredictor

    session = filled(Session(ball_volume(), predictor))
    labels = session.label_map()
    assert set(np.unique(labels)) == {0, 1, 300}
    path = session.save_prompts(tmp_path / "a.prompts.json")
    fresh = Session(ball_volume(), VolumePredictor(device="cpu"))  # a new predictor with an empty cache
    assert fresh.load_prompts(path) == []
    np.testing.assert_array_equal(fresh.label_map(), labels)
    assert [fresh.prediction(item.id).score for item in fresh.objects] == [
        session.prediction(item.id).score for item in session.objects
    ]


def test_opening_is_one_step_of_the_history(written):
    path, _ = written
    session = Session(ball_volume())
    item = session.add_object("mine")
    session.load_prompts(path)
    assert session.undo() and session.objects == (item,)


def test_file_names_the_image_relative_to_itself(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "out").mkdir()
    image = tmp_path / "images" / "case.nii.gz"
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:5, 3:5, 3:5] = 1
    save_mask(mask, ball_volume(), image)
    session = Session(load_volume(image))
    path = session.save_prompts(tmp_path / "out" / "case.prompts.json")
    assert read_prompt_file(path).image.path == "../images/case.nii.gz"


def test_world_coordinates_are_converted(written):
    path, session = written
    grid = session.volume.grid
    position = grid.to_world((11, 12, 9)).tolist()

    def change(data):
        data["objects"][0]["prompts"] = [
            {"kind": "point", "coordinates": position, "sign": "negative", "space": "world"},
            {"kind": "point", "coordinates": [1, 2, 3], "sign": "positive", "space": "voxel"},
        ]

    replay = open_prompt_file(edited(path, change), session.volume)
    first, second = replay.objects[0].prompts
    np.testing.assert_allclose(first.coordinates, (11, 12, 9), atol=1e-6)
    assert not first.positive and second == Point(coordinates=(1, 2, 3))
    assert replay.objects[0].times == ("", "")


def test_world_box_contains_the_whole_box():
    grid = Grid(SHAPE, AFFINE)
    lower, upper = (5.0, -8.0, 20.0), (15.0, 4.0, 34.0)
    box = world_box(lower, upper, grid)
    inside = np.random.default_rng(0).uniform(lower, upper, (500, 3))
    voxels = grid.to_voxel(inside)
    assert (voxels >= np.array(box.lower) - 1e-6).all() and (voxels <= np.array(box.upper) + 1e-6).all()
    straight = Grid(SHAPE, np.diag([-2.0, -2.0, 3.0, 1.0]))
    assert world_box((-20, -10, 9), (-4, -2, 9), straight).slice_axis == 2
    assert voxel_of((-20.0, -10.0, 9.0), straight) == (10, 5, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1,\r"b" 2,\r\n}', "line 2"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "not JSON text"),
        (b"[1, 2]", "not a prompt file"),
        (b'{"points": []}', "not a prompt file"),
        (
            b'{"format": "medsam_app prompts", "version": 99, "written_by": "x 9"}',
            "version 99.*reads .* 1.*x 9",
        ),
        (b'{"format": "medsam_app prompts"}', "version None"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_other_files_are_refused_with_a_message(tmp_path, content, message):
    path = tmp_path / "x.prompts.json"
    path.write_bytes(content)
    with pytest.raises(PromptFileError, match=message) as caught:
        read_prompt_file(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PromptFileError, match="cannot be read"):
            read_prompt_file(path)


def test_every_problem_is_listed_at_once(written):
    path, _ = written

    def change(data):
        data["image"]["sha256"] = "abc"
        data["objects"][0]["label"] = 70000
        data["objects"][0]["prompts"][1]["coordinates"] = [1, 2]
        data["objects"][0]["prompts"][3]["positve"] = True
        del data["objects"][0]["prompts"][3]["sign"]
        data["objects"][1]["prompts"][0]["kind"] = "spell"
        data["colour"] = "red"

    with pytest.raises(PromptFileError) as caught:
        read_prompt_file(edited(path, change))
    message = str(caught.value)
    for expected in (
        "7 problems",
        "image, sha256:",
        "object 1, label: input should be less than or equal to 65535 (got '70000')",
        "object 1, prompt 2, coordinate 3: is missing",
        "object 1, prompt 4, positve: is not a field",
        "object 1, prompt 4, sign: is missing",
        "object 2, prompt 1:",
        "colour: is not a field of this format (got 'red')",
    ):
        assert expected in message, message
    assert "\n" not in message


def test_messages_list_a_limited_number_of_problems(written):
    path, _ = written

    def change(data):
        for n in range(500):
            data[f"x{n}"] = 1

    with pytest.raises(PromptFileError, match=r"500 problems.*and 488 more"):
        read_prompt_file(edited(path, change))


def test_all_invalid_prompts_are_listed(written):
    path, session = written

    def change(data):
        first, second = data["objects"]
        first["prompts"][1]["coordinates"] = [99, 1, 1]
        first["prompts"][3]["coordinates"] = [1, -7, 1]
        second["name"], second["label"] = "ball", 300
        second["prompts"][0]["packed"] = "@@@"

    with pytest.raises(PromptFileError) as caught:
        open_prompt_file(edited(path, change), session.volume)
    message = str(caught.value)
    point = "object 'ball', prompt 2: a point at (99, 1, 1)"
    for expected in ("5 problems", "name 'ball'", "label 300", point, "prompt 4", "prompt 1: A mask"):
        assert expected in message, message


@pytest.mark.parametrize(
    "change",
    [
        {"stop": [99, 6, 3]},
        {"start": [3, 6, 3]},
        {"shape": [1 << 40, 1 << 40, 1 << 40], "stop": [1 << 40, 1 << 40, 1 << 40]},
        {"packed": ""},
        {"packed": "eJwDAAAAAAE="},
        {"packed": "QUFBQQ=="},
        {"packed": "x"},
    ],
)
def test_damaged_masks_are_refused_before_they_take_memory(written, change):
    path, session = written
    edited(path, lambda data: data["objects"][1]["prompts"][0].update(change))
    with pytest.raises(PromptFileError, match="object 'corner 角', prompt 1"):
        open_prompt_file(path, session.volume)


def test_failed_load_changes_nothing(written):
    path, _ = written
    session = Session(ball_volume())
    before, settings = session.add_object(), session.settings
    edited(path, lambda data: data["objects"][1].update(name="ball"))
    with pytest.raises(PromptFileError):
        session.load_prompts(path)
    assert session.objects == (before,) and session.settings == settings


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((26, 24, 17), AFFINE, "shape"),
        (SHAPE, AFFINE + np.eye(4, k=3) * 5, "mm away"),
        (SHAPE, AFFINE @ np.diag([1.5, 1, 1, 1]), "spacing"),
        (SHAPE, AFFINE @ np.diag([-1, 1, 1, 1]), "orientation"),
    ],
)
def test_another_grid_is_always_refused(written, shape, affine, message):
    path, _ = written
    other = Volume.from_array(np.zeros(shape, np.float32) + np.arange(shape[2]), affine)
    with pytest.raises(PromptFileError, match=message):
        open_prompt_file(path, other, other_image=True)


def test_other_voxels_need_an_option(written):
    path, _ = written
    with pytest.raises(PromptFileError, match=r"same grid but other voxels.*--other-image"):
        open_prompt_file(path, ball_volume(seed=1))
    (note,) = open_prompt_file(path, ball_volume(seed=1), other_image=True).notes
    assert "another image" in note


def test_other_models_are_noted(written):
    path, session = written
    edited(path, lambda data: data.update(model={"id": "sam3d_tiny", "sha256": "a" * 64}))
    assert open_prompt_file(path, session.volume, identity=ModelIdentity("sam3d_tiny", "a" * 64)).notes == []
    (note,) = open_prompt_file(path, session.volume, identity=ModelIdentity("sam3d_tiny", "b" * 64)).notes
    assert "other weights of sam3d_tiny" in note and "may differ" in note
    (note,) = open_prompt_file(path, session.volume, identity=ModelIdentity("other", "a" * 64)).notes
    assert "not other" in note
    edited(path, lambda data: data.update(adapter={"id": "kidneys", "sha256": "c" * 64}))
    (note,) = open_prompt_file(path, session.volume, identity=ModelIdentity("sam3d_tiny", "a" * 64)).notes
    assert "adapter kidneys" in note
    edited(path, lambda data: data["settings"].update(refine=False))
    session.load_prompts(path)
    assert session.settings.refine is False


def test_unwritable_paths_are_refused_with_a_message(written, tmp_path):
    _, session = written
    with pytest.raises(SaveError, match="could not be written"):
        session.save_prompts(tmp_path / "nowhere" / "x.prompts.json")
    (tmp_path / "folder.prompts.json").mkdir()
    with pytest.raises(SaveError, match="could not be written"):
        session.save_prompts(tmp_path / "folder.prompts.json")
    assert not list(tmp_path.glob(".*"))


def test_file_is_replaced_and_readable_by_others(written):
    path, session = written
    session.add_object("third")
    session.save_prompts(path)
    assert len(read_prompt_file(path).objects) == 3
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.slow
def test_a_chosen_mask_is_replayed(predictor, tmp_path):
    """The choice is stored, and files without one keep their version."""
    volume = ball_volume()
    session = Session(volume, predictor)
    item = session.add_object("ball")
    session.add_prompt(item.id, Point(coordinates=(11, 12, 9)))
    path = session.save_prompts(tmp_path / "first.prompts.json")
    assert read_prompt_file(path).version == 1
    masks = session.alternatives(item.id)
    other = next(mask for mask in masks if not mask.shown)
    session.choose(item.id, other.number)
    session.add_prompt(item.id, Point(coordinates=(2, 2, 2), positive=False))
    path = session.save_prompts(tmp_path / "chosen.prompts.json")
    assert read_prompt_file(path).version == 3
    replayed = Session(volume, predictor)
    assert replayed.load_prompts(path) == []
    assert replayed.get(item.id).prompts == session.get(item.id).prompts
    assert replayed.get(item.id).prompts[1] == Choice(number=other.number)
    assert np.array_equal(replayed.label_map(), session.label_map())

    def misplace(data):
        data["objects"][0]["prompts"].reverse()

    with pytest.raises(PromptFileError, match=r"object 'ball', prompt 2: chooses a mask, but"):
        replayed.load_prompts(edited(path, misplace))
