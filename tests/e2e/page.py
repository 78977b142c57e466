"""Driver of the app's page for tests: actions and observations."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

#: Timeout in milliseconds; generous, since other jobs may run on the machine.
PATIENCE = 120_000
LIVER, RIGHT_KIDNEY, AORTA = 1, 3, 5


class Page:
    """A page of the app with its console errors and its requests."""

    def __init__(self, context, url: str) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector(".medsam[data-ready=true]")

    def ask(self, script: str, argument: object = None):
        return self.page.evaluate(script, argument)

    def settle(self) -> None:
        """Wait until all requests are answered and the planes are drawn."""
        self.page.wait_for_function("!document.querySelector('.medsam.busy')")
        self.ask("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    @property
    def state(self) -> dict:
        return self.ask("() => medsamViewer.state")

    @property
    def selected(self) -> dict:
        return next(item for item in self.state["objects"] if item["id"] == self.state["selected"])

    def go_to(self, ijk) -> None:
        self.ask("(ijk) => medsamViewer.goTo(ijk)", [int(v) for v in ijk])
        self.settle()

    def position(self, plane: str, ijk) -> tuple[float, float]:
        return tuple(
            self.ask("([p, ijk]) => medsamViewer.voxelToScreen(p, ijk)", [plane, [float(v) for v in ijk]])
        )

    def click(self, plane: str, ijk, mode: str) -> None:
        """Show the slice, choose the mode by its key, and click."""
        self.go_to(ijk)
        self.page.keyboard.press({"positive": "2", "negative": "3"}[mode])
        self.page.mouse.click(*self.position(plane, ijk))
        self.settle()

    def drag(self, start, stop) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move((start[0] + stop[0]) / 2, (start[1] + stop[1]) / 2)
        self.page.mouse.move(*stop)
        self.page.mouse.up()
        self.settle()

    def pixel(self, plane: str, ijk) -> tuple[int, int, int]:
        """Return the RGB colour of the picture at a voxel, without the overlay."""
        script = """([name, ijk]) => {
            const plane = medsamViewer.planes[name];
            const [x, y] = plane.toScreen(medsamViewer.geometry.toRas(ijk));
            const data = plane.pictureContext.getImageData(x * plane.ratio, y * plane.ratio, 1, 1).data;
            return [...data.slice(0, 3)];
        }"""
        return tuple(self.ask(script, [plane, [int(v) for v in ijk]]))

    def tinted(self, plane: str, ijk) -> bool:
        """Return whether a mask's colour covers the grey picture at a voxel."""
        colour = self.pixel(plane, ijk)
        return max(colour) - min(colour) > 12

    def download(self, button: str, folder: Path) -> Path:
        if not self.page.is_visible(f"[data-id={button}]"):
            self.page.click("[data-id=save-menu]")
        with self.page.expect_download() as saving:
            self.page.click(f"[data-id={button}]")
        path = folder / saving.value.suggested_filename
        saving.value.save_as(path)
        self.settle()
        return path

    def toast(self) -> str:
        return self.page.locator(".toast").last.inner_text()


def deepest(inside: np.ndarray, spacing) -> tuple[int, int, int]:
    """Return the voxel farthest from the border of a region."""
    distance = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return tuple(int(v) for v in np.unravel_index(distance.argmax(), distance.shape))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def read_mask(path: Path):
    image = nib.load(path)
    return np.asanyarray(image.dataobj), image
