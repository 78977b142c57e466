"""Manual mask editing: persistence, locked slices, undo and replay."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medsam_app.cli import app as cli
from medsam_app.errors import PromptError, PromptFileError, SettingsError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.masks import keep_largest
from medsam_app.grid.patch import Patch
from medsam_app.io.loading import load_mask, load_volume
from medsam_app.io.volume import Volume
from medsam_app.io.writing import save_mask
from medsam_app.predict.core.paint_layer import Layer
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import Bits, Box, Paint, Point, Scribble
from medsam_app.session import mask_editing
from medsam_app.session.session import Session

SHAPE = (30, 26, 18)
#: Oblique, flipped and anisotropic.
ROTATION = np.array([[-np.cos(0.3), np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, -1]])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = ROTATION * (1.5, 1.2, 3.0), (12, -8, 20)
MIDDLE = (15, 13, 9)


def ball_volume() -> Volume:
    indices = np.indices(SHAPE)
    ball = sum(((a - m) * mm) ** 2 for a, m, mm in zip(indices, MIDDLE, (1.5, 1.2, 3.0), strict=True)) < 12**2
    noise = np.random.default_rng(0).integers(-8, 8, SHAPE, np.int16)
    return Volume(array=np.where(ball, 200, 20).astype(np.int16) + noise, grid=Grid(SHAPE, AFFINE))


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(device="cpu", refine=False)


@pytest.fixture
def session(predictor) -> Session:
    new_session = Session(ball_volume(), predictor)
    new_session.add_object("ball")
    new_session.add_prompt("o1", Point(coordinates=MIDDLE))
    return new_session


def mask(session: Session, object_id: str = "o1") -> np.ndarray:
    prediction = session.prediction(object_id)
    return np.zeros(SHAPE, bool) if prediction is None else prediction.mask


def test_strokes_persist_after_later_clicks(session):
    before = mask(session)
    mask_editing.paint(session, "o1", [(3, 4, 2), (6, 4, 2)], radius=3)
    mask_editing.draw_lasso(
        session, "o1", [(15, 0, 9), (30, 0, 9), (30, 26, 9), (15, 26, 9)], axis=2, positive=False
    )
    assert [prompt.what for prompt in session.get("o1").prompts[1:]] == ["brush", "lasso, erasing"]
    drawn = mask(session)
    assert drawn[3:7, 4, 2].all() and not drawn[15:, :, 9].any()
    assert (drawn ^ before)[:, :, 9][:15].sum() == 0
    session.add_prompt("o1", Point(coordinates=(10, 13, 9)))
    assert mask(session)[3:7, 4, 2].all() and not mask(session)[15:, :, 9].any()
    # The newest prompt has priority, immediately and as one step of the history.
    session.add_prompt("o1", Point(coordinates=(5, 4, 2), positive=False))
    assert not mask(session)[5, 4, 2] and not session.prediction("o1").unmet[2:]
    session.undo()
    assert mask(session)[3:7, 4, 2].all()


def test_a_negative_click_on_a_thin_shell_clears_only_its_vicinity():
    indices = np.stack(np.indices((40, 40, 40)), axis=-1)
    distance = np.linalg.norm(indices - (20, 20, 20), axis=-1)
    shell = (distance > 13) & (distance < 16)
    paint = Paint(what="grow", inside=Bits.from_patch(Patch((0, 0, 0), shell), shell.shape))
    layer = Layer([paint, Point(coordinates=(34, 20, 20), positive=False)], shell.shape)
    remaining = layer.painted.to_array(shell.shape)
    reach = np.linalg.norm(np.argwhere(shell & ~remaining) - (34, 20, 20), axis=1).max()
    assert 4 < reach < 10 and remaining.sum() > 0.8 * shell.sum()
    blob = Paint(what="brush", inside=Bits.from_patch(Patch((0, 0, 0), distance < 13), shell.shape))
    layer = Layer([blob, Point(coordinates=(26, 20, 20), positive=False)], shell.shape)
    # A click half-way to the surface of a solid ball clears all of it.
    assert not layer.painted.to_array(shell.shape).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_locked_slices_never_change(session, axis):
    index = MIDDLE[axis]
    mask_editing.set_lock(session, "o1", axis, index, True)
    assert mask_editing.locked_slices(session.get("o1")) == [(axis, index)]
    locked = mask(session).take(index, axis=axis)
    mask_editing.paint(session, "o1", [(5, 5, 5), (25, 20, 14)], radius=6)
    mask_editing.paint(session, "o1", [MIDDLE], radius=5, positive=False)
    mask_editing.use_tool(session, "o1", "grow", mm=3)
    position = [2, 2, 2]
    position[axis] = index - 2
    session.add_prompt("o1", Point(coordinates=tuple(position), positive=False))
    assert (mask(session).take(index, axis=axis) == locked).all()
    position[axis] = index
    for prompt in (Point(coordinates=tuple(position)), Scribble(coordinates=((2, 2, 2), MIDDLE))):
        with pytest.raises(PromptError, match="locked"):
            session.add_prompt("o1", prompt)
    with pytest.raises(PromptError, match="locked"):
        session.replace_prompt("o1", 0, Point(coordinates=tuple(position)))
    with pytest.raises(PromptError, match="locked"):
        mask_editing.paint(session, "o1", [tuple(position)], radius=2, axis=axis)
    mask_editing.set_lock(session, "o1", axis, index, False)
    # Strokes across the slice while it was locked do not appear after unlocking.
    assert (mask(session).take(index, axis=axis) ^ locked).mean() < 0.05
    session.add_prompt("o1", Point(coordinates=tuple(position)))
    assert mask(session)[tuple(position)]


def test_the_undo_text_of_a_lock_has_the_slice_number_of_the_page(session):
    mask_editing.set_lock(session, "o1", 2, 3, True)  # k runs against superior: the page's slice 15 of 18
    assert session.undo_text == "lock axial slice 15 on ball"
    with pytest.raises(PromptError, match="no slice 40"):
        mask_editing.set_lock(session, "o1", 0, 40, True)


def test_tools_apply_their_function_and_refuse_to_do_nothing(session):
    from medsam_app.session import mask_tools

    spacing = session.grid.spacing
    mask_editing.paint(session, "o1", [MIDDLE], radius=4, positive=False)
    mask_editing.paint(session, "o1", [(2, 2, 2)], radius=2)
    for tool, function in (
        ("fill holes", lambda m: mask_tools.fill_holes(m)),
        ("keep largest", lambda m: keep_largest(m)),
        ("grow", lambda m: mask_tools.grow(m, spacing, 2.0)),
        ("smooth", lambda m: mask_tools.smooth(m, spacing, 2.0)),
        ("shrink", lambda m: mask_tools.grow(m, spacing, -2.0)),
    ):
        expected = function(mask(session))
        mask_editing.use_tool(session, "o1", tool, mm=2.0)
        assert (mask(session) == expected).all(), tool
    before = session.objects
    for tool, mm, error, message in (
        ("fill holes", 1, PromptError, "nothing to change"),
        ("shrink", 60, PromptError, "Nothing would be left"),
        ("grow", 1000, SettingsError, "to 100 mm"),
    ):
        with pytest.raises(error, match=message):
            mask_editing.use_tool(session, "o1", tool, mm=mm)
    session.add_object("empty")
    with pytest.raises(PromptError, match="no mask yet"):
        mask_editing.use_tool(session, "o2", "smooth")
    with pytest.raises(PromptError, match="nothing to erase"):
        mask_editing.paint(session, "o2", [MIDDLE], radius=2, positive=False)
    assert session.objects[0] == before[0]


def test_a_tool_on_one_slice_changes_no_other_slice(session):
    before = mask(session)
    mask_editing.use_tool(session, "o1", "grow", mm=3, axis=1, index=13)
    changed = np.flatnonzero((mask(session) ^ before).any(axis=(0, 2)))
    assert changed.tolist() == [13]
    mask_editing.set_lock(session, "o1", 1, 13, True)
    with pytest.raises(PromptError, match="is locked; unlock the slice"):
        mask_editing.use_tool(session, "o1", "grow", mm=3, axis=1, index=13)


def test_interpolation_fills_gaps_or_uses_locked_slices_as_keys(predictor):
    session = Session(ball_volume(), predictor)
    session.add_object("drawn")
    for k in (3, 11):
        mask_editing.paint(session, "o1", [(10 + k, 13, k)], radius=6, axis=2)
    mask_editing.use_tool(session, "o1", "interpolate", axis=2)
    assert np.flatnonzero(mask(session).any(axis=(0, 1))).tolist() == list(range(3, 12))
    assert mask(session)[17, 13, 7]
    mask_editing.paint(session, "o1", [(17, 13, 7)], radius=3, axis=2, positive=False)
    for k in (3, 5):
        mask_editing.set_lock(session, "o1", 2, k, True)
    before = mask(session)
    mask_editing.paint(session, "o1", [(4, 4, 4)], radius=4, axis=2)
    mask_editing.use_tool(session, "o1", "interpolate", axis=2)
    assert not mask(session)[4, 4, 4] and (mask(session) ^ before).sum(axis=(0, 1))[5:].sum() == 0


def test_merging_and_subtracting_objects(session):
    session.add_object("other")
    mask_editing.paint(session, "o2", [(22, 13, 9)], radius=8)
    mask_1, mask_2, steps = mask(session), mask(session, "o2"), len(session.steps("o1"))
    mask_editing.subtract(session, "o1", "o2")
    assert (mask(session) == (mask_1 & ~mask_2)).all() and (mask(session, "o2") == mask_2).all()
    mask_editing.merge(session, "o1", "o2")
    assert (mask(session) == (mask_1 | mask_2)).all() and len(session.objects) == 1
    assert session.undo_text == "merge other into ball" and len(session.steps("o1")) == steps + 2
    session.undo()
    assert (mask(session, "o2") == mask_2).all()
    for bad in ("o1", "nobody"):
        with pytest.raises(PromptError):
            mask_editing.merge(session, "o1", bad)


def test_going_back_changes_one_object_only(session):
    earlier = mask(session)
    session.add_object("other")
    mask_editing.paint(session, "o2", [(22, 13, 9)], radius=8)
    mask_editing.paint(session, "o1", [(3, 4, 2)], radius=3)
    session.rename("o1", "renamed")
    mask_editing.use_tool(session, "o1", "grow", mm=2)
    second = session.get("o2")
    steps = session.steps("o1")
    assert [step.change for step in steps] == [
        "add ball", "add positive click to ball", "brush on ball", "grow 2 mm on renamed",
    ]  # fmt: skip
    assert [step.now for step in steps] == [False, False, False, True] and all(step.time for step in steps)
    session.go_back("o1", steps[1].number)
    assert (mask(session) == earlier).all() and session.get("o2") == second
    assert session.get("o1").name == "renamed"
    assert [step.now for step in session.steps("o1")] == [False, True, False, False, True]
    session.undo()
    assert session.steps("o1") == steps
    with pytest.raises(PromptError, match="not there"):
        session.go_back("o2", 1)


@pytest.mark.slow
def test_random_edits_are_undone_and_redone_exactly(session):
    """After any sequence of edits, undo restores every earlier mask and redo every later one."""
    rng = random.Random(3)
    session.add_object("other")

    def voxel():
        return tuple(rng.randrange(n) for n in SHAPE)

    edits = [
        lambda o: session.add_prompt(o, Point(coordinates=voxel(), positive=rng.random() < 0.6)),
        lambda o: session.add_prompt(o, Scribble(coordinates=(voxel(), voxel()))),
        lambda o: session.add_prompt(o, Box(lower=voxel(), upper=voxel())),
        lambda o: session.delete_prompt(o, rng.randrange(4)),
        lambda o: session.replace_prompt(o, rng.randrange(4), Point(coordinates=voxel())),
        lambda o: mask_editing.paint(
            session,
            o,
            [voxel(), voxel()],
            radius=rng.uniform(0.5, 6),
            positive=rng.random() < 0.6,
        ),
        lambda o: mask_editing.draw_lasso(session, o, [voxel() for _ in range(5)], axis=rng.randrange(3)),
        lambda o: mask_editing.use_tool(session, o, rng.choice(["grow", "shrink", "smooth"]), mm=2),
        lambda o: mask_editing.use_tool(session, o, rng.choice(["fill holes", "keep largest"])),
        lambda o: mask_editing.use_tool(session, o, "interpolate", axis=rng.randrange(3)),
        lambda o: mask_editing.set_lock(session, o, 2, rng.randrange(18), rng.random() < 0.7),
        lambda o: mask_editing.subtract(session, o, "o2"),
        lambda o: mask_editing.merge(session, "o1", "o2"),
        lambda o: session.set_may_overlap(o, rng.random() < 0.5),
        lambda o: session.go_back(o, session.steps(o)[0].number),
    ]
    states = [(session.objects, session.label_map())]
    for _ in range(40):
        try:
            rng.choice(edits)(rng.choice(session.objects).id)
        except (PromptError, SettingsError):
            assert session.objects == states[-1][0]  # a refused edit changes nothing
            continue
        if session.objects != states[-1][0]:
            states.append((session.objects, session.label_map()))
    assert len(states) > 15
    for objects, labels in reversed(states[:-1]):
        assert session.undo()
        assert session.objects == objects and (session.label_map() == labels).all()
    for objects, labels in states[1:]:
        assert session.redo()
        assert session.objects == objects and (session.label_map() == labels).all()


def test_objects_that_may_not_overlap_share_no_voxel(session):
    lesion = session.add_object("lesion", may_overlap=True)
    organ = session.add_object("organ", may_overlap=False)
    for item in (lesion, organ):
        mask_editing.paint(session, item.id, [(20, 13, 9)], radius=8)
    full = mask(session)
    assert session.subtracted_voxels("o1") == 0
    session.set_may_overlap("o1", False)
    organ_mask = mask(session, organ.id)
    assert (full & organ_mask).any() and (mask(session) == (full & ~organ_mask)).all()
    assert session.subtracted_voxels("o1") == (full & organ_mask).sum()
    assert (mask(session, lesion.id) == organ_mask).all()  # the lesion may overlap
    assert {(a.name, b.name) for a, b, _ in session.overlaps()} == {("lesion", "organ")}
    session.settings = replace(session.settings, overlap="earlier")
    assert (mask(session) == full).all() and not (mask(session, organ.id) & full).any()


def test_masks_satisfy_scribbles_along_their_whole_length(session):
    line = Scribble(coordinates=((6, 13, 9), (8, 20, 9), (15, 22, 6)))
    session.add_prompt("o1", line)
    assert mask(session)[tuple(line.voxels(SHAPE).T)].all()
    against = Scribble(coordinates=((20, 8, 9), (22, 14, 9)), positive=False)
    mask_editing.paint(session, "o1", [(21, 11, 9)], radius=3)
    session.add_prompt("o1", against)
    assert not mask(session)[tuple(against.voxels(SHAPE).T)].any()
    assert session.prediction("o1").unmet == ()
    assert len(line.clicks()) <= 8 and len(Scribble(coordinates=((1, 1, 1),)).clicks()) == 1
    with pytest.raises(PromptError, match="scribble"):
        session.add_prompt("o1", Scribble(coordinates=((1, 1, 1), (1, 1, 99))))


def filled(session: Session) -> None:
    """Add a prompt of every kind that is new in version 2 of prompt files."""
    session.add_prompt("o1", Scribble(coordinates=((10, 13, 9), (20, 13, 9.5))))
    mask_editing.paint(session, "o1", [(3, 4, 2), (6, 4, 2)], radius=3)
    mask_editing.set_lock(session, "o1", 2, 12, True)
    mask_editing.use_tool(session, "o1", "grow", mm=2)
    session.add_object("drawn", may_overlap=False)
    mask_editing.paint(session, "o2", [(22, 13, 9)], radius=8)
    session.set_may_overlap("o1", False)


@pytest.mark.slow
def test_prompt_files_hold_all_edits_and_the_command_line_replays_them(session, tmp_path, predictor):
    volume_path = save_mask(session.volume.array.astype(np.uint8), session.volume, tmp_path / "ball.nii.gz")
    session = Session(load_volume(volume_path), predictor)
    session.add_object("ball")
    session.add_prompt("o1", Point(coordinates=MIDDLE))
    assert json.loads(session.save_prompts(tmp_path / "old.prompts.json").read_text())["version"] == 1
    filled(session)
    path = session.save_prompts(tmp_path / "ball.prompts.json")
    assert json.loads(path.read_text())["version"] == 2
    reopened = Session(session.volume, predictor)
    reopened.load_prompts(path)
    assert [(item.prompts, item.may_overlap) for item in reopened.objects] == [
        (item.prompts, item.may_overlap) for item in session.objects
    ]
    assert (reopened.label_map() == session.label_map()).all()
    out = tmp_path / "out.nii.gz"
    run = CliRunner().invoke(
        cli.app, ["segment", str(volume_path), "-o", str(out), "--prompts", str(path), "--no-refine"]
    )
    assert run.exit_code == 0, run.output
    saved = load_mask(out, session.grid)
    assert (saved == session.label_map()).all()


def test_unknown_versions_are_refused(session, tmp_path):
    path = session.save_prompts(tmp_path / "a.prompts.json")
    path.write_text(path.read_text().replace('"version": 1', '"version": 4'))
    with pytest.raises(PromptFileError, match="versions 1 to 3"):
        session.load_prompts(path)


@pytest.mark.slow
def test_a_batch_replays_prompt_files(session, tmp_path: Path, predictor):
    volume_path = save_mask(session.volume.array.astype(np.uint8), session.volume, tmp_path / "ball.nii.gz")
    session = Session(load_volume(volume_path), predictor)
    session.add_object("ball")
    session.add_prompt("o1", Point(coordinates=MIDDLE))
    filled(session)
    session.save_prompts(tmp_path / "ball.prompts.json")
    out = tmp_path / "masks"
    run = CliRunner().invoke(cli.app, ["segment", str(tmp_path), str(out), "--no-refine"])
    assert run.exit_code == 0, run.output
    (path,) = out.rglob("*.nii.gz")
    assert (load_mask(path, session.grid) == session.label_map()).all()
