"""Changing masks by hand: what was drawn holds, locked slices stay, every step goes back and is replayed."""

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
TURN = np.array([[-np.cos(0.3), np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, -1]])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = TURN * (1.5, 1.2, 3.0), (12, -8, 20)
MIDDLE = (15, 13, 9)


def ball_volume() -> Volume:
    at = np.indices(SHAPE)
    ball = sum(((a - m) * mm) ** 2 for a, m, mm in zip(at, MIDDLE, (1.5, 1.2, 3.0), strict=True)) < 12**2
    noise = np.random.default_rng(0).integers(-8, 8, SHAPE, np.int16)
    return Volume(array=np.where(ball, 200, 20).astype(np.int16) + noise, grid=Grid(SHAPE, AFFINE))


@pytest.fixture(scope="module")
def predictor() -> VolumePredictor:
    return VolumePredictor(device="cpu", refine=False)


@pytest.fixture
def session(predictor) -> Session:
    made = Session(ball_volume(), predictor)
    made.add_object("ball")
    made.add_prompt("o1", Point(coordinates=MIDDLE))
    return made


def mask(session: Session, object_id: str = "o1") -> np.ndarray:
    made = session.prediction(object_id)
    return np.zeros(SHAPE, bool) if made is None else made.mask


def test_what_was_drawn_holds_against_later_clicks(session):
    before = mask(session)
    mask_editing.paint(session, "o1", [(3, 4, 2), (6, 4, 2)], radius=3)
    mask_editing.draw_lasso(
        session, "o1", [(15, 0, 9), (30, 0, 9), (30, 26, 9), (15, 26, 9)], axis=2, positive=False
    )
    assert [each.what for each in session.get("o1").prompts[1:]] == ["brush", "lasso, erasing"]
    drawn = mask(session)
    assert drawn[3:7, 4, 2].all() and not drawn[15:, :, 9].any()
    assert (drawn ^ before)[:, :, 9][:15].sum() == 0
    session.add_prompt("o1", Point(coordinates=(10, 13, 9)))
    assert mask(session)[3:7, 4, 2].all() and not mask(session)[15:, :, 9].any()
    # The newest word wins, at once and as one step.
    session.add_prompt("o1", Point(coordinates=(5, 4, 2), positive=False))
    assert not mask(session)[5, 4, 2] and not session.prediction("o1").unmet[2:]
    session.undo()
    assert mask(session)[3:7, 4, 2].all()


def test_a_click_on_a_thin_shell_frees_it_only_nearby():
    at = np.stack(np.indices((40, 40, 40)), axis=-1)
    far = np.linalg.norm(at - (20, 20, 20), axis=-1)
    shell = (far > 13) & (far < 16)
    paint = Paint(what="grow", inside=Bits.from_patch(Patch((0, 0, 0), shell), shell.shape))
    layer = Layer([paint, Point(coordinates=(34, 20, 20), positive=False)], shell.shape)
    left = layer.painted.to_array(shell.shape)
    reach = np.linalg.norm(np.argwhere(shell & ~left) - (34, 20, 20), axis=1).max()
    assert 4 < reach < 10 and left.sum() > 0.8 * shell.sum()
    blob = Paint(what="brush", inside=Bits.from_patch(Patch((0, 0, 0), far < 13), shell.shape))
    layer = Layer([blob, Point(coordinates=(26, 20, 20), positive=False)], shell.shape)
    assert not layer.painted.to_array(shell.shape).any()  # half-way out is deep enough for all of a ball


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nothing_changes_a_locked_slice(session, axis):
    index = MIDDLE[axis]
    mask_editing.set_lock(session, "o1", axis, index, True)
    assert mask_editing.locked_slices(session.get("o1")) == [(axis, index)]
    held = mask(session).take(index, axis=axis)
    mask_editing.paint(session, "o1", [(5, 5, 5), (25, 20, 14)], radius=6)
    mask_editing.paint(session, "o1", [MIDDLE], radius=5, positive=False)
    mask_editing.use_tool(session, "o1", "grow", mm=3)
    off = [2, 2, 2]
    off[axis] = index - 2
    session.add_prompt("o1", Point(coordinates=tuple(off), positive=False))
    assert (mask(session).take(index, axis=axis) == held).all()
    off[axis] = index
    for prompt in (Point(coordinates=tuple(off)), Scribble(coordinates=((2, 2, 2), MIDDLE))):
        with pytest.raises(PromptError, match="locked"):
            session.add_prompt("o1", prompt)
    with pytest.raises(PromptError, match="locked"):
        session.replace_prompt("o1", 0, Point(coordinates=tuple(off)))
    with pytest.raises(PromptError, match="locked"):
        mask_editing.paint(session, "o1", [tuple(off)], radius=2, axis=axis)
    mask_editing.set_lock(session, "o1", axis, index, False)
    # What was drawn across it while it was locked does not come up afterwards.
    assert (mask(session).take(index, axis=axis) ^ held).mean() < 0.05
    session.add_prompt("o1", Point(coordinates=tuple(off)))
    assert mask(session)[tuple(off)]


