"""Several browsers at once on one server: errors, mixed sessions, memory and times.

    python benchmarks/browser_crowd.py --browsers 8 --minutes 10

Each page has its own volume, with a bright ball at a unique position, and its own names of objects. After
each round the benchmark checks that the mask is at that ball and that names and objects are those of the
page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nibabel as nib
import numpy as np

from benchmarks.serving import browsing, serving
from medsam_app.browser.state.service import Service

SIDE = 96
#: One round of work without waiting for other pages: a new object, clicks, undo; returns the final objects.
ROUND = """async ([at, name, by]) => {
    const viewer = medsamViewer, times = [];
    await viewer.addObject();
    await viewer.changeObject(viewer.state.selected, { name });
    for (const step of [0, 1, 2]) {
        const began = performance.now();
        const ijk = [at[0] + by[0] + step, at[1] + by[1], at[2] + by[2]];
        await viewer.clickPoint(viewer.geometry.toRas(ijk), true);
        times.push((performance.now() - began) / 1000);
    }
    await viewer.undo();
    const object = viewer.selected;
    const mask = viewer.masks.get(object.mask);
    const found = {
        times, volume: viewer.volume.name, names: viewer.state.objects.map((each) => each.name),
        prompts: object.prompts.length, ml: object.volume_ml,
        here: Boolean(mask?.has(viewer.geometry.toRas(at))),
        toasts: [...document.querySelectorAll(".toast.error")].map((each) => each.textContent),
    };
    if (viewer.state.objects.length >= 3) await viewer.deleteObject(viewer.state.objects[0].id);
    return found;
}"""


def volumes(folder: Path, count: int) -> list[list[int]]:
    """Write one volume per browser and return the positions of the balls."""
    places = []
    index = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), axis=-1)
    for n in range(count):
        at = [24 + 48 * (n >> axis & 1) for axis in range(3)]
        rng = np.random.default_rng(n)
        array = rng.normal(0, 40, (SIDE,) * 3) + 300 * (np.linalg.norm(index - at, axis=-1) < 8 + n % 3)
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), folder / f"case{n}.nii.gz")
        places.append(at)
    return places


def resident() -> float:
    """Return the memory of this process in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e9


def told(taken: float, sessions: float, embeddings: float) -> str:
    rest = taken - sessions - embeddings
    return f"{taken:.2f} GB: sessions {sessions:.2f}, embeddings {embeddings:.2f}, all else {rest:.2f}"


def wrong_with(found: dict, n: int, name: str) -> list[str]:
    """Return the differences from the state that this browser created."""
    checks = {
        "another volume": found["volume"] == f"case{n}",
        "another's objects": all(each.startswith(f"b{n} ") for each in found["names"])
        and name in found["names"],
        "prompts lost or gained": found["prompts"] == 2,
        "mask not at its ball": found["here"] and found["ml"] > 0,
        f"error: {found['toasts']}": not found["toasts"],
    }
    return [what for what, well in checks.items() if not well]


def work(url: str, service: Service, places: list[list[int]], minutes: float) -> bool:
    """Run all browsers and return whether there was no error."""
    clicks, wrong, rounds = [], [], 0
    memory: list[tuple[float, float, float]] = []  # GB of the process, of all sessions, of embeddings
    with browsing() as browser:
        pages = []
        for n in range(len(places)):
            page = browser.new_context(viewport={"width": 1024, "height": 700}).new_page()
            page.set_default_timeout(300_000)
            page.on("pageerror", lambda error, n=n: wrong.append(f"browser {n}: {error}"))
            page.goto(url)
            page.wait_for_selector(".medsam[data-ready=true]")
            path = f"case{n}.nii.gz"
            page.evaluate("(path) => medsamViewer.open({ source: 'folder', root: 0, path })", path)
            page.wait_for_function(f"medsamViewer.volume.name === 'case{n}' && !medsamViewer.busy")
            pages.append(page)
        began = reported = time.monotonic()
        while time.monotonic() < began + 60 * minutes:
            rounds += 1
            # A different position in the ball each time, since cached predictions take no time.
            by = [rounds % 7 - 4, rounds // 7 % 7 - 3, rounds // 49 % 7 - 3]
            for n, page in enumerate(pages):  # start all before waiting for the first
                start = f"(given) => {{ window.round = ({ROUND})(given); }}"
                page.evaluate(start, [places[n], f"b{n} {rounds}", by])
            for n, page in enumerate(pages):
                found = page.evaluate("() => window.round")
                clicks += found["times"]
                wrong += [
                    f"browser {n}, round {rounds}: {what}" for what in wrong_with(found, n, f"b{n} {rounds}")
                ]
            memory.append((resident(), service.workspaces.nbytes / 1e9, service.cache.nbytes / 1e9))
            if time.monotonic() > reported + 30:
                reported = time.monotonic()
                print(f"{(reported - began) / 60:5.1f} min: round {rounds}, {told(*memory[-1])}", flush=True)
    clicks.sort()
    print(f"{len(places)} browsers, {rounds} rounds, {len(clicks)} clicks, {len(wrong)} wrong")
    print(f"click: median {statistics.median(clicks):.2f} s, 95 % {clicks[int(0.95 * len(clicks))]:.2f} s")
    for name, at in (("after the first round", 0), ("half-way", len(memory) // 2), ("at the end", -1)):
        print(f"memory {name}: {told(*memory[at])}")
    for each in wrong[:20]:
        print(each)
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browsers", type=int, default=8, choices=range(1, 9))
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = volumes(Path(folder), options.browsers)
        with serving([Path(folder)]) as (url, service):
            well = work(url, service, places, options.minutes)
    sys.exit(not well)


if __name__ == "__main__":
    main()
