"""Medians in a real browser on a 512 x 512 x 300 CT, against what a person does not notice.

    python benchmarks/browser_latency.py

Scroll step: until the next frame is drawn. Click: until its mask is drawn, the window being known.
Opening: from choosing the file until its picture is there. With the embedded model, on this machine.
Needs chromium and playwright.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.page_latency import SCROLL, full_size_ct
from benchmarks.serving import browsing, serving

#: What is measured, and the most it may take in seconds.
TARGETS = {"scroll step": 0.033, "click to visible mask": 0.7, "opening": 6.0}
CLICK = """async ([ijk, positive]) => {
    const began = performance.now();
    await medsamViewer.clickPoint(medsamViewer.geometry.toRas(ijk), positive);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return (performance.now() - began) / 1000;
}"""
#: Voxels in a kidney and in the liver of the full-size phantom.
PLACES = ([160, 272, 195], [366, 304, 94])


def measure(url: str, times: int) -> dict[str, list[float]]:
    """Seconds of each thing, as often as it was done."""
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    with browsing() as browser:
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.set_default_timeout(300_000)
        page.goto(url)
        page.wait_for_selector(".medsam[data-ready=true]")
        for _ in range(times):
            began = time.perf_counter()
            page.evaluate("() => medsamViewer.open({ source: 'folder', root: 0, path: 'ct.nii' })")
            page.wait_for_function("medsamViewer.volume.name === 'ct' && !medsamViewer.busy")
            found["opening"].append(time.perf_counter() - began)
        for plane in ("axial", "coronal", "sagittal"):
            found["scroll step"] += [ms / 1000 for ms in page.evaluate(SCROLL, [plane, 30 * times])["times"]]
        for place in PLACES:
            page.evaluate("() => medsamViewer.addObject()")
            page.evaluate(CLICK, [place, True])  # encodes the window
            for n in range(1, times + 1):
                near = [place[0] + 2 * n, place[1] - n, place[2]]
                found["click to visible mask"].append(page.evaluate(CLICK, [near, n % 2 == 0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="openings, and clicks an object")
    options = parser.parse_args()
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        full_size_ct(Path(folder))
        with serving([Path(folder)]) as (url, service):
            service.worker.run(lambda: None)  # the model is loaded
            found = measure(url, options.times)
    for name, seconds in found.items():
        median, most = statistics.median(seconds), TARGETS[name]
        verdict = "" if median < most else "  MISSED"
        print(f"{name:<24}{1000 * median:8.0f} ms   of {len(seconds)}, target {1000 * most:.0f} ms{verdict}")


if __name__ == "__main__":
    main()
