"""End-to-end tests of manual mask editing in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsam_app.synthetic.torso import torso_phantom
from tests.e2e.page import LIVER, Page, deepest, read_mask

pytestmark = pytest.mark.browser

LABELS = "name,label,colour,may_overlap\nliver,7,#d55e00,no\n<b>lesion</b>,9,#56b4e9,yes\n"


class Editor(Page):
    """Page with helpers for drawing."""

    def line(self, plane: str, *places, shift: bool = False) -> None:
        """Draw a line through voxel indices (i, j, k) of the file."""
        points = [self.position(plane, place) for place in places]
        if shift:
            self.page.keyboard.down("Shift")
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for x, y in points[1:]:
            self.page.mouse.move(x, y, steps=6)
        self.page.mouse.up()
        if shift:
            self.page.keyboard.up("Shift")
        self.settle()

    def use(self, name: str) -> None:
        self.page.click(f"[data-id={name}]")
        self.settle()

    def inside(self, ijk) -> bool:
        """Return whether a voxel is in the page's copy of the selected object's mask."""
        script = """(ijk) => {
            const mask = medsamViewer.masks.get(medsamViewer.selected.mask);
            return Boolean(mask) && mask.has(medsamViewer.geometry.toRas(ijk));
        }"""
        return self.ask(script, [int(v) for v in ijk])


@pytest.fixture
def editor(server, context) -> Editor:
    return Editor(context, server.url)


def at(place, **shift) -> tuple[int, int, int]:
    """Shift voxel indices along the file's axes: i=3 adds three voxels."""
    return tuple(value + shift.get(axis, 0) for axis, value in zip("ijk", place, strict=True))


def test_a_mask_is_painted_locked_and_kept(editor, tmp_path):
    volume, truth, _ = torso_phantom()
    labels = np.asarray(truth)
    liver = deepest(labels == LIVER, volume.grid.spacing)
    editor.click("axial", liver, "positive")
    clicked_volume = editor.selected["volume_ml"]
    outside = at(liver, i=-38)  # next to the body wall
    if labels[outside] == LIVER:
        outside = at(liver, j=-38)
    assert not editor.inside(outside)

    # The stroke is drawn at once; the response of the server changes the mask.
    editor.page.keyboard.press("5")
    editor.go_to(outside)
    x, y = editor.position("axial", outside)
    editor.page.mouse.move(x, y)
    editor.page.mouse.down()
    editor.page.mouse.move(x + 12, y, steps=4)
    assert editor.ask("() => medsamViewer.edit.strokes.length") == 1
    editor.page.screenshot(path=tmp_path / "stroke.png")
    editor.page.mouse.up()
    editor.settle()
    assert editor.ask("() => medsamViewer.edit.strokes.length") == 0
    assert editor.inside(outside) and editor.selected["volume_ml"] > clicked_volume
    # A later click keeps the painted voxels.
    editor.click("axial", at(liver, i=4), "positive")
    assert editor.inside(outside)

    # The eraser does not change a locked slice.
    editor.page.keyboard.press("6")
    editor.page.keyboard.press("=")
    editor.go_to(liver)
    editor.page.keyboard.press("k")
    editor.settle()
    assert [lock["index"] for lock in editor.selected["locks"]] == [liver[2]]
    editor.line("axial", liver, at(liver, i=6))
    assert "locked" in editor.toast() and editor.inside(liver)
    off = at(liver, k=1)
    editor.go_to(off)
    editor.line("axial", off, at(off, i=6))
    assert not editor.inside(off) and editor.inside(liver)
    # Shift paints with the eraser.
    editor.line("axial", off, at(off, i=6), shift=True)
    assert editor.inside(off)

    # Tools, and the object's history.
    editor.page.click("[data-id=tab-edit]")
    editor.page.fill("[data-id=tool-mm]", "3")
    before = editor.selected["volume_ml"]
    editor.use("tool-grow")
    assert editor.selected["volume_ml"] > before
    editor.page.screenshot(path=tmp_path / "edit.png")
    editor.page.click("[data-id=tab-history]")
    steps = editor.page.locator(".step button")
    steps.first.wait_for()
    assert steps.first.inner_text().startswith("grow 3 mm")
    editor.page.screenshot(path=tmp_path / "history.png")
    steps.nth(1).click()
    editor.settle()
    assert editor.selected["volume_ml"] == pytest.approx(before)
    editor.page.keyboard.press("z")
    editor.settle()
    assert editor.selected["volume_ml"] > before

    saved = editor.download("save-prompts", tmp_path)
    mask, _ = read_mask(editor.download("save-mask", tmp_path))
    assert mask[outside] and mask[liver]
    # Undo everything, then restore it from the prompt file.
    while editor.state["can_undo"]:
        editor.page.keyboard.press("z")
        editor.settle()
    assert editor.state["objects"] == []
    with editor.page.expect_file_chooser() as choosing:
        editor.page.click("[data-id=open]")
        editor.page.locator(".drop").click()
    choosing.value.set_files(saved)
    editor.settle()
    again, _ = read_mask(editor.download("save-mask", tmp_path))
    assert (again == mask).all()
    assert [message for message in editor.complaints if "422" not in message] == []


