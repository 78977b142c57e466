"""End-to-end tests of fast input, keyboard focus and a second tab of one session."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tests.e2e.page import LIVER, Page, deepest

pytestmark = pytest.mark.browser


def test_fast_actions_apply_to_their_targets(opened, phantom):
    """Several actions are requested before the first one is done."""
    volume, labels, _ = phantom
    i, j, k = map(int, deepest(labels == LIVER, volume.spacing))

    def click(step: int, *, wait: bool = True) -> None:
        script = "(ijk) => void medsamViewer.clickPoint(medsamViewer.geometry.toRas(ijk), true)"
        opened.ask(script, [i + step, j, k])
        if wait:
            opened.settle()

    for step in (0, 3, 6):
        click(step)
    first = opened.selected["prompts"][0]
    for _ in range(2):
        opened.page.keyboard.press("x")
    opened.settle()
    assert opened.selected["prompts"] == [first]
    # A click and its undo before the model has responded; then a prompt that is deleted twice.
    click(4, wait=False)
    opened.page.keyboard.press("z")
    opened.settle()
    assert opened.selected["prompts"] == [first] and opened.state["can_redo"]
    click(3)
    opened.ask("() => { medsamViewer.deletePrompt(1); medsamViewer.deletePrompt(1); }")
    opened.settle()
    assert opened.selected["prompts"] == [first] and not opened.complaints


def test_keys_reach_the_focused_control(opened, phantom):
    volume, labels, _ = phantom
    opened.click("axial", deepest(labels == LIVER, volume.spacing), "positive")
    # After a choice with the mouse, a list does not receive the next key.
    opened.page.select_option("select[aria-label='Window preset']", "1")
    opened.page.keyboard.press("b")
    assert opened.ask("() => [medsamViewer.mode, medsamViewer.preset]") == ["box", 1]
    # By keyboard: the Hide button is pressed twice and keeps focus.
    opened.page.keyboard.press("Tab")
    opened.page.locator(".object .ends button").first.focus()
    for hidden in (1, 0):
        opened.page.keyboard.press("Enter")
        assert opened.ask("() => medsamViewer.view.hidden.size") == hidden
    # A check box receives the space bar.
    opened.page.get_by_role("tab", name="Edit").click()
    box = opened.page.locator(
        ".tabs input[type=checkbox]:visible, [role=tabpanel] input[type=checkbox]"
    ).first
    box.focus()
    ticked = box.is_checked()
    opened.page.keyboard.press(" ")
    opened.settle()
    assert box.is_checked() != ticked
    # A refused value is replaced by the stored one.
    field = opened.page.locator(".object input.label")
    field.fill("liver")
    field.press("Enter")
    assert "whole number" in opened.toast() and field.input_value() == "1"
    assert not opened.complaints


def test_two_tabs_of_one_session_do_not_mix_volumes(server, opened, context):
    nib.save(
        nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4)), server.service.roots[0] / "dark.nii.gz"
    )
    token = opened.ask("() => medsamViewer.api.token")
    context.add_init_script(f"sessionStorage.setItem('medsam-session', {token!r})")
    other = Page(context, server.url)
    other.page.evaluate("medsamViewer.open({ source: 'folder', root: 0, path: 'dark.nii.gz' })")
    other.page.wait_for_function("medsamViewer.volume.name === 'dark'")
    other.settle()
    opened.page.mouse.click(*opened.position("axial", (10, 10, 10)))
    assert "Another volume has been opened in this session" in opened.toast()
    other.ask("() => medsamViewer.act({ do: 'look' }, '')")
    assert other.state["objects"] == [] and not other.complaints
    opened.page.reload()
    opened.page.wait_for_selector(".medsam[data-ready=true]")
    assert opened.page.locator("h1").inner_text() == "dark"
