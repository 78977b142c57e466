"""Benefit of Teach in the browser: python benchmarks/teach_in_browser.py FOLDER

FOLDER holds a `manifest.json`. A scripted annotator works in the real page in a browser. It clicks the
objects of `train` cases of the hippocampus until they are good; with --draw it corrects the remaining errors
with the lasso on each axial slice. It accepts the cases, presses Teach, waits, and uses the adapter if it is
offered. Clicks to the target Dice are counted on `dev` cases, which are never accepted, before and after
teaching. After teaching, each case starts with the masks of the adapter. A click is at the deepest voxel of
the largest error. An object that never reaches the target counts as one click more than the maximum.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page, sync_playwright
from scipy import ndimage
from skimage.measure import find_contours

from medsam_app.datasets.cases import Case, choose_cases, manifest_cases
from medsam_app.grid.masks import dice
from medsam_app.grid.patch import box_slices
from medsam_app.prompts.simulated_clicks import next_click

DATASET = "msd_hippocampus"
#: Milliseconds to wait for the page.
PATIENCE = 120_000
MASK = """() => {
    const object = medsamViewer.selected;
    const mask = object?.mask && medsamViewer.masks.get(object.mask);
    const { start, size, first, strides, bits } = mask ?? {};
    return mask ? { start, size, first, strides, bits: [...bits] } : null;
}"""
PLACE = """(xyz) => {
    medsamViewer.setCrosshair(xyz);
    const [x, y] = medsamViewer.planes.axial.toScreen(xyz);
    const box = medsamViewer.planes.axial.overlay.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""
LASSO = """([line, positive, axis]) => {
    const points = line.map((xyz) => medsamViewer.geometry.toFile(xyz));
    return medsamViewer.act({ do: "lasso", points, positive, axis }, "Drawing");
}"""
#: Least pixels of an error on a slice that are corrected with the lasso.
LEAST = 4
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Annotator:
    """Scripted annotator who has the truth and works in a page.

    Args:
        page: with a worklist open.
        cases: by the name that they have in the worklist.
    """

    def __init__(self, page: Page, cases: dict[str, Case]) -> None:
        self.page, self.cases = page, cases

    def settle(self) -> None:
        self.page.wait_for_function("!document.querySelector('.medsam.busy')")
        self.page.evaluate(FRAMES)

    def do(self, script: str, argument: object = None) -> object:
        found = self.page.evaluate(script, argument)
        self.settle()
        return found

    def open_folder(self, path: str) -> None:
        """Open a case as the file chooser does."""
        self.do("(path) => medsamViewer.worklist.openFolder(0, path)", path)

    def open(self, name: str) -> None:
        self.page.fill("[data-id=worklist-search]", name)
        self.page.click(f".worklist [data-case='{name}']")
        self.page.wait_for_function(f"medsamViewer.worklist.current === {json.dumps(name)}")
        self.settle()
        self.page.fill("[data-id=worklist-search]", "")
        self.page.locator("[data-id=worklist-search]").blur()

    def segment(self, name: str, *, target: float, most: int) -> dict[int, tuple[list[float], bool]]:
        """Click each object of the open case until it reaches the target Dice.

        Returns:
            By label, the Dice after 0, 1, ... clicks, and whether the object existed before the first click.
        """
        volume, labels = self.cases[name].load()
        view, found = volume.grid.ras, {}
        for label, called in self.cases[name].names.items():
            truth = view.from_file(labels == label)
            if not truth.any():
                continue
            there = self.choose(label, called)
            scores = [dice(self.mask(truth), truth)]
            while scores[-1] < target and len(scores) <= most:
                click = next_click(self.mask(truth), truth, spacing=view.spacing)
                if click is None:
                    break
                xyz = [int(v) for v in click[0]]
                self.page.keyboard.press("2" if truth[tuple(xyz)] else "3")
                x, y = self.page.evaluate(PLACE, xyz)
                self.page.evaluate(FRAMES)
                self.page.mouse.click(x, y)
                self.settle()
                scores.append(dice(self.mask(truth), truth))
            found[label] = scores, there
        return found

    def draw(self, name: str) -> list[float]:
        """Correct each axial slice with the lasso and return the Dice of the objects."""
        volume, labels = self.cases[name].load()
        view, reached = volume.grid.ras, []
        for label, called in self.cases[name].names.items():
            truth = view.from_file(labels == label)
            if not truth.any():
                continue
            self.choose(label, called)
            mask = self.mask(truth)
            for z in range(truth.shape[2]):
                for positive, wrong in ((True, truth & ~mask), (False, mask & ~truth)):
                    pieces, count = ndimage.label(wrong[:, :, z])
                    for piece in (pieces == n for n in range(1, count + 1)):
                        if piece.sum() < LEAST:
                            continue
                        outline = max(find_contours(np.pad(piece, 1).astype(float), 0.5), key=len) - 1
                        points = [[float(x), float(y), z] for x, y in outline]
                        self.do(LASSO, [points, positive, int(view.axes[2])])
            reached.append(dice(self.mask(truth), truth))
        return reached

    def choose(self, label: int, name: str) -> bool:
        """Select the object of a label, creating it if necessary; return whether it existed."""
        objects = self.page.evaluate("() => medsamViewer.state.objects.map(({ id, label }) => [id, label])")
        for each, value in objects:
            if value == label:
                self.do("(id) => medsamViewer.selectObject(id)", each)
                return True
        self.do("() => medsamViewer.addObject()")
        change = "([name, label]) => medsamViewer.changeObject(medsamViewer.state.selected, { name, label })"
        self.do(change, [name, label])
        return False

    def mask(self, like: NDArray) -> NDArray[np.bool_]:
        """Return the selected object's mask in the page, (x, y, z) in RAS order."""
        whole, held = np.zeros(like.shape, dtype=bool), self.page.evaluate(MASK)
        if held is not None:
            flat = np.unpackbits(np.array(held["bits"], dtype=np.uint8), bitorder="little").astype(bool)
            part = flat[np.tensordot(held["strides"], np.indices(held["size"]), axes=1) + held["first"]]
            whole[box_slices(held["start"], np.add(held["start"], held["size"]))] = part
        return whole

    def accept(self) -> None:
        name = self.page.evaluate("() => medsamViewer.worklist.current")
        self.page.click("[data-id=accept]")
        self.page.wait_for_function(
            "(name) => medsamViewer.worklist.rows().some((c) => c.name === name && c.state === 'accepted')",
            arg=name,
        )
        self.settle()

    def teach(self, minutes: float) -> dict:
        """Press Teach, wait, and return the final text of the panel."""
        if not self.page.locator("details.teach[open]").count():
            self.page.click("[data-id=teach]")
        self.page.fill("[data-id=teach-minutes]", f"{minutes:g}")
        self.page.click("[data-id=teach-start]")
        while True:
            self.page.wait_for_timeout(5000)
            said = self.page.evaluate("() => medsamViewer.worklist.teach.status")
            if said["stage"] not in ("teaching", "measuring"):
                return said


def serve(folder: Path, worklist: Path) -> tuple[subprocess.Popen, str]:
    """Run a server in a separate process and yield its address."""
    command = [
        sys.executable,
        "-m",
        "medsam_app",
        "serve",
        "--root",
        str(folder),
        "--worklist",
        str(worklist),
    ]
    run = subprocess.Popen([*command, "--port", "0", "--no-open"], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    return run, next(word for line in run.stdout for word in line.split() if word.startswith("http://"))


def needed(scores: Sequence[list[float]], target: float, most: int) -> tuple[float, float]:
    """Return the mean clicks to the target, and the fraction of objects that never reach it."""
    there = [next((n for n, each in enumerate(row) if each >= target), None) for row in scores]
    return float(np.mean([most + 1 if n is None else n for n in there])), float(
        np.mean([n is None for n in there])
    )


def told(name: str, scores: Sequence[list[float]], target: float, most: int) -> str:
    mean, never = needed(scores, target, most)
    at = [np.mean([row[min(n, len(row) - 1)] for row in scores]) for n in (0, 1, 3, 5)]
    return f"| {name} | {mean:.1f} | {never:.0%} | " + " | ".join(f"{each:.3f}" for each in at) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--accepted", type=int, default=10, help="train cases")
    parser.add_argument("--measured", type=int, default=20, help="dev cases")
    parser.add_argument("--minutes", type=float, default=20.0, help="of teaching")
    parser.add_argument("--target", type=float, default=0.85, help="Dice")
    parser.add_argument("--clicks", type=int, default=10, help="most on an object of dev")
    parser.add_argument("--good", type=float, default=0.9, help="Dice at which clicks on a train object end")
    parser.add_argument("--most", type=int, default=15, help="clicks on an object of train")
    parser.add_argument("--draw", action="store_true", help="mend what clicks on train objects leave wrong")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the page")
    asked = parser.parse_args()
    listed = manifest_cases(asked.folder)
    chosen = {
        split: choose_cases(listed, split=split, datasets=[DATASET], most=most)
        for split, most in (("train", asked.accepted), ("dev", asked.measured))
    }
    place = Path(tempfile.mkdtemp(prefix="teach-"))
    cases: dict[str, Case] = {}
    for folder, splits in (("before", ["dev"]), ("taught", ["train", "dev"])):
        (place / "data" / folder).mkdir(parents=True)
        for split in splits:
            for case in chosen[split]:
                name = f"{split}_{case.case}"
                cases[name] = case
                shutil.copyfile(case.image, place / "data" / folder / f"{name}.nii.gz")
    (place / "kept").mkdir()
    run, url = serve(place / "data", place / "kept")
    began = time.monotonic()

    def note(text: str) -> None:
        print(f"[{(time.monotonic() - began) / 60:.0f} min] {text}", file=sys.stderr, flush=True)

    try:
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--headless=new", "--no-sandbox", "--disable-gpu"]
            )
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.add_init_script("localStorage.setItem('medsam-who', 'scripted annotator')")
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.on("pageerror", lambda error: note(f"the page: {error}"))
            page.on("console", lambda said: said.type == "error" and note(f"the page: {said.text}"))
            page.goto(url)
            page.wait_for_selector(".medsam[data-ready=true]")
            ada = Annotator(page, cases)

            def picture(name: str) -> None:
                if asked.screenshots is not None:
                    page.screenshot(path=asked.screenshots / f"{name}.png")

            def measure(folder: str) -> list[list[float]]:
                ada.open_folder(folder)
                found = []
                for name in [name for name in cases if name.startswith("dev_")]:
                    ada.open(name)
                    scores = ada.segment(name, target=asked.target, most=asked.clicks)
                    found += [row for row, _ in scores.values()]
                    note(f"{folder}, {name}: " + "; ".join(f"{row[0]:.2f}..{row[-1]:.2f} in {len(row) - 1}" for row, _ in scores.values()))  # fmt: skip # noqa: E501
                    picture(folder)
                return found

            ada.open_folder("taught")
            good = []
            for name in [name for name in cases if name.startswith("train_")]:
                ada.open(name)
                scores = ada.segment(name, target=asked.good, most=asked.most)
                reached = [row[-1] for row, _ in scores.values()]
                note(f"{name}, clicked: " + ", ".join(f"{each:.2f}" for each in reached))
                if asked.draw:
                    reached = ada.draw(name)
                    note(f"{name}, drawn: " + ", ".join(f"{each:.2f}" for each in reached))
                good += reached
                ada.accept()
            picture("accepted")
            said = ada.teach(asked.minutes)
            note(said["message"])
            picture("offered")
            print(f"{len(good)} objects of {asked.accepted} cases accepted, mean Dice {np.mean(good):.3f}.")
            print(said["message"])
            before = measure("before")
            after = None
            if said["stage"] == "offered":
                ada.open_folder("taught")
                page.click("[data-id=teach-use]")
                page.wait_for_function("medsamViewer.worklist.teach.status.used")
                after = measure("taught")
            browser.close()
    finally:
        run.terminate()
        run.wait(timeout=60)
    print(f"\n| {len(before)} objects of dev | clicks to {asked.target} | never in {asked.clicks} "
          "| Dice, no click | 1 | 3 | 5 |\n|---|---|---|---|---|---|---|")  # fmt: skip
    print(told("before", before, asked.target, asked.clicks))
    if after is not None:
        print(told("after", after, asked.target, asked.clicks))
    print(f"\n{place} has the worklist, the masks and the run of teaching.")


if __name__ == "__main__":
    main()
