"""Record the tour shown in README: `python docs/make_tour.py`. Needs chromium and playwright.

The tour opens a worklist of three phantoms, clicks and corrects the liver, shows its uncertainty, erases a
part, undoes that, measures the object and accepts the case. Every picture is a screenshot of the page.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from scipy import ndimage

from medsam_app.browser.app import running
from medsam_app.browser.state.service import Service
from medsam_app.synthetic.torso import torso_phantom

TARGET = Path(__file__).parent / "images" / "tour.gif"
WINDOW, SIZE, COLOURS = (1280, 800), (896, 560), 96
ORGAN = "liver"


class Tour:
    """Pictures of a page with the time that each is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.pictures: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def show(self, milliseconds: int = 1400) -> None:
        self.page.wait_for_function("!document.querySelector('.medsam.busy')")
        self.page.wait_for_timeout(350)
        picture = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.pictures.append(picture.resize(SIZE, Image.Resampling.LANCZOS))
        self.milliseconds.append(milliseconds)

    def at(self, ijk: list[int]) -> tuple[float, float]:
        self.page.evaluate("(ijk) => medsamViewer.goTo(ijk)", ijk)
        x, y = self.page.evaluate("(ijk) => medsamViewer.voxelToScreen('axial', ijk)", ijk)
        return x, y

    def save(self, path: Path) -> None:
        first, *rest = [picture.quantize(COLOURS, dither=Image.Dither.NONE) for picture in self.pictures]
        first.save(path, save_all=True, append_images=rest, duration=self.milliseconds, loop=0, optimize=True)


def deepest(inside: np.ndarray, spacing: np.ndarray) -> list[int]:
    """Return the voxel farthest from the border of a region."""
    distance = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return [int(v) for v in np.unravel_index(distance.argmax(), distance.shape)]


def record(page: Page, service: Service, labels: np.ndarray, truth: np.ndarray, spacing: np.ndarray) -> Tour:
    tour = Tour(page)
    page.click("[data-id=open]")
    page.wait_for_selector("[data-id=open-worklist]")
    tour.show()
    page.click("[data-id=open-worklist]")
    page.locator("dialog[open] input").fill("Ada")
    page.keyboard.press("Enter")
    page.wait_for_function("medsamViewer.state.case")
    tour.show()
    (workspace,) = service.workspaces._by_token.values()
    mask = np.zeros_like(truth)
    for _ in range(3):
        missing, extra = truth & ~mask, mask & ~truth
        error = missing if missing.sum() >= extra.sum() else extra
        parts, count = ndimage.label(error)
        largest = parts == 1 + int(np.argmax(ndimage.sum_labels(error, parts, range(1, count + 1))))
        place = tour.at(deepest(largest, spacing))
        page.keyboard.press("2" if error is missing else "3")
        page.mouse.move(*place)
        tour.show(500)
        page.mouse.click(*place)
        tour.show()
        session = workspace.session
        mask = session.prediction(session.selected.id).mask
    page.keyboard.press("d")
    page.wait_for_function("medsamViewer.heat.map !== null")
    page.keyboard.press("j")
    tour.show(1800)
    page.keyboard.press("d")
    page.keyboard.press("6")
    middle = deepest(mask, spacing)
    x, y = tour.at(middle)
    page.mouse.move(x - 70, y - 60)
    page.mouse.down()
    for step in range(12):
        page.mouse.move(x - 70 + 8 * step, y - 60 + 4 * np.sin(step))
    tour.show(700)
    page.mouse.up()
    tour.show()
    page.keyboard.press("z")
    page.click("[data-id=tab-measure]")
    tour.show(2200)
    page.evaluate("document.activeElement.blur()")  # Enter on a tab belongs to the tab
    page.keyboard.press("Enter")
    page.wait_for_function("medsamViewer.state.objects.length === 0")
    tour.show(1800)
    return tour


def main() -> None:
    volume, labels, names = torso_phantom()
    values = {name: value for value, name in names.items()}
    truth = (labels == values[ORGAN]) | (labels == values["liver lesion"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "abdomens"
        folder.mkdir()
        for name in ("patient_01", "patient_02", "patient_03"):
            image = nib.Nifti1Image(volume.array.astype(np.int16), volume.grid.affine)
            nib.save(image, folder / f"{name}.nii.gz")
        service = Service(roots=[folder])
        with running(service) as url, sync_playwright() as playwright:
            options = ["--headless=new", "--no-sandbox", "--disable-gpu"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
            page = browser.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
            page.set_default_timeout(120_000)
            page.goto(url)
            page.wait_for_selector(".medsam[data-ready=true]")
            tour = record(page, service, labels, truth, volume.spacing)
            browser.close()
    tour.save(TARGET)
    print(f"{TARGET}: {len(tour.pictures)} pictures, {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
