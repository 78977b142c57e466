"""End-to-end tests of measurements, surfaces, projections, comparison, frames and saving."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.e2e.page import LIVER, Page, deepest, dice, read_mask

pytestmark = pytest.mark.browser


def test_an_object_is_measured_and_everything_of_it_saved(opened, phantom, tmp_path):
    volume, labels, _ = phantom
    opened.click("axial", deepest(labels == LIVER, volume.spacing), "positive")
    opened.page.click("[data-id=tab-measure]")
    opened.page.wait_for_selector(".diameter")
    mask, _ = read_mask(opened.download("save-mask", tmp_path))
    assert f"({int((mask > 0).sum()):,} voxels)" in opened.page.inner_text(".measures")

    # Show the slice of the longest diameter; the line is drawn on it.
    opened.page.click(".diameter[data-plane=axial]")
    opened.settle()
    diameter = opened.ask(
        "() => medsamViewer.sidebar.measure.measurement.diameters.find((d) => d.plane === 'axial')"
    )
    assert opened.ask("() => medsamViewer.geometry.toFile(medsamViewer.crosshair)[2]") == diameter["slice"]
    line = """([a]) => {
        const plane = medsamViewer.planes.axial;
        const [x, y] = plane.toScreen(medsamViewer.geometry.toRas(a));
        const [left, top] = [(x - 3) * plane.ratio, (y - 3) * plane.ratio];
        const { data } = plane.overlayContext.getImageData(left, top, 6, 6);
        return [...data].filter((v, n) => n % 4 === 0 && v > 200 && data[n + 2] < 160).length;
    }"""
    assert opened.ask(line, diameter["ends"]) > 0
    opened.page.screenshot(path=str(tmp_path / "measure.png"))

    # Ctrl S saves in the format chosen last.
    assert opened.download("save-nrrd", tmp_path).name == "torso_phantom_mask.nrrd"
    with opened.page.expect_download() as saving:
        opened.page.keyboard.press("Control+s")
    assert saving.value.suggested_filename == "torso_phantom_mask.nrrd"
    table = opened.download("save-measurements", tmp_path)
    (row,) = csv.DictReader(table.open())
    assert float(row["axial_diameter_mm"]) == pytest.approx(diameter["length_mm"], rel=1e-5)
    assert int(row["axial_slice"]) == diameter["slice"] and row["unit"] == "HU"

    with zipfile.ZipFile(opened.download("save-case", tmp_path)) as archive:
        assert archive.testzip() is None
        about = json.loads(archive.read("about.json"))
        picture = archive.read("screenshot.png")
        assert "torso_phantom_mask.nrrd" in archive.namelist()
    assert about["model"]["id"] == "sam3d_tiny" and len(about["model"]["sha256"]) == 64
    (tmp_path / "case.png").write_bytes(picture)
    assert pixels(tmp_path / "case.png").std() > 20
    opened.page.keyboard.press("m")
    one = opened.download("save-screenshot", tmp_path)
    assert pixels(one).std() > 20
    assert not opened.complaints


def test_surfaces_and_slabs(opened, phantom, tmp_path):
    volume, labels, _ = phantom
    inside = deepest(labels == LIVER, volume.spacing)
    opened.click("axial", inside, "positive")
    opened.page.keyboard.press("t")
    opened.page.wait_for_function("medsamViewer.surface.meshes.size === 1")
    opened.settle()
    before = shown_in_space(opened, tmp_path / "surface.png")
    assert coloured(before).sum() > 3000  # the object is orange

    # A drag rotates the surface, the wheel enlarges it.
    box = opened.page.locator(".pane.surface").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.drag(middle, (middle[0] + 90, middle[1] + 20))
    turned = shown_in_space(opened, tmp_path / "turned.png")
    assert np.abs(turned - before).mean() > 3
    opened.page.mouse.move(*middle)
    opened.page.mouse.wheel(0, -300)
    opened.settle()
    assert coloured(shown_in_space(opened, tmp_path / "near.png")).sum() > 1.5 * coloured(turned).sum()

    # A click on the surface moves the crosshair to the visible side of the mask's border.
    target = np.argwhere(coloured(shown_in_space(opened, tmp_path / "near.png")))
    y, x = target[np.abs(target - target.mean(axis=0)).sum(axis=1).argmin()]
    opened.page.mouse.click(box["x"] + float(x), box["y"] + float(y))
    opened.settle()
    ijk = opened.ask("() => medsamViewer.geometry.toFile(medsamViewer.crosshair)")
    assert ijk != list(inside)
    mask, _ = read_mask(opened.download("save-mask", tmp_path))
    near = mask[tuple(slice(max(0, v - 1), v + 2) for v in ijk)]
    assert near.any() and not near.all()
    opened.page.screenshot(path=str(tmp_path / "page.png"))
    saved = pixels(opened.download("save-screenshot", tmp_path))
    assert coloured(saved[saved.shape[0] // 2 :, : saved.shape[1] // 2]).sum() > 3000

    # A slab shows the largest intensity of its slices.
    opened.page.keyboard.press("y")
    opened.page.keyboard.press("h")  # no masks
    opened.go_to(inside)
    i, j, k = inside
    thick = round((20 / volume.spacing[2] - 1) / 2)
    largest = volume.array[:, :, k - thick : k + thick + 1].max(axis=2).astype(float)
    grey = np.clip((largest - (40 - 200)) * 255 / 400, 0, 255).astype(int)
    for di, dj in ((0, 0), (20, 12), (-30, 5)):
        value = opened.ask(SLICE_PIXEL, ["axial", [i + di, j + dj, k]])
        assert abs(value - grey[i + di, j + dj]) <= 1
    opened.page.screenshot(path=str(tmp_path / "mip.png"))
    opened.page.click("[data-id=view-menu]")
    opened.page.screenshot(path=str(tmp_path / "menu.png"))
    opened.page.click("[data-id=view-off]")
    opened.settle()
    assert opened.ask(SLICE_PIXEL, ["axial", list(inside)]) == pytest.approx(
        np.clip((float(volume.array[inside]) + 160) * 255 / 400, 0, 255), abs=1
    )
    assert not opened.complaints


NO_WEBGL = """() => {
    const original = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        return kind === "webgl2" ? null : original.call(this, kind, ...rest);
    };
}"""
#: Grey value of the unscaled slice at a voxel of the file.
SLICE_PIXEL = """([name, ijk]) => {
    const plane = medsamViewer.planes[name];
    const xyz = medsamViewer.geometry.toRas(ijk);
    const [column, row] = [plane.columns - 1 - xyz[plane.axes.u], plane.rows - 1 - xyz[plane.axes.v]];
    return plane.sliceContext.getImageData(column, row, 1, 1).data[0];
}"""


def shown_in_space(page: Page, path: Path) -> np.ndarray:
    page.page.locator(".pane.surface").screenshot(path=str(path))
    return pixels(path)


def coloured(picture: np.ndarray) -> np.ndarray:
    """Return where the picture shows a surface in the first object's colour."""
    return (picture[..., 0] - picture[..., 2] > 60) & (picture[..., 0] > picture[..., 1] * 1.2)