def test_clicks_and_new_take_the_next_label_of_the_set(editor, tmp_path: Path):
    volume, truth, _ = torso_phantom()
    (tmp_path / "labels.csv").write_text(LABELS)
    editor.page.set_input_files("[data-id=label-file]", tmp_path / "labels.csv")
    editor.settle()
    editor.click("axial", deepest(np.asarray(truth) == LIVER, volume.grid.spacing), "positive")
    assert editor.toast() == "This object is liver, label 7, of the label set."
    editor.use("add-object")
    assert editor.toast() == "This object is <b>lesion</b>, label 9, of the label set."
    editor.page.keyboard.press("n")
    editor.settle()
    assert editor.toast() == "All labels of the set are in use; this object is object 3."
    objects = [(o["name"], o["label"], o["colour"], o["may_overlap"]) for o in editor.state["objects"]]
    liver, lesion, other = objects
    assert liver == ("liver", 7, "#d55e00", False) and lesion == ("<b>lesion</b>", 9, "#56b4e9", True)
    assert other[:2] == ("object 3", 1) and other[2] not in (liver[2], lesion[2])

    # A deleted label becomes available again; the label set stays when another volume is opened.
    editor.ask("() => medsamViewer.deleteObject(medsamViewer.state.objects[0].id)")
    editor.settle()
    editor.use("add-object")
    assert editor.selected["name"] == "liver"
    editor.page.click("[data-id=open]")
    editor.page.click("[data-id=sample]")
    editor.page.wait_for_function("medsamViewer.state.objects.length === 0")
    editor.use("add-object")
    assert editor.selected["name"] == "liver" and not editor.complaints


def test_objects_of_a_label_set_are_drawn_and_combined(editor, tmp_path: Path):
    volume, truth, _ = torso_phantom()
    middle = deepest(np.asarray(truth) == LIVER, volume.grid.spacing)
    (tmp_path / "labels.csv").write_text(LABELS)
    editor.page.set_input_files("[data-id=label-file]", tmp_path / "labels.csv")
    editor.settle()
    editor.page.select_option("[data-id=labels]", "liver")
    editor.settle()
    assert (editor.selected["name"], editor.selected["label"], editor.selected["may_overlap"]) == (
        "liver",
        7,
        False,
    )
    # A scribble is one prompt; a point can be dragged to another voxel.
    editor.go_to(middle)
    editor.page.keyboard.press("7")
    editor.line("axial", at(middle, i=-8), at(middle, j=4), at(middle, i=8))
    (scribble,) = editor.selected["prompts"]
    assert scribble["kind"] == "scribble" and not scribble["unmet"] and editor.inside(middle)
    editor.click("axial", at(middle, i=5, j=-6), "positive")
    editor.line("axial", at(middle, i=5, j=-6), at(middle, i=-5, j=-6))
    moved = editor.selected["prompts"][1]["coordinates"]
    assert np.abs(np.subtract(moved, at(middle, i=-5, j=-6))).max() <= 1
    assert editor.state["undo_text"] == "move positive click of liver"

    # Draw another object by lasso, subtract it from the first, then merge both.
    editor.page.select_option("[data-id=labels]", "<b>lesion</b>")
    editor.settle()
    editor.page.keyboard.press("8")
    corners = [at(middle, i=a, j=b) for a, b in ((-6, -6), (6, -6), (6, 6), (-6, 6), (-6, -6))]
    editor.line("axial", *corners)
    assert editor.inside(middle) and not editor.inside(at(middle, i=9))
    editor.page.screenshot(path=tmp_path / "lasso.png")
    assert editor.page.inner_text(".prompt .what") == f"Lasso · axial {middle[2] + 1}"
    # A mask painted by hand has no score and no uncertainty map, and the model is not run.
    assert "by hand" in editor.page.inner_text(".object[aria-selected=true]")
    editor.page.keyboard.press("d")
    editor.page.locator(".toast", has_text="made by hand").wait_for()
    editor.page.keyboard.press("d")
    lesion = editor.selected["volume_ml"]
    editor.page.keyboard.press("{")
    editor.settle()
    before = editor.selected["volume_ml"]
    editor.page.click("[data-id=tab-edit]")
    editor.use("subtract")
    assert not editor.inside(middle)
    assert before - editor.selected["volume_ml"] == pytest.approx(lesion, rel=0.05)
    editor.use("merge")
    assert editor.inside(middle) and len(editor.state["objects"]) == 1
    editor.page.keyboard.press("z")
    editor.settle()
    assert len(editor.state["objects"]) == 2
    assert editor.page.locator(".object b").count() == 0  # names are never markup
    assert editor.complaints == []
