"""Accessibility: themes, screen readers, keyboard, touch, narrow windows; and hostile names."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.e2e.page import LIVER, PATIENCE, Page, deepest

# ruff: noqa: E501  scripts for the page
pytestmark = pytest.mark.browser
STATIC = Path(__file__).parents[2] / "medsam_app/browser/static"

#: Visible controls without an accessible name.
NAMELESS = """() => {
    const named = (node) => {
        const by = (node.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join("");
        const label = [...(node.labels ?? [])].map((element) => element.textContent).join("");
        return (node.getAttribute("aria-label") || by || label || node.textContent || node.title || "").trim();
    };
    const query = ".medsam :is(button, input, select, textarea, dialog, [role=button], [role=tab], [role=listbox], [role=option], canvas.overlay)";
    return [...document.querySelectorAll(query)]
        .filter((node) => node.offsetParent !== null && node.type !== "file" && !named(node))
        .map((node) => node.outerHTML.slice(0, 160));
}"""
#: Visible controls too small for touch, with their sizes.
SMALL = """() => [...document.querySelectorAll(".medsam :is(button, select, input[type=text], input[type=number])")]
    .filter((node) => node.offsetParent !== null)
    .map((node) => [node.getBoundingClientRect(), node])
    .filter(([box]) => box.height < 39.5)
    .map(([box, node]) => `${Math.round(box.width)}x${Math.round(box.height)} ${node.outerHTML.slice(0, 120)}`)"""
#: Controls of the toolbar that are partly outside it.
CUT = """() => [...document.querySelectorAll(".medsam .toolbar :is(button, select, input)")]
    .filter((node) => node.offsetParent !== null)
    .filter((node) => { const b = node.getBoundingClientRect(), bar = node.closest(".toolbar").getBoundingClientRect(); return b.left < 0 || b.right > innerWidth + 0.5 || b.bottom > bar.bottom; })
    .map((node) => node.outerHTML.slice(0, 120))"""
#: Parts of the right column that overflow, and names that do not fit.
WIDE = """() => [...document.querySelectorAll(".medsam .sidebar, .medsam .sidebar :is(section, [role=tabpanel], .line, .edit-row, canvas, .editable.name)")]
    .filter((node) => node.offsetParent !== null && (node.scrollWidth > node.clientWidth + 1 || node.getBoundingClientRect().right > innerWidth))
    .map((node) => `${node.scrollWidth} in ${node.clientWidth}: ${node.outerHTML.slice(0, 120)}`)"""
#: Truncated text without a tooltip.
LOST = """() => [...document.querySelectorAll(".medsam *")]
    .filter((node) => node.offsetParent !== null && node.scrollWidth > node.clientWidth + 1)
    .filter((node) => getComputedStyle(node).textOverflow === "ellipsis" && !node.closest("[title]"))
    .map((node) => node.outerHTML.slice(0, 160))"""
#: Lowest contrast ratio of text outside the planes against its background.
CONTRAST = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    let worst = [99, ""];
    for (const node of document.querySelectorAll(".medsam :is(h1, h2, p, span, label, button)")) {
        const text = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
        if (!text || node.offsetParent === null || node.closest(":disabled, .stage")) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 120)];
    }
    return worst;
}"""


def test_light_and_dark_names_and_focus(server, chromium, tmp_path):
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = Page(context, server.url)

    def theme() -> str:
        return page.page.locator(".medsam").get_attribute("data-theme")

    page.ask("() => medsamViewer.addObject()")
    page.settle()
    assert theme() == "light"  # follows the system
    for tab in page.page.locator(".medsam [role=tab]").all():
        tab.click()
        assert page.ask(NAMELESS) == []
    ratio, where = page.ask(CONTRAST)
    assert ratio > 3.0, where
    plane = page.ask("() => getComputedStyle(document.querySelector('.pane')).backgroundColor")
    assert plane == "rgb(5, 7, 10)"  # the planes are black in both themes
    page.page.screenshot(path=tmp_path / "light.png")
    page.page.emulate_media(color_scheme="dark")
    page.page.wait_for_selector(".medsam[data-theme=dark]")  # the page follows the system
    assert page.ask(CONTRAST)[0] > 3.0
    page.page.keyboard.press("g")
    assert theme() == "light" and "light" in page.toast()
    page.page.reload()
    page.page.wait_for_selector(".medsam[data-ready=true]")
    assert theme() == "light"  # remembered
    page.page.click("[data-id=theme]")
    assert theme() == "dark"

    # Focus is visible on every element that Tab reaches.
    for _ in range(12):
        page.page.keyboard.press("Tab")
        shown = page.ask(
            "() => { const at = document.activeElement; return !at.closest('.medsam') || at.tagName === 'CANVAS' ||"
            " parseFloat(getComputedStyle(at).outlineWidth) >= 2 || getComputedStyle(at).borderColor; }"
        )
        assert shown

    # The help shows every key of the table, and all controls of dialogs have names.
    page.ask("() => document.activeElement.blur()")  # a focused field would receive the key
    page.page.keyboard.press("?")
    shown = page.page.locator(".help").inner_text()
    table = re.findall(r'^  \["\w+", "(.+?)", "(.+?)",', (STATIC / "keys.js").read_text(), re.MULTILINE)
    assert len(table) > 25
    for keys, what in table:
        assert what in shown, what
        for key in re.split(r"\s{2,}", keys):
            assert key in shown, key
    assert page.ask(NAMELESS) == []
    page.page.keyboard.press("Escape")
    page.page.click("[data-id=open]")
    assert page.ask(NAMELESS) == []
    assert not page.complaints
    context.close()


def test_keys_alone_find_a_place_and_click_there(opened: Page, phantom) -> None:
    """Only by keyboard: Tab to a plane, move within its slice and through slices, click inside and outside."""
    volume, labels, _ = phantom
    keys = opened.page.keyboard
    target = opened.ask(
        "(ijk) => medsamViewer.geometry.toRas(ijk)", list(deepest(labels == LIVER, volume.spacing))
    )

    def at() -> list[int]:
        return opened.ask("() => medsamViewer.crosshair")

    def heard(text: str) -> None:
        opened.page.wait_for_function(
            "(text) => document.querySelector('[data-id=heard]').textContent.includes(text)", arg=text
        )

    for _ in range(60):
        keys.press("Tab")
        if opened.ask("() => document.activeElement.dataset.plane === 'axial'"):
            break
    assert opened.ask("() => parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    assert "Enter clicks" in opened.page.locator(".status .hint").inner_text()
    before = at()
    keys.press("Shift+ArrowLeft")
    keys.press("Shift+ArrowUp")
    assert at() == [before[0] + 1, before[1] + 1, before[2]]
    keys.press("Control+Shift+ArrowRight")
    assert at() == [before[0] - 9, before[1] + 1, before[2]]
    for axis, more, less in (
        (0, "Shift+ArrowLeft", "Shift+ArrowRight"),
        (1, "Shift+ArrowUp", "Shift+ArrowDown"),
        (2, "ArrowUp", "ArrowDown"),
    ):
        while (difference := target[axis] - at()[axis]) != 0:
            keys.press(more if difference > 0 else less)
    assert at() == target
    heard(f"Axial {target[2] + 1} of {labels.shape[2]}, voxel ")

    keys.press("Enter")
    opened.page.wait_for_function("medsamViewer.selected?.mask")
    opened.settle()
    assert [(p["kind"], p["positive"]) for p in opened.selected["prompts"]] == [("point", True)]
    assert opened.selected["prompts"][0]["coordinates"] == list(deepest(labels == LIVER, volume.spacing))
    heard("object 1, ")
    keys.press("Control+Shift+ArrowUp")
    keys.press("Shift+Enter")
    opened.page.wait_for_function("medsamViewer.selected.prompts.length === 2")
    opened.settle()
    assert not opened.selected["prompts"][1]["positive"]

    # An enlarged plane follows the crosshair. After pointer input, Enter no longer places a click.
    opened.ask("() => medsamViewer.planes.axial.zoomAt(20, 5, 5)")
    keys.press("Shift+ArrowDown")
    x, y = opened.ask("() => medsamViewer.planes.axial.toScreen(medsamViewer.crosshair)")
    box = opened.page.locator(".pane[data-plane=axial]").bounding_box()
    assert 0 < x < box["width"] and 0 < y < box["height"]
    keys.press("1")
    opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert opened.ask("() => document.activeElement.dataset.plane") == "axial"
    keys.press("Enter")
    opened.settle()
    assert len(opened.selected["prompts"]) == 2 and not opened.complaints


def test_a_tablet_in_both_directions(server, chromium, tmp_path):
    for width, height in ((1024, 768), (820, 1180)):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, has_touch=True, is_mobile=True
        )
        page = Page(context, server.url)
        page.ask("() => medsamViewer.addObject()")
        page.settle()
        page.page.screenshot(path=tmp_path / f"tablet{width}.png")
        assert page.ask("() => matchMedia('(pointer: coarse)').matches")
        assert page.ask(SMALL) == []
        assert page.ask(CUT) == []
        page.ask("() => medsamViewer.root.classList.add('listing')")
        assert page.ask(CUT) == []
        page.ask("() => medsamViewer.root.classList.remove('listing')")
        sizes = page.ask(
            "() => [...document.querySelectorAll('.pane')].filter((p) => p.offsetParent).map((p) => p.getBoundingClientRect().height)"
        )
        assert min(sizes) > 150
        context.close()


def test_a_narrow_window_cuts_nothing(server, chromium, tmp_path):
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = Page(context, server.url)
    for name in ("anterior hippocampus", "posterior hippocampus"):
        page.ask("() => medsamViewer.addObject()")
        page.ask("(name) => medsamViewer.changeObject(medsamViewer.state.selected, { name })", name)
        page.settle()
    page.ask("() => medsamViewer.clickPoint(medsamViewer.crosshair, true)")
    page.settle()
    for width, height in ((1280, 800), (1024, 768), (820, 1180)):
        page.page.set_viewport_size({"width": width, "height": height})
        for tab in page.page.locator(".medsam [role=tab]").all():
            tab.click()
            page.settle()
            assert page.ask(WIDE) == [], (width, tab.inner_text())
            assert page.ask(LOST) == [], (width, tab.inner_text())
        page.page.screenshot(path=tmp_path / f"window{width}.png")
        assert page.ask(CUT) == [], width
        page.ask("() => medsamViewer.root.classList.add('listing')")  # a worklist at the left
        assert page.ask(CUT) == [], width
        page.ask("() => medsamViewer.root.classList.remove('listing')")
    # A checked box looks different from an unchecked one, also in the light theme.
    page.page.click("[data-id=tab-edit]")
    box = page.page.locator("[data-id=brush-ball]")
    without = box.screenshot()
    box.check()
    assert box.screenshot() != without
    assert not page.complaints
    context.close()


def test_hostile_names_do_nothing_in_the_page(server, chromium, tmp_path):
    """Names of files, objects and volumes would run a script if they were inserted as markup."""
    evil = "<img src=x onerror=window.ran=1><script>window.ran=1<"
    folder = server.service.roots[0]
    name = "<img src=x onerror=window.ran=1>"
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 20, 20)).astype("f4"), np.eye(4))
    nib.save(image, folder / f"{name}.nii.gz")
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    page = Page(context, server.url)
    page.page.click("[data-id=open]")
    page.page.locator(".file", has_text="onerror").first.click()
    page.page.wait_for_function(
        "medsamViewer.volume.name.includes('onerror') && !medsamViewer.busy", timeout=PATIENCE
    )
    page.ask("() => medsamViewer.addObject()")
    page.settle()
    page.ask("(name) => medsamViewer.changeObject(medsamViewer.state.selected, { name })", evil)
    page.settle()
    assert page.selected["name"] == evil.strip()
    for tab in page.page.locator(".medsam [role=tab]").all():
        tab.click()
    page.page.keyboard.press("?")
    page.page.keyboard.press("Escape")
    page.ask("(name) => medsamViewer.toasts.show(name, 'error')", evil)
    page.page.wait_for_timeout(200)
    assert page.ask("() => window.ran") is None
    assert page.ask("() => document.querySelectorAll('.medsam img, .medsam script').length") == 0
    assert page.page.locator("h1").inner_text() == name
    context.close()
    (folder / f"{name}.nii.gz").unlink()