def test_a_lock_is_named_as_the_page_counts(session):
    mask_editing.set_lock(session, "o1", 2, 3, True)  # k runs against superior: the page's slice 15 of 18
    assert session.undo_text == "lock axial slice 15 on ball"
    with pytest.raises(PromptError, match="no slice 40"):
        mask_editing.set_lock(session, "o1", 0, 40, True)


def test_tools_give_their_masks_and_say_when_there_is_nothing_to_do(session):
    from medsam_app.session import mask_tools

    spacing = session.grid.spacing
    mask_editing.paint(session, "o1", [MIDDLE], radius=4, positive=False)
    mask_editing.paint(session, "o1", [(2, 2, 2)], radius=2)
    for tool, wanted in (
        ("fill holes", lambda m: mask_tools.fill_holes(m)),
        ("keep largest", lambda m: keep_largest(m)),
        ("grow", lambda m: mask_tools.grow(m, spacing, 2.0)),
        ("smooth", lambda m: mask_tools.smooth(m, spacing, 2.0)),
        ("shrink", lambda m: mask_tools.grow(m, spacing, -2.0)),
    ):
        expected = wanted(mask(session))
        mask_editing.use_tool(session, "o1", tool, mm=2.0)
        assert (mask(session) == expected).all(), tool
    before = session.objects
    for tool, mm, error, words in (
        ("fill holes", 1, PromptError, "nothing to change"),
        ("shrink", 60, PromptError, "Nothing would be left"),
        ("grow", 1000, SettingsError, "to 100 mm"),
    ):
        with pytest.raises(error, match=words):
            mask_editing.use_tool(session, "o1", tool, mm=mm)
    session.add_object("empty")
    with pytest.raises(PromptError, match="no mask yet"):
        mask_editing.use_tool(session, "o2", "smooth")
    with pytest.raises(PromptError, match="nothing to erase"):
        mask_editing.paint(session, "o2", [MIDDLE], radius=2, positive=False)
    assert session.objects[0] == before[0]


def test_a_tool_on_one_slice_changes_no_other(session):
    before = mask(session)
    mask_editing.use_tool(session, "o1", "grow", mm=3, axis=1, index=13)
    changed = np.flatnonzero((mask(session) ^ before).any(axis=(0, 2)))
    assert changed.tolist() == [13]
    mask_editing.set_lock(session, "o1", 1, 13, True)
    with pytest.raises(PromptError, match="is locked; unlock the slice"):
        mask_editing.use_tool(session, "o1", "grow", mm=3, axis=1, index=13)


