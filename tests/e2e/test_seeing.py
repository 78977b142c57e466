"""Measuring, surfaces, projections, comparing, frames and saving, in a real browser."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medsam_app.phantom import torso_phantom
from tests.e2e.test_browser import LIVER, Page, deepest, read_mask

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def phantom():
    return torso_phantom()


@pytest.fixture
def opened(server, chromium) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    page = Page(context, server.url)
    yield page
    context.close()


def test_an_object_is_measured_and_everything_of_it_saved(opened, phantom, tmp_path):
    volume, labels, _ = phantom
    opened.click("axial", deepest(labels == LIVER, volume.spacing), "positive")
    opened.page.click("[data-id=tab-measure]")
    opened.page.wait_for_selector(".diameter")
    mask, _ = read_mask(opened.download("save-mask", tmp_path))
    assert f"({int((mask > 0).sum()):,} voxels)" in opened.page.inner_text(".measures")

    # The slice of the longest diameter, with the line on it.
    opened.page.click(".diameter[data-plane=axial]")
    opened.settle()
    made = opened.ask("() => medsamViewer.sidebar.measure.made.diameters.find((d) => d.plane === 'axial')")
    assert opened.ask("() => medsamViewer.geometry.toFile(medsamViewer.crosshair)[2]") == made["slice"]
    line = """([a]) => {
        const plane = medsamViewer.planes.axial;
        const [x, y] = plane.toScreen(medsamViewer.geometry.toRas(a));
        const box = [(x - 3) * plane.ratio, (y - 3) * plane.ratio, 6, 6];
        const { data } = plane.overlayContext.getImageData(...box);
        return [...data].filter((v, n) => n % 4 === 0 && v > 200 && data[n + 2] < 160).length;
    }"""
    assert opened.ask(line, made["ends"]) > 0
    opened.page.screenshot(path=str(tmp_path / "measure.png"))

    # The format chosen is the one that Ctrl S takes from now on.
    assert opened.download("save-nrrd", tmp_path).name == "torso_phantom_mask.nrrd"
    with opened.page.expect_download() as saving:
        opened.page.keyboard.press("Control+s")
    assert saving.value.suggested_filename == "torso_phantom_mask.nrrd"
    table = opened.download("save-measurements", tmp_path)
    (row,) = csv.DictReader(table.open())
    assert float(row["axial_diameter_mm"]) == pytest.approx(made["length_mm"], rel=1e-5)
    assert int(row["axial_slice"]) == made["slice"] and row["unit"] == "HU"

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


def pixels(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"), dtype=float)
