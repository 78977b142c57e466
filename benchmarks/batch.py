"""Segmentation of a folder: overhead, memory over many cases, memory of a large volume.

python benchmarks/batch.py                  # 50 volumes, compared with a simple loop
python benchmarks/batch.py --volumes 500 --size 32 --plot memory.png
python benchmarks/batch.py --large          # a CT of 512 x 512 x 400
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from medsam_app.batch.record import CaseRecord, Journal, Shard
from medsam_app.batch.run import plan_folder, segment_folder
from medsam_app.batch.settings import make_settings
from medsam_app.batch.worker import Worker
from medsam_app.system import format_bytes


def write_volumes(folder: Path, count: int, shape: tuple[int, int, int]) -> Path:
    """Write compressed volumes of noise with one ball each, and a table with a click in each ball."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image,label,i,j,k"]
    at = np.indices(shape, dtype=np.float32)
    for number in range(count):
        middle = [int(n * rng.uniform(0.35, 0.65)) for n in shape]
        inside = sum((axis - m) ** 2 for axis, m in zip(at, middle, strict=True)) < (min(shape) / 5) ** 2
        array = rng.normal(0, 40, shape) + 150 * inside
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), folder / f"{number:04d}.nii.gz")
        rows.append(f"{number:04d},1,{middle[0]},{middle[1]},{middle[2]}")
    table = folder.with_suffix(".csv")
    table.write_text("\n".join(rows) + "\n")
    return table


def resident() -> int:
    """Return the current memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one_by_one(folder: Path, out: Path, table: Path) -> float:
    """Return the seconds of the simple loop."""
    settings = make_settings({"prompts": table, "refine": False})
    plan = plan_folder(folder, out, settings, Shard(), Journal(out, Shard(), ""))
    worker = Worker(settings, out)
    began = 0.0
    for number, job in enumerate(plan.todo):
        if number == 2:
            began = time.perf_counter()
        assert worker.run(job).outcome == "done"
    return time.perf_counter() - began


def throughput(folder: Path, out: Path, table: Path) -> tuple[float, list[CaseRecord], list[int]]:
    """Segment a folder with the application.

    The first two cases are not counted, since they include imports.

    Returns:
        The seconds after the second case, the records of the other cases, and the memory after each case.
    """
    seen: list[tuple[float, CaseRecord, int]] = []

    def watch(record: CaseRecord, done: int, count: int) -> None:
        assert record.outcome == "done", record.message
        seen.append((time.perf_counter(), record, resident()))

    segment_folder(folder, out, prompts=table, refine=False, watch=watch)
    return seen[-1][0] - seen[1][0], [record for _, record, _ in seen[2:]], [memory for *_, memory in seen]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--volumes", type=int, default=50)
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if asked.large:
            large(place)
            return
        table = write_volumes(place / "in", asked.volumes, (asked.size,) * 3)
        seconds, records, memory = throughput(place / "in", place / "out", table)
        model = sum(record.seconds["segment"] for record in records)
        outside = sum(record.seconds["read"] + record.seconds["write"] for record in records)
        count = len(records)
        print(f"{count} volumes of {asked.size}^3: {seconds:.1f} s, {count / seconds:.2f} a second")
        print(f"in the model {model:.1f} s; lost outside it: {100 * (1 - model / seconds):.1f} % of the time")
        print(f"reading and writing took {outside:.1f} s, most of it while another case was in the model")
        parts = np.array_split(np.array(memory), 5)
        print("memory in MB, mean of each fifth of the run:", *(f"{part.mean() / 1e6:.0f}" for part in parts))
        if asked.plot is not None:
            plot(memory, asked.plot)
        if asked.volumes <= 100:
            plain = one_by_one(place / "in", place / "plain", table)
            print(f"one after the other: {plain:.1f} s, {plain / seconds:.2f} times as long")


def large(place: Path) -> None:
    """Print the memory of a large volume, without the model, as a multiple of its size."""
    shape = (512, 512, 400)
    jobs = []
    for name, size in (("small", (64, 64, 64)), ("large", shape)):
        settings = make_settings({"prompts": write_volumes(place / name, 1, size)})
        plan = plan_folder(place / name, place / "out", settings, Shard(), Journal(place, Shard(), ""))
        jobs += plan.todo
    worker = Worker(settings, place / "out")
    assert worker.run(jobs[0]).outcome == "done"  # warm-up, includes imports
    before = most = resident()
    ended = threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, resident())

    looking = threading.Thread(target=look)
    looking.start()
    record = worker.run(jobs[1])
    ended.set()
    looking.join()
    held = int(np.prod(shape)) * 2
    times = (most - before) / held
    print(f"{' x '.join(map(str, shape))} int16, {format_bytes(held)}: {record.outcome}, {record.seconds}")
    print(f"peak {format_bytes(most)}, before it {format_bytes(before)}: {times:.2f} times its size")


def plot(memory: list[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.figure(figsize=(6, 2.6))
    plt.plot(np.array(memory) / 1e9)
    plt.xlabel("case")
    plt.ylabel("memory in GB")
    plt.ylim(bottom=0)
    plt.tight_layout()
    plt.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
