"""Median latencies in a real browser on a 512 x 512 x 300 CT, with limits that users do not notice.

    python benchmarks/browser_latency.py

Page: from the request until the sample is drawn. Opening: from choosing the file until it is drawn. Scroll
step: until the next frame is drawn. Click: until its mask is drawn; the first click on an object encodes its
window, later clicks use the cached embedding. Uses the embedded model on this machine. Needs chromium and
playwright.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nibabel as nib
import numpy as np

from benchmarks.serving import browsing, serving
from medsam_app.synthetic.torso import torso_phantom

#: Limits in seconds.
TARGETS = {"scroll step": 0.033, "click, window known": 0.7, "opening": 6.0}
READY = ".medsam[data-ready=true]"
CLICK = """async ([ijk, positive]) => {
    const began = performance.now();
    await medsamViewer.clickPoint(medsamViewer.geometry.toRas(ijk), positive);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return (performance.now() - began) / 1000;
}"""
#: Scrolls slice by slice, each drawn before the next; returns seconds until the frame, and of drawing.
SCROLL = """async ([plane, steps]) => {
    const viewer = medsamViewer, last = viewer.planes[plane].sliceCount - 1, times = [], work = [];
    const drawn = () => new Promise((done) => requestAnimationFrame(done));
    viewer.setSlice(plane, 0);
    await drawn();
    for (let step = 1; step <= steps; step++) {
        const began = performance.now();
        viewer.setSlice(plane, step % last);
        for (const each of Object.values(viewer.planes)) each.draw();
        work.push((performance.now() - began) / 1000);
        await drawn();
        times.push((performance.now() - began) / 1000);
    }
    return { times, work };
}"""
#: A voxel in each of two organs of the full-size phantom.
PLACES = {"liver": [160, 272, 195], "kidney": [366, 304, 94]}


def full_size_ct(folder: Path) -> Path:
    """Write the phantom on 512 x 512 x 300 voxels, with different noise."""
    volume, _, _ = torso_phantom()
    shape = (512, 512, 300)
    index = [np.minimum(np.arange(n) * m // n, m - 1) for n, m in zip(shape, volume.shape, strict=True)]
    noise = np.random.default_rng(0).integers(-9, 9, shape, dtype=np.int16)
    big = (volume.array[np.ix_(*index)] + noise).astype(np.int16)
    path = folder / "ct.nii"
    nib.save(nib.Nifti1Image(big, np.diag([-0.7, -0.7, 0.8, 1.0])), path)
    return path


def opened_page(browser: Any, url: str) -> Any:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(300_000)
    page.goto(url)
    page.wait_for_selector(READY)
    return page


def measure(browser: Any, url: str, times: int) -> dict[str, list[float]]:
    """Return the seconds of each repetition of each action."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(times):
        began = time.perf_counter()
        page = opened_page(browser, url)
        found["page"].append(time.perf_counter() - began)
        page.context.close()
    page = opened_page(browser, url)
    for _ in range(times):
        began = time.perf_counter()
        page.evaluate("() => medsamViewer.open({ source: 'folder', root: 0, path: 'ct.nii' })")
        page.wait_for_function("medsamViewer.volume.name === 'ct' && !medsamViewer.busy")
        found["opening"].append(time.perf_counter() - began)
    for plane in ("axial", "coronal", "sagittal"):
        scrolled = page.evaluate(SCROLL, [plane, 30 * times])
        found["scroll step"] += scrolled["times"]
        found["drawing of a step"] += scrolled["work"]
    for organ, place in PLACES.items():
        page.evaluate("() => medsamViewer.addObject()")
        found["first click of an object"].append(page.evaluate(CLICK, [place, True]))
        for n in range(1, times + 1):
            near = [place[0] + 2 * n, place[1] - n, place[2]]
            found["click, window known"].append(page.evaluate(CLICK, [near, n % 2 == 0]))
            found[f"  on the {organ}"].append(found["click, window known"][-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="pages, openings, and clicks an object")
    options = parser.parse_args()
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        full_size_ct(Path(folder))
        with serving([Path(folder)]) as (url, service), browsing() as browser:
            service.worker.run(lambda: None)  # wait until the model is loaded
            found = measure(browser, url, options.times)
    for name, seconds in found.items():
        median, most = statistics.median(seconds), TARGETS.get(name)
        target = "" if most is None else f", target {1000 * most:.0f} ms{'  MISSED' if median > most else ''}"
        print(f"{name:<28}{1000 * median:8.0f} ms, median of {len(seconds)}{target}")


if __name__ == "__main__":
    main()
