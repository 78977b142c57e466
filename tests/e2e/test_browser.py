"""End-to-end tests of the main workflow in a browser."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medsam_app.browser.app import running
from medsam_app.browser.state.service import Service
from medsam_app.grid.geometry import Grid
from tests.e2e.page import AORTA, LIVER, PATIENCE, RIGHT_KIDNEY, Page, deepest, dice, read_mask
from tests.support.dicom_files import write_series

pytestmark = pytest.mark.browser

PLANES = ("axial", "coronal", "sagittal")
VIEW = """() => {
    const { crosshair, image, planes } = medsamViewer;
    return { at: crosshair, low: image.low, zoom: planes.axial.zoom };
}"""
SIZES = """() => {
    const { scrollHeight, scrollWidth } = document.documentElement;
    return [scrollHeight, innerHeight, scrollWidth, innerWidth];
}"""


def correct(page: Page, truth: np.ndarray, label: int, spacing, folder: Path, *, clicks: int) -> float:
    """Click at the deepest voxel of the largest error, like an annotator; return the final Dice."""
    for _ in range(clicks):
        mask = read_mask(page.download("save-mask", folder))[0] == label
        if (score := dice(mask, truth)) >= 0.88:
            return score
        missing, extra = truth & ~mask, mask & ~truth
        error, mode = (missing, "positive") if missing.sum() >= extra.sum() else (extra, "negative")
        parts, count = ndimage.label(error)
        largest = parts == 1 + int(np.argmax(ndimage.sum_labels(error, parts, range(1, count + 1))))
        page.click("axial", deepest(largest, spacing), mode)
    mask = read_mask(page.download("save-mask", folder))[0] == label
    return dice(mask, truth)


def test_main_workflow_of_a_user(server, opened, chromium, phantom, tmp_path):
    volume, labels, _ = phantom
    kidney, aorta = labels == RIGHT_KIDNEY, labels == AORTA
    inside = deepest(kidney, volume.spacing)

    # A click in an organ shows a mask on all three planes.
    assert not opened.tinted("axial", inside)
    opened.click("axial", inside, "positive")
    first = opened.selected
    assert first["mask"] and first["volume_ml"] > 0
    for plane in PLANES:
        assert opened.tinted(plane, inside), plane

    # A negative click excludes its voxel.
    corners = np.argwhere(kidney)
    outside = (*corners.min(axis=0)[:2] - 2, inside[2])
    opened.click("coronal", outside, "negative")
    assert [p["kind"] for p in opened.selected["prompts"]] == ["point", "point"]
    assert not any(p["unmet"] for p in opened.selected["prompts"])
    assert opened.tinted("axial", inside) and not opened.tinted("axial", outside)

    # A box on a slice, pulled to three dimensions on another plane.
    opened.page.keyboard.press("4")
    opened.go_to(inside)
    (i0, j0, k0), (i1, j1, k1) = corners.min(axis=0) - 1, corners.max(axis=0) + 1
    opened.drag(opened.position("axial", (i0, j0, inside[2])), opened.position("axial", (i1, j1, inside[2])))
    flat = opened.selected["prompts"][-1]
    assert (flat["kind"], flat["slice_axis"]) == ("box", 2)
    assert flat["lower"] == [i0, j0, inside[2]] and flat["upper"] == [i1, j1, inside[2]]
    for end, edge in ((k1, 0.5), (k0, -0.5)):
        handle = opened.position("coronal", ((i0 + i1) / 2, inside[1], inside[2] + edge))
        opened.drag(handle, opened.position("coronal", ((i0 + i1) / 2, inside[1], end)))
    deep = opened.selected["prompts"][-1]
    assert deep["slice_axis"] is None
    assert deep["lower"] == [i0, j0, k0] and deep["upper"] == [i1, j1, k1]

    # Undo and redo restore exactly the previous masks.
    box_mask = opened.selected["mask"]
    opened.page.keyboard.press("z")
    opened.settle()
    assert opened.selected["mask"] != box_mask
    opened.page.click("[data-id=undo]")
    opened.settle()
    opened.page.keyboard.press("Shift+Z")
    opened.settle()
    opened.page.keyboard.press("Shift+Z")
    opened.settle()
    assert opened.selected["mask"] == box_mask and not opened.state["can_redo"]

    final_dice = correct(opened, kidney, 1, volume.spacing, tmp_path, clicks=6)
    assert final_dice >= 0.8

    # A second object does not change the first.
    first_mask = opened.selected["mask"]
    opened.page.keyboard.press("n")
    opened.settle()
    opened.click("axial", deepest(aorta, volume.spacing), "positive")
    objects = opened.state["objects"]
    assert [item["label"] for item in objects] == [1, 2]
    assert objects[0]["mask"] == first_mask and objects[1]["mask"] not in (None, first_mask)

    # The saved mask is on the image's grid and equals the displayed one.
    saved, image = read_mask(opened.download("save-mask", tmp_path))
    assert Grid(saved.shape, image.affine).difference(volume.grid) is None
    assert np.array_equal(image.affine, volume.affine)
    assert set(np.unique(saved)) == {0, 1, 2}
    assert dice(saved == 1, kidney) >= 0.8

    # The prompt file replays to the same masks in another, fresh browser context.
    prompts = opened.download("save-prompts", tmp_path)
    other_context = chromium.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
    other = Page(other_context, server.url)
    assert other.state["objects"] == []
    other.page.click("[data-id=open]")
    with other.page.expect_file_chooser() as choosing:
        other.page.click(".drop")
    choosing.value.set_files(prompts)
    other.page.wait_for_function("medsamViewer.state.objects.length === 2")
    other.settle()
    folder = tmp_path / "other"
    folder.mkdir()
    replayed, _ = read_mask(other.download("save-mask", folder))
    assert np.array_equal(replayed, saved)

    # Changes in the other session do not affect this one.
    other.page.keyboard.press("n")
    other.settle()
    assert len(opened.ask("async () => (await medsamViewer.api.act({ do: 'look' }, [])).state.objects")) == 2

    host = urlsplit(server.url).netloc
    for page in (opened, other):
        assert not page.complaints
        foreign = [
            u
            for u in page.requests
            if urlsplit(u).scheme not in ("data", "blob") and urlsplit(u).netloc != host
        ]
        assert not foreign
    other_context.close()


def test_a_click_outside_the_image_is_a_message(opened):
    box = opened.page.locator(".pane[data-plane=axial]").bounding_box()
    opened.page.mouse.click(box["x"] + 30, box["y"] + 60)
    assert "outside the image" in opened.toast()
    assert opened.state["objects"] == [] and not opened.complaints


def test_viewing_sends_no_requests(opened, phantom):
    volume, labels, _ = phantom
    opened.go_to(deepest(labels == LIVER, volume.spacing))
    request_count = len(opened.requests)
    box = opened.page.locator(".pane[data-plane=axial]").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    before = opened.ask(VIEW)
    opened.page.mouse.move(*middle)
    opened.page.mouse.wheel(0, -300)
    opened.page.keyboard.press("ArrowUp")
    opened.page.keyboard.down("Control")
    opened.page.mouse.wheel(0, -200)
    opened.page.keyboard.up("Control")
    opened.page.mouse.down(button="right")
    opened.page.mouse.move(middle[0] + 60, middle[1] + 40)
    opened.page.mouse.up(button="right")
    opened.settle()
    after = opened.ask(VIEW)
    assert after["at"][2] == before["at"][2] + 2
    assert after["zoom"] > before["zoom"] and after["low"] != before["low"]
    assert len(opened.requests) == request_count and not opened.complaints


def test_an_idle_page_requests_no_animation_frames(server, context):
    context.add_init_script("""
        const request = window.requestAnimationFrame.bind(window);
        window.frameRequests = 0;
        window.requestAnimationFrame = (draw) => { window.frameRequests += 1; return request(draw); };
    """)
    page = Page(context, server.url)
    page.page.wait_for_timeout(1000)
    before = page.ask("() => frameRequests")
    page.page.wait_for_timeout(2000)
    assert page.ask("() => frameRequests") - before < 10


def test_names_are_text_not_markup(opened, phantom):
    volume, labels, _ = phantom
    opened.click("sagittal", deepest(labels == LIVER, volume.spacing), "positive")
    hostile = "<img src=x onerror=alert(1)>"
    field = opened.page.locator(".object input.name")
    field.fill(hostile)
    field.press("Enter")
    opened.settle()
    assert opened.selected["name"] == hostile
    assert opened.page.locator("img[src=x]").count() == 0 and not opened.complaints


def test_the_page_fills_the_window_and_marks_the_sides(opened):
    size = opened.ask(SIZES)
    assert size[0] <= size[1] and size[2] <= size[3]
    toolbar = opened.page.locator(".toolbar").element_handle()
    for width in (1280, 1024):  # no control beyond the edge
        opened.page.set_viewport_size({"width": width, "height": 768})
        assert opened.page.locator("[data-id=help]").bounding_box()["x"] < width - 30
        assert opened.ask("(t) => t.scrollWidth - t.clientWidth", toolbar) <= 0
    opened.page.set_viewport_size({"width": 1280, "height": 800})
    marks = {plane: opened.ask("(p) => medsamViewer.geometry.planeMarks(p)", plane) for plane in PLANES}
    assert marks["axial"] == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert marks["coronal"] == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    assert marks["sagittal"] == {"left": "A", "right": "P", "top": "S", "bottom": "I"}
    # 3 mm slices are drawn twice as thick as 1.5 mm voxels are wide.
    ratio = opened.ask("() => { const t = medsamViewer.planes.coronal.transform; return t.sy / t.sx; }")
    assert ratio == pytest.approx(2.0)


def test_a_reload_keeps_the_work_and_a_file_from_a_folder_opens(server, opened, phantom):
    volume, labels, _ = phantom
    opened.click("axial", deepest(labels == LIVER, volume.spacing), "positive")
    volume_ml = opened.selected["volume_ml"]
    opened.page.reload()
    opened.page.wait_for_selector(".medsam[data-ready=true]")
    opened.settle()
    assert opened.selected["volume_ml"] == volume_ml

    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    ramp = np.arange(24 * 20 * 10, dtype=np.float32).reshape(24, 20, 10) / 7
    nib.save(nib.Nifti1Image(ramp, affine), server.service.roots[0] / "ramp.nii.gz")
    four = nib.Nifti1Image(np.stack([ramp, ramp * 2], axis=-1), affine)
    nib.save(four, server.service.roots[0] / "two frames.nii.gz")
    # On a server with folders, the sample page offers to open them.
    opened.page.click("[data-id=open-root]")
    opened.page.get_by_text("ramp.nii.gz").click()
    opened.page.wait_for_function("medsamViewer.volume.name === 'ramp'")
    opened.settle()
    assert opened.page.locator("[data-id=open-root]").count() == 0
    assert opened.state["objects"] == []
    xyz, value = [3, 4, 5], ramp[3, 4, 5]
    assert opened.ask("(xyz) => medsamViewer.image.value(...xyz)", xyz) == pytest.approx(
        float(value), rel=1e-6
    )

    opened.page.click("[data-id=open]")
    opened.page.get_by_text("two frames.nii.gz").click()
    dialog = opened.page.get_by_role("dialog", name="Which frame?")
    assert "two frames.nii.gz" in dialog.inner_text()
    dialog.locator(".file").nth(1).click()
    opened.page.wait_for_function("medsamViewer.volume.name === 'two frames'")
    opened.settle()
    assert opened.ask("(xyz) => medsamViewer.image.value(...xyz)", xyz) == pytest.approx(
        2 * float(value), rel=1e-6
    )


def test_without_folders_the_page_offers_none(chromium):
    with running(Service()) as url:
        context = chromium.new_context()
        page = Page(context, url)
        assert page.page.locator("h1").inner_text() == "torso_phantom"
        assert page.page.locator("[data-id=open-root]").count() == 0 and not page.complaints
        context.close()


def test_a_server_for_one_image_asks_which_frame_to_open(chromium, tmp_path):
    frames = np.zeros((6, 6, 6, 3), np.int16)
    frames[...] = (10, 20, 30)
    nib.save(nib.Nifti1Image(frames, np.eye(4)), tmp_path / "beating heart.nii.gz")
    with running(Service(image=tmp_path / "beating heart.nii.gz")) as url:
        context = chromium.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        dialog = page.get_by_role("dialog", name="Which frame?")
        dialog.wait_for()
        assert "beating heart" in dialog.inner_text() and "3 frames" in dialog.inner_text()
        dialog.locator(".file").nth(2).click()
        page.wait_for_selector(".medsam[data-ready=true]")
        assert page.locator("h1").inner_text() == "beating heart"
        assert page.evaluate("() => medsamViewer.image.value(2, 3, 4)") == 30
        context.close()


def test_a_series_without_study_uid_explains_why_dicom_seg_is_disabled(server, opened):
    array = np.random.default_rng(0).integers(900, 1100, (20, 18, 8)).astype(np.uint16)
    for name, study in (("whole", "1.2.3"), ("no study", "")):
        folder = server.service.roots[0] / name
        write_series(folder, array, FrameOfReferenceUID="1.2.3.7", StudyInstanceUID=study)
        opened.page.click("[data-id=open]")
        opened.page.locator(".file", has_text=name).click()
        opened.page.wait_for_function("(name) => medsamViewer.volume.name === name", arg=name)
        opened.settle()
        opened.click("axial", (9, 9, 4), "positive")
        opened.page.click("[data-id=save-menu]")
        choice = opened.page.locator("[data-id=save-dicom-seg]")
        assert choice.is_enabled() == bool(study)
        why = "names no study UID, which a DICOM segmentation must refer to"
        assert (why in choice.inner_text()) != bool(study)
        opened.page.keyboard.press("Escape")
    assert not opened.complaints


def test_fine_outlines_can_be_switched_on_and_off(opened, phantom):
    image, labels, _ = phantom
    liver = labels == LIVER
    opened.click("axial", deepest(liver, image.spacing), "positive")
    coarse = opened.selected
    opened.page.keyboard.press("e")
    opened.settle()
    assert opened.page.get_attribute("[data-id=fine]", "aria-pressed") == "true"
    fine = opened.selected
    assert fine["mask"] != coarse["mask"]
    assert fine["prompts"] == coarse["prompts"]
    opened.page.click("[data-id=fine]")
    opened.settle()
    assert opened.selected == coarse
    assert opened.page.get_attribute("[data-id=fine]", "aria-pressed") == "false"
    assert not opened.complaints


def test_another_mask_is_one_key_away(opened: Page, phantom, tmp_path: Path) -> None:
    """[ and ] step through the masks of a first click by size, as do buttons; a later click corrects it."""
    image, labels, _ = phantom
    inside = deepest(labels == RIGHT_KIDNEY, image.spacing)
    opened.page.keyboard.press("]")  # without an object there is a message and nothing else
    opened.page.locator(".toast", has_text="right after the first click").wait_for()
    opened.click("axial", inside, "positive")
    first = opened.selected
    assert first["can_choose"] and first["choice"] is None
    opened.page.click("[data-id=tab-prompts]")
    volumes = [first["volume_ml"]]
    while True:
        opened.page.keyboard.press("]")
        opened.settle()
        if opened.selected["volume_ml"] == first["volume_ml"]:
            break
        volumes.append(opened.selected["volume_ml"])
    number, count = opened.selected["choice"]
    assert count == len(volumes) > 1 and sorted(volumes).index(first["volume_ml"]) == number - 1
    opened.page.keyboard.press("[")
    opened.settle()
    opened.page.screenshot(path=tmp_path / "choice.png")
    chosen = opened.selected
    assert opened.page.inner_text("[data-id=choice]") == f"{chosen['choice'][0]} of {count}"
    saved = read_mask(opened.download("save-mask", tmp_path))[0] == chosen["label"]
    assert saved.sum() * image.grid.voxel_volume_ml == pytest.approx(chosen["volume_ml"])
    assert saved[tuple(inside)]
    opened.page.click("[data-id=choose-larger]")
    opened.settle()
    assert opened.selected["volume_ml"] == first["volume_ml"]
    opened.page.keyboard.press("z")
    opened.settle()
    assert opened.selected["mask"] == chosen["mask"]
    opened.click("axial", deepest(~saved & (labels == 0), image.spacing), "negative")
    assert not opened.selected["can_choose"] and opened.page.is_hidden("[data-id=choose-larger]")
    assert not opened.complaints


def test_the_heat_map_leads_to_the_next_click(opened: Page, phantom, tmp_path: Path) -> None:
    _, labels, _ = phantom
    opened.click("axial", deepest(labels == LIVER, phantom[0].spacing), "positive")
    opened.page.keyboard.press("d")
    opened.page.wait_for_function("medsamViewer.heat.map !== null")
    # A slice without uncertainty shows a badge under the name of the plane.
    badge = """() => {
        const { overlayContext, ratio } = medsamViewer.planes.coronal;
        return overlayContext.getImageData(14 * ratio, 37 * ratio, 1, 1).data[3];
    }"""
    opened.go_to([0, 0, 0])
    assert opened.ask("() => medsamViewer.heat.blank.has('coronal')") and opened.ask(badge) > 100
    opened.page.screenshot(path=str(tmp_path / "no doubt.png"))
    opened.page.keyboard.press("j")
    opened.settle()
    assert not opened.ask("() => medsamViewer.heat.blank.has('coronal')") and opened.ask(badge) == 0
    worst = opened.ask("() => medsamViewer.heat.map.worst")
    assert opened.ask("() => medsamViewer.crosshair") == worst
    opened.page.screenshot(path=str(tmp_path / "heat.png"))
    ijk = opened.ask("(xyz) => medsamViewer.geometry.toFile(xyz)", worst)
    assert opened.tinted("axial", ijk)
    # A click there yields a new mask, and then a new map.
    before = opened.selected["mask"]
    opened.click("axial", ijk, "positive" if labels[tuple(ijk)] == LIVER else "negative")
    opened.page.wait_for_function(
        "(old) => medsamViewer.heat.known && !medsamViewer.heat.known.endsWith(':' + old)", arg=before
    )
    opened.page.keyboard.press("d")
    assert not opened.ask("() => medsamViewer.heat.on")
