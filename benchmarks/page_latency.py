"""How quick the page is: first picture, scrolling on a 512 x 512 x 300 CT, clicks.

    python benchmarks/page_latency.py

Prints medians, measured in a real Chromium on this machine. Needs chromium and playwright.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import uvicorn

from medsam_app.browser.app import _listen, create_app
from medsam_app.browser.service import Service
from medsam_app.phantom import torso_phantom

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
]
READY = ".medsam[data-ready=true]"
#: Scroll through slices one wheel step after the other, each drawn before the next: ms per step.
SCROLL = """async ([plane, steps]) => {
    const viewer = medsamViewer;
    const last = viewer.planes[plane].sliceCount - 1;
    viewer.setSlice(plane, 0);
    const drawn = () => new Promise((done) => requestAnimationFrame(done));
    await drawn();
    const times = [];
    const work = [];
    for (let step = 1; step <= steps; step++) {
        const began = performance.now();
        viewer.setSlice(plane, step % last);
        for (const each of Object.values(viewer.planes)) each.draw();
        work.push(performance.now() - began);
        await drawn();
        times.push(performance.now() - began);
    }
    return { times, work };
}"""


def full_size_ct(folder: Path) -> Path:
    """The phantom on 512 x 512 x 300 voxels, with other noise, as a file."""
    volume, _, _ = torso_phantom()
    index = [
        np.minimum(np.arange(n) * m // n, m - 1) for n, m in zip((512, 512, 300), volume.shape, strict=True)
    ]
    big = volume.array[np.ix_(*index)] + np.random.default_rng(0).integers(
        -9, 9, (512, 512, 300), dtype=np.int16
    )
    path = folder / "ct.nii"
    nib.save(nib.Nifti1Image(big.astype(np.int16), np.diag([-0.7, -0.7, 0.8, 1.0])), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=5, help="page loads to take the median of")
    parser.add_argument("--steps", type=int, default=200, help="scroll steps a plane")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No chromium on this machine; install the system's package 'chromium'.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        full_size_ct(Path(folder))
        service = Service(roots=[Path(folder)])
        service.sample()
        listener = _listen("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(create_app(service, port=port), log_level="warning"))
        threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
        while not server.started:
            time.sleep(0.05)
        service.worker.run(lambda: None)  # the model is loaded
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        url = f"http://127.0.0.1:{port}/"
        loads = []
        for _ in range(options.loads):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            page = context.new_page()
            began = time.perf_counter()
            page.goto(url)
            page.wait_for_selector(READY)
            loads.append(time.perf_counter() - began)
            context.close()
        print(
            f"page to first picture (sample)     {statistics.median(loads):7.2f} s   median of {len(loads)}"
        )

        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector(READY)
        clicks(page)
        began = time.perf_counter()
        page.evaluate("() => medsamViewer.open({ source: 'folder', root: 0, path: 'ct.nii' })")
        page.wait_for_function("medsamViewer.volume.name === 'ct' && !medsamViewer.busy")
        say("opening 512 x 512 x 300 (157 MB)", f"{time.perf_counter() - began:.2f} s")
        for plane in ("axial", "coronal", "sagittal"):
            found = page.evaluate(SCROLL, [plane, options.steps])
            step, work = (statistics.median(found[key]) for key in ("times", "work"))
            say(
                f"scroll {plane}, 512 x 512 x 300",
                f"{1000 / step:.1f} frames/s, {work:.1f} ms of drawing a step",
            )
        browser.close()
        server.should_exit = True
        service.close()


def clicks(page) -> None:
    """Time from a click to its mask in the page: first (window encoded) and next (cached)."""
    click = """async ([ijk, positive]) => {
        const began = performance.now();
        await medsamViewer.clickPoint(medsamViewer.geometry.toRas(ijk), positive);
        return performance.now() - began;
    }"""
    first, following = [], []
    for ijk in ([70, 85, 52], [67, 98, 20], [160, 95, 25]):
        page.evaluate("() => medsamViewer.addObject()")
        first.append(page.evaluate(click, [ijk, True]))
        for step in range(1, 4):
            near = [ijk[0] + 2 * step, ijk[1] - step, ijk[2]]
            following.append(page.evaluate(click, [near, step % 2 == 0]))
    say("first click of an object", f"{statistics.median(first) / 1000:.2f} s, median of {len(first)}")
    say("next click", f"{statistics.median(following) / 1000:.2f} s, median of {len(following)}")


def say(what: str, how_long: str) -> None:
    print(f"{what:<40}{how_long}", flush=True)


if __name__ == "__main__":
    main()
