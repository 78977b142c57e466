"""Take the screenshot of the page shown in README: `python docs/make_page_image.py`.

Segments organs of the sample with a box and a few clicks each. Needs chromium and
playwright.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright
from scipy import ndimage

from medsam_app.browser.app import running
from medsam_app.browser.state.service import Service
from medsam_app.synthetic.torso import torso_phantom

TARGET = Path(__file__).parent / "images" / "page.png"
ORGANS = ("spleen", "right kidney", "left kidney", "stomach", "liver")
CLICKS = 4
BOX = """async ([lower, upper]) => {
    const pair = [medsamViewer.geometry.toRas(lower), medsamViewer.geometry.toRas(upper)];
    const end = (pick) => [0, 1, 2].map((axis) => pick(pair[0][axis], pair[1][axis]));
    await medsamViewer.commitBox({ lower: end(Math.min), upper: end(Math.max) }, -1);
}"""
CLICK = "([ijk, positive]) => medsamViewer.clickPoint(medsamViewer.geometry.toRas(ijk), positive)"


def deepest(inside: np.ndarray, spacing: np.ndarray) -> list[int]:
    """Return the voxel farthest from the border of a region."""
    distance = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return [int(v) for v in np.unravel_index(distance.argmax(), distance.shape)]


def main() -> None:
    volume, labels, names = torso_phantom()
    values = {name: value for value, name in names.items()}
    service = Service()
    with running(service) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless=new", "--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector(".medsam[data-ready=true]")
        (workspace,) = service.workspaces._by_token.values()
        for name in ORGANS:
            truth = labels == values[name]
            if name == "liver":  # the lesion is part of it
                truth |= labels == values["liver lesion"]
            page.evaluate("(name) => medsamViewer.act({ do: 'add_object', name }, '')", name)
            corners = np.argwhere(truth)
            lower = np.maximum(corners.min(axis=0) - 1, 0).tolist()
            upper = np.minimum(corners.max(axis=0) + 1, np.array(truth.shape) - 1).tolist()
            page.evaluate(BOX, [lower, upper])
            for _ in range(CLICKS):
                session = workspace.session
                mask = session.prediction(session.selected.id).mask
                missing, extra = truth & ~mask, mask & ~truth
                error = missing if missing.sum() >= extra.sum() else extra
                parts, count = ndimage.label(error)
                largest = parts == 1 + int(np.argmax(ndimage.sum_labels(error, parts, range(1, count + 1))))
                page.evaluate(CLICK, [deepest(largest, volume.spacing), error is missing])
            mask = session.prediction(session.selected.id).mask
            print(f"{name:<14} Dice {2 * (mask & truth).sum() / (mask.sum() + truth.sum()):.3f}")
        page.evaluate(
            "(ijk) => medsamViewer.goTo(ijk)", deepest(labels == values["liver lesion"], volume.spacing)
        )
        page.mouse.move(300, 180)
        page.wait_for_timeout(500)
        TARGET.parent.mkdir(exist_ok=True)
        page.screenshot(path=TARGET)
        browser.close()
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