def test_comparing_and_frames(server, opened, phantom, tmp_path):
    volume, labels, _ = phantom
    root = server.service.roots[0]
    inside = deepest(labels == LIVER, volume.spacing)
    liver = labels == LIVER
    nib.save(nib.Nifti1Image(liver.astype(np.uint8) * 255, volume.affine), root / "by hand.nii.gz")
    opened.click("axial", inside, "positive")
    opened.page.click("[data-id=tab-compare]")
    opened.page.click("[data-id=compare-choose]")
    assert opened.page.locator("[data-id=open-worklist]").count() == 0  # a mask file is needed, not a folder
    opened.page.get_by_text("by hand.nii.gz").click()
    opened.page.wait_for_selector(".comparison")
    mask, _ = read_mask(opened.download("save-mask", tmp_path))
    assert f"Dice\n{dice(mask > 0, liver):.3f}" in opened.page.inner_text(".comparison")
    both, only = np.argwhere(liver & (mask > 0)), np.argwhere(liver & (mask == 0))
    opened.go_to(only[len(only) // 2])
    mint = opened.pixel("axial", only[len(only) // 2])
    assert mint[1] > mint[0] + 30 and mint[1] > mint[2] + 15
    opened.go_to(both[len(both) // 2])
    assert not opened.tinted("axial", both[len(both) // 2])
    opened.page.screenshot(path=str(tmp_path / "compare.png"))

    # A file on another grid is refused; the previous comparison stays.
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), root / "elsewhere.nii.gz")
    opened.page.click("[data-id=compare-choose]")
    opened.page.get_by_text("elsewhere.nii.gz").click()
    opened.page.wait_for_selector(".toast.error")
    assert "does not lie on the grid" in opened.toast()
    assert opened.page.locator(".comparison").count() == 1

    # Four frames: another frame is shown under the objects of the first.
    rng, moving = np.random.default_rng(0), np.full((40, 36, 30, 4), 20, dtype=np.int16)
    ball = np.linalg.norm(np.argwhere(np.ones((40, 36, 30))) - (20, 18, 15), axis=1).reshape(40, 36, 30) < 9
    moving[ball] = (200, 250, 300, 350)
    moving += rng.integers(0, 9, moving.shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(moving, np.diag([2, 2, 2, 1])), root / "moving.nii.gz")
    opened.page.click("[data-id=open]")
    opened.page.get_by_text("moving.nii.gz").click()
    opened.page.get_by_role("dialog", name="Which frame?").locator(".file").nth(0).click()
    opened.page.wait_for_function("medsamViewer.volume.name === 'moving'")
    opened.settle()
    opened.click("axial", (20, 18, 15), "positive")
    mask_key = opened.selected["mask"]
    opened.page.keyboard.press(">")
    opened.page.wait_for_function("medsamViewer.cine.shown === 1")
    opened.settle()
    for n in (1, 2):
        value = opened.ask("() => medsamViewer.image.value(20, 18, 15)")
        assert value == moving[20, 18, 15, n]
        opened.page.evaluate("medsamViewer.cine.go(2)")
        opened.page.wait_for_function("medsamViewer.cine.shown === 2")
    opened.page.mouse.click(*opened.position("axial", (22, 18, 15)))
    assert "belong to frame 1" in opened.toast() and opened.selected["mask"] == mask_key
    opened.page.screenshot(path=str(tmp_path / "frames.png"))
    opened.page.click("[data-id=cine-play]")
    opened.page.wait_for_function("medsamViewer.cine.images.size === 4")
    opened.page.click("[data-id=cine-play]")
    assert not opened.ask("() => medsamViewer.cine.playing")

    # Another frame of the same file is opened without choosing the file again.
    opened.page.select_option("[data-id=choose-frame]", "3")
    opened.page.click("[data-id=sure]")
    opened.page.wait_for_function("medsamViewer.volume.source.frame === 3")
    opened.settle()
    assert opened.state["objects"] == []
    assert opened.ask("() => medsamViewer.image.value(20, 18, 15)") == moving[20, 18, 15, 3]
    # Without WebGL, a message is shown in place of the surfaces.
    opened.ask(NO_WEBGL)
    opened.page.keyboard.press("t")
    assert "no 3D here" in opened.page.inner_text(".pane.surface")
    # The browser itself logs an error for each response with status 422.
    assert not [message for message in opened.complaints if "422" not in message]


def pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"), dtype=float)
