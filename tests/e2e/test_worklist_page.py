"""End-to-end test of a worklist with two users and a server that is killed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.browser.routes.test_worklist import ODD, make_folder
from tests.browser.routes.test_worklist_killed import Process
from tests.e2e.page import Page

pytestmark = pytest.mark.browser

MIDDLE, CORNER = (12, 11, 10), (3, 3, 10)
STATES = (
    "() => Object.fromEntries(medsamViewer.worklist.data.cases.map((entry) => [entry.name, entry.state]))"
)


def wait_for(page: Page, condition: str) -> None:
    page.page.wait_for_function(condition)
    page.settle()


def opened(page: Page, name: str) -> None:
    wait_for(page, f"medsamViewer.worklist.current === `{name}` && !document.querySelector('.medsam.busy')")


def introduce(page: Page, name: str) -> None:
    """Choose the folder in the dialog and enter a name."""
    page.page.click("[data-id=open]")
    page.page.click(".files >> text=data")
    page.page.click("[data-id=open-worklist]")
    page.page.fill("[data-id=who]", name)
    page.page.keyboard.press("Enter")


@pytest.mark.forked
def test_a_folder_is_gone_through_and_nothing_is_lost(chromium, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "shown" / "data")
    start = str(data / "a.nii.gz")
    first = Process(data.parent, start)
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    ada = Page(context, str(first.client.base_url))

    # The first case opens. A click is stored and shown in the row. Names are text, never markup.
    introduce(ada, "Ada <i>")
    opened(ada, "a")
    ada.click("axial", MIDDLE, "positive")
    wait_for(ada, "medsamViewer.worklist.data.cases[0].state === 'in progress'")
    row = ada.page.locator("[data-case=a]")
    assert "in progress · Ada <i>" in row.inner_text() and row.get_attribute("aria-current") == "true"
    assert ada.page.locator(".worklist i, .worklist b").count() == 0
    assert ada.page.locator(".worklist .name").all_text_contents() == ["a", "b", ODD]

    # The Teach panel states how many accepted cases it needs.
    ada.page.click("[data-id=teach]")
    ada.page.locator("[data-id=teach-said]", has_text="It takes 4 accepted cases; there are 0.").wait_for()
    assert ada.page.locator("[data-id=teach-start]").is_disabled()
    ada.page.click("[data-id=teach]")

    # Keys: next, previous. Accepting writes the mask and opens the next unfinished case.
    ada.page.keyboard.press(".")
    opened(ada, "b")
    assert ada.state["objects"] == []
    ada.page.click("[data-case=a]")
    opened(ada, "a")
    assert [prompt["coordinates"] for prompt in ada.selected["prompts"]] == [list(MIDDLE)]
    assert ada.tinted("axial", MIDDLE)
    ada.page.keyboard.press("Enter")
    opened(ada, "b")
    assert ada.ask(STATES) == {"a": "accepted", "b": "new", ODD: "new"}
    assert np.asanyarray(nib.load(data / "masks/a_mask.nii.gz").dataobj)[MIDDLE] == 1

    # The server is killed between two clicks; the page reconnects to its replacement.
    ada.click("axial", MIDDLE, "positive")
    before = ada.selected
    port = first.client.base_url.port
    first.kill()
    ada.go_to(CORNER)
    ada.page.keyboard.press("3")
    ada.page.mouse.click(*ada.position("axial", CORNER))
    ada.page.locator(".toast", has_text="waiting for it").wait_for()
    second = Process(data.parent, start, port=port)
    try:
        ada.page.locator(".toast", has_text="Connected again").wait_for()
        opened(ada, "b")
        assert ada.selected["prompts"] == before["prompts"]
        assert ada.selected["volume_ml"] == before["volume_ml"]

        # Another user sees all of this and works on the same case.
        other = chromium.new_context(viewport={"width": 1280, "height": 800})
        bob = Page(other, str(second.client.base_url))
        introduce(bob, "Bob")
        opened(bob, "b")
        assert bob.ask(STATES) == {"a": "accepted", "b": "in progress", ODD: "new"}
        assert bob.selected["prompts"] == before["prompts"]
        bob.click("axial", CORNER, "negative")

        # Ada's next click reports the conflict; she takes Bob's version.
        ada.click("axial", (12, 12, 12), "positive")
        conflict = ada.page.locator("dialog[open]")
        assert "changed by Bob" in conflict.inner_text()
        ada.page.click("[data-id=choose-theirs]")
        wait_for(ada, "medsamViewer.selected?.prompts.length === 2")
        assert ada.selected["prompts"][1]["coordinates"] == list(CORNER)
        # A reloaded page returns to the same case.
        ada.page.reload()
        ada.page.wait_for_selector(".medsam[data-ready=true]")
        opened(ada, "b")
        assert len(ada.selected["prompts"]) == 2

        # Filter, search, skip.
        ada.page.select_option("[data-id=worklist-filter]", "new")
        assert ada.page.locator(".worklist .name").all_text_contents() == [ODD]
        ada.page.select_option("[data-id=worklist-filter]", "")
        ada.page.fill("[data-id=worklist-search]", "ODD")
        assert ada.page.locator(".worklist .name").all_text_contents() == [ODD]
        ada.page.fill("[data-id=worklist-search]", "")
        # After a click in the picture, keys are shortcuts again.
        ada.go_to(MIDDLE)
        ada.page.keyboard.press("1")
        ada.page.fill("[data-id=worklist-search]", "")
        ada.page.mouse.click(*ada.position("axial", MIDDLE))
        ada.page.keyboard.press("3")
        assert ada.ask("() => medsamViewer.mode") == "negative"
        ada.page.click("[data-id=skip]")
        opened(ada, ODD)
        ada.page.keyboard.press(",")
        opened(ada, "b")
        ada.page.keyboard.press(".")
        opened(ada, ODD)
        # Fast input: two steps move by two cases, and a state is set only for the case it was meant for.
        ada.page.keyboard.press(",")
        ada.page.keyboard.press(",")
        opened(ada, "a")
        ada.page.keyboard.press(".")
        ada.page.keyboard.press("u")
        opened(ada, "b")
        assert ada.ask(STATES) == {"a": "accepted", "b": "skipped", ODD: "new"}
        ada.page.keyboard.press(".")
        opened(ada, ODD)
        ada.page.click("[data-id=accept]")
        ada.page.click("[data-id=choose-empty]")
        ada.page.locator(".toast", has_text="Every case of the list is done").wait_for()
        assert ada.ask(STATES) == {"a": "accepted", "b": "skipped", ODD: "accepted"}
        refused = ("422", "Failed to fetch", "ERR_CONNECTION", "Failed to load resource")
        assert not [message for message in ada.complaints if not any(part in message for part in refused)]
        assert not bob.complaints
        other.close()
    finally:
        second.kill()
        context.close()