def test_interpolation_fills_gaps_or_goes_by_locked_slices(predictor):
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
    own, theirs, steps = mask(session), mask(session, "o2"), len(session.steps("o1"))
    mask_editing.subtract(session, "o1", "o2")
    assert (mask(session) == (own & ~theirs)).all() and (mask(session, "o2") == theirs).all()
    mask_editing.merge(session, "o1", "o2")
    assert (mask(session) == (own | theirs)).all() and len(session.objects) == 1
    assert session.undo_text == "merge other into ball" and len(session.steps("o1")) == steps + 2
    session.undo()
    assert (mask(session, "o2") == theirs).all()
    for bad in ("o1", "nobody"):
        with pytest.raises(PromptError):
            mask_editing.merge(session, "o1", bad)


def test_an_object_goes_back_alone(session):
    one = mask(session)
    session.add_object("other")
    mask_editing.paint(session, "o2", [(22, 13, 9)], radius=8)
    mask_editing.paint(session, "o1", [(3, 4, 2)], radius=3)
    session.rename("o1", "renamed")
    mask_editing.use_tool(session, "o1", "grow", mm=2)
    other = session.get("o2")
    steps = session.steps("o1")
    assert [step.change for step in steps] == [
        "add ball", "add positive click to ball", "brush on ball", "grow 2 mm on renamed",
    ]  # fmt: skip
    assert [step.now for step in steps] == [False, False, False, True] and all(step.time for step in steps)
    session.go_back("o1", steps[1].number)
    assert (mask(session) == one).all() and session.get("o2") == other
    assert session.get("o1").name == "renamed"
    assert [step.now for step in session.steps("o1")] == [False, True, False, False, True]
    session.undo()
    assert session.steps("o1") == steps
    with pytest.raises(PromptError, match="not there"):
        session.go_back("o2", 1)


@pytest.mark.slow
def test_random_work_undone_and_done_again_is_the_same(session):
    """Whatever is done in whatever order: undo gives every earlier mask back, redo every later one."""
    draw = random.Random(3)
    session.add_object("other")

    def anywhere():
        return tuple(draw.randrange(n) for n in SHAPE)

    doings = [
        lambda o: session.add_prompt(o, Point(coordinates=anywhere(), positive=draw.random() < 0.6)),
        lambda o: session.add_prompt(o, Scribble(coordinates=(anywhere(), anywhere()))),
        lambda o: session.add_prompt(o, Box(lower=anywhere(), upper=anywhere())),
        lambda o: session.delete_prompt(o, draw.randrange(4)),
        lambda o: session.replace_prompt(o, draw.randrange(4), Point(coordinates=anywhere())),
        lambda o: mask_editing.paint(
            session, o, [anywhere(), anywhere()], radius=draw.uniform(0.5, 6), positive=draw.random() < 0.6
        ),
        lambda o: mask_editing.draw_lasso(session, o, [anywhere() for _ in range(5)], axis=draw.randrange(3)),
        lambda o: mask_editing.use_tool(session, o, draw.choice(["grow", "shrink", "smooth"]), mm=2),
        lambda o: mask_editing.use_tool(session, o, draw.choice(["fill holes", "keep largest"])),
        lambda o: mask_editing.use_tool(session, o, "interpolate", axis=draw.randrange(3)),
        lambda o: mask_editing.set_lock(session, o, 2, draw.randrange(18), draw.random() < 0.7),
        lambda o: mask_editing.subtract(session, o, "o2"),
        lambda o: mask_editing.merge(session, "o1", "o2"),
        lambda o: session.set_may_overlap(o, draw.random() < 0.5),
        lambda o: session.go_back(o, session.steps(o)[0].number),
    ]
    seen = [(session.objects, session.label_map())]
    for _ in range(40):
        try:
            draw.choice(doings)(draw.choice(session.objects).id)
        except (PromptError, SettingsError):
            assert session.objects == seen[-1][0]  # what is refused changes nothing
            continue
        if session.objects != seen[-1][0]:
            seen.append((session.objects, session.label_map()))
    assert len(seen) > 15
    for objects, labels in reversed(seen[:-1]):
        assert session.undo()
        assert session.objects == objects and (session.label_map() == labels).all()
    for objects, labels in seen[1:]:
        assert session.redo()
        assert session.objects == objects and (session.label_map() == labels).all()


