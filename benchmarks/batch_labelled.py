"""Batch of real volumes with one click each, and 20 broken ones: python benchmarks/batch_labelled.py FOLDER

FOLDER holds labelled volumes in a layout that `medsam-app dataset inspect` accepts. Every image is linked
into one folder; its click is in the middle of its largest label. The broken volumes are truncated images.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import numpy as np

from medsam_app.batch.run import segment_folder
from medsam_app.datasets.cases import Case
from medsam_app.datasets.find import find_cases
from medsam_app.grid.masks import dice
from medsam_app.io.formats import SUFFIXES
from medsam_app.io.loading import load_mask, read_grid
from medsam_app.prompts.simulated_clicks import click_inside

BROKEN = 20


def gather(
    source: Path, folder: Path, *, datasets: Collection[str] = (), each: int = 10**6, broken: int = BROKEN
) -> tuple[Path, dict[str, tuple[Case, int]]]:
    """Link some images of each dataset, truncate some copies, and write the table of clicks.

    Returns:
        The case and the label of its click, by name.
    """
    by_dataset: dict[str, list[Case]] = defaultdict(list)
    for case in find_cases(source).cases:
        if not datasets or case.dataset in datasets:
            by_dataset[case.dataset].append(case)
    cases = [case for some in by_dataset.values() for case in some[:each]]
    rows, clicked = ["image,label,i,j,k"], {}
    for case in cases:
        ending = next(end for end in SUFFIXES if case.image.name.endswith(end))
        name = f"{case.dataset}/{case.case}"
        link = folder / f"{name}{ending}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(case.image.resolve())
        grid = read_grid(case.image)
        mask = load_mask(case.label, grid)
        value = int(np.bincount(mask.ravel())[1:].argmax()) + 1
        i, j, k = click_inside(mask == value, spacing=grid.spacing)
        rows.append(f'"{name}",{value},{i},{j},{k}')
        clicked[name] = case, value
    for number, case in enumerate(cases[:: max(1, len(cases) // broken)][:broken]):
        whole = case.image.read_bytes()
        (folder / f"broken_{number:02d}.nii.gz").write_bytes(whole[: len(whole) * number // broken])
        rows.append(f"broken_{number:02d},1,0,0,0")
    table = folder.with_suffix(".csv")
    table.write_text("\n".join(rows) + "\n")
    return table, clicked


def photograph(page: Path, picture: Path) -> None:
    """Save the upper part of a page as an image; needs chromium and playwright."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 760})
        shown.goto(page.as_uri())
        shown.wait_for_timeout(1000)
        shown.screenshot(path=str(picture))
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("--dataset", action="append", default=[], help="repeatable; all by default")
    parser.add_argument("--each", type=int, default=10**6, help="images of a dataset")
    parser.add_argument("--broken", type=int, default=BROKEN)
    parser.add_argument("--picture", type=Path, help="where a picture of the index goes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "in"
        table, clicked = gather(
            asked.source, folder, datasets=asked.dataset, each=asked.each, broken=asked.broken
        )
        began = time.perf_counter()
        found = segment_folder(folder, Path(place) / "out", prompts=table, refine=False)
        seconds = time.perf_counter() - began
        scores: dict[str, list[float]] = defaultdict(list)
        for record in found.having("done"):
            case, value = clicked[record.case]
            grid = read_grid(case.image)  # `load_mask` refuses a mask on another grid
            mask = load_mask(found.output / record.outputs[0].path, grid) == value
            scores[case.dataset].append(dice(mask, load_mask(case.label, grid) == value))
        if asked.picture is not None:
            photograph(found.output / "index.html", asked.picture)
    failed = found.having("failed")
    broken = sum(case.case.startswith("broken") for case in failed)
    done = len(found.having("done"))
    print(f"{len(found.cases)} cases in {seconds:.0f} s: {done} done, each mask on its image;")
    print(f"{len(failed)} failed, {broken} of them of the {asked.broken} broken ones")
    for case in failed[:3]:
        print(f"  {case.case}: {case.message}")
    for name, each in scores.items():
        print(f"{name}: {len(each)} volumes, Dice after one click {np.mean(each):.3f}")


if __name__ == "__main__":
    main()