def test_objects_that_may_not_overlap_share_no_voxel(session):
    lesion = session.add_object("lesion", may_overlap=True)
    organ = session.add_object("organ", may_overlap=False)
    for each in (lesion, organ):
        mask_editing.paint(session, each.id, [(20, 13, 9)], radius=8)
    whole = mask(session)
    assert session.given_up("o1") == 0
    session.set_may_overlap("o1", False)
    theirs = mask(session, organ.id)
    assert (whole & theirs).any() and (mask(session) == (whole & ~theirs)).all()
    assert session.given_up("o1") == (whole & theirs).sum()
    assert (mask(session, lesion.id) == theirs).all()  # which may
    assert {(a.name, b.name) for a, b, _ in session.overlaps()} == {("lesion", "organ")}
    session.settings = replace(session.settings, overlap="earlier")
    assert (mask(session) == whole).all() and not (mask(session, organ.id) & whole).any()


def test_scribbles_are_honoured_all_along(session):
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
    """One of every kind that version 1 of prompt files did not know."""
    session.add_prompt("o1", Scribble(coordinates=((10, 13, 9), (20, 13, 9.5))))
    mask_editing.paint(session, "o1", [(3, 4, 2), (6, 4, 2)], radius=3)
    mask_editing.set_lock(session, "o1", 2, 12, True)
    mask_editing.use_tool(session, "o1", "grow", mm=2)
    session.add_object("drawn", may_overlap=False)
    mask_editing.paint(session, "o2", [(22, 13, 9)], radius=8)
    session.set_may_overlap("o1", False)


@pytest.mark.slow
def test_prompt_files_hold_all_of_it_and_the_command_line_replays_them(session, tmp_path, predictor):
    volume_path = save_mask(session.volume.array.astype(np.uint8), session.volume, tmp_path / "ball.nii.gz")
    session = Session(load_volume(volume_path), predictor)
    session.add_object("ball")
    session.add_prompt("o1", Point(coordinates=MIDDLE))
    assert json.loads(session.save_prompts(tmp_path / "old.prompts.json").read_text())["version"] == 1
    filled(session)
    path = session.save_prompts(tmp_path / "ball.prompts.json")
    assert json.loads(path.read_text())["version"] == 2
    again = Session(session.volume, predictor)
    again.load_prompts(path)
    assert [(e.prompts, e.may_overlap) for e in again.objects] == [
        (e.prompts, e.may_overlap) for e in session.objects
    ]
    assert (again.label_map() == session.label_map()).all()
    out = tmp_path / "out.nii.gz"
    run = CliRunner().invoke(
        cli.app, ["segment", str(volume_path), "-o", str(out), "--prompts", str(path), "--no-refine"]
    )
    assert run.exit_code == 0, run.output
    saved = load_mask(out, session.grid)
    assert (saved == session.label_map()).all()


def test_versions_that_are_not_known_are_refused(session, tmp_path):
    path = session.save_prompts(tmp_path / "a.prompts.json")
    path.write_text(path.read_text().replace('"version": 1', '"version": 3'))
    with pytest.raises(PromptFileError, match="versions 1 and 2"):
        session.load_prompts(path)


@pytest.mark.slow
def test_a_folder_replays_them(session, tmp_path: Path, predictor):
    volume_path = save_mask(session.volume.array.astype(np.uint8), session.volume, tmp_path / "ball.nii.gz")
    session = Session(load_volume(volume_path), predictor)
    session.add_object("ball")
    session.add_prompt("o1", Point(coordinates=MIDDLE))
    filled(session)
    session.save_prompts(tmp_path / "ball.prompts.json")
    out = tmp_path / "masks"
    run = CliRunner().invoke(cli.app, ["segment", str(tmp_path), str(out), "--no-refine"])
    assert run.exit_code == 0, run.output
    (made,) = out.rglob("*.nii.gz")
    assert (load_mask(made, session.grid) == session.label_map()).all()
