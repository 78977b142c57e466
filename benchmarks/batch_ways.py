"""Comparison of all ways to segment a folder: the masks must be equal, byte for byte.

python benchmarks/batch_ways.py FOLDER            # real volumes as in batch_labelled.py, and 20 broken ones
python benchmarks/batch_ways.py --volumes 500     # small volumes of noise with a ball

The ways: one process; one process that is killed at random times and restarted; two shards at once; Ray with
two workers.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batch import write_volumes
from batch_labelled import gather

COMMAND = [sys.executable, "-m", "medsam_app", "segment"]
LONGEST = 3600


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each mask in a folder tree, by its path."""
    found = {}
    for path in sorted(folder.rglob("*.nii.gz")):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):  # files of killed workers are hidden
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def start(images: Path, out: Path, table: Path, *more: str) -> subprocess.Popen[str]:
    asked = [str(images), str(out), "--prompts", str(table), "--no-refine", *more]
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *asked], stdout=pipe, stderr=subprocess.STDOUT, text=True)


def end(*running: subprocess.Popen[str]) -> str:
    """Wait for runs and return the last lines of their summaries."""
    told = [each.communicate(timeout=LONGEST)[0] for each in running]
    for each, text in zip(running, told, strict=True):
        if each.returncode not in (0, 1):  # 1: some cases failed, as expected of broken ones
            raise SystemExit(text)
    return told[-1]


def killed(images: Path, out: Path, table: Path, kills: int, seconds: float) -> int:
    """Kill and restart a run at random times, then let the last run end.

    Returns:
        The number of times it was killed.
    """
    rng = random.Random(0)
    for number in range(kills):
        run = start(images, out, table)
        try:
            run.communicate(timeout=rng.uniform(0.2, 1) * seconds)
            return number
        except subprocess.TimeoutExpired:
            run.kill()
            run.communicate()
    end(start(images, out, table))
    return kills


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--volumes", type=int, default=500)
    parser.add_argument("--size", type=int, default=32, help="voxels along each axis")
    parser.add_argument("--kills", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        images = place / "in"
        if asked.source is not None:
            table, _ = gather(asked.source, images)
        else:
            table = write_volumes(images, asked.volumes, (asked.size,) * 3)
        began = time.perf_counter()
        end(start(images, place / "one", table))
        straight = time.perf_counter() - began
        wanted = digests(place / "one")
        print(f"one process: {len(wanted)} masks in {straight:.0f} s", flush=True)

        def tell(name: str) -> None:
            nonlocal began
            seconds, found = time.perf_counter() - began, digests(place / name)
            same = sum(found.get(path) == digest for path, digest in wanted.items())
            verdict = "equal" if found == wanted else f"{len(wanted) - same} differ or miss"
            print(f"{name}: {len(found)} masks in {seconds:.0f} s, {same} the same: {verdict}", flush=True)

        began = time.perf_counter()
        times = killed(
            images, place / "killed", table, asked.kills, 10 + 1.5 * straight / max(1, asked.kills)
        )
        print(f"killed {times} times")
        tell("killed")
        began = time.perf_counter()
        end(*(start(images, place / "shards", table, "--shard", f"{n}/2") for n in (1, 2)))
        tell("shards")
        began = time.perf_counter()
        end(start(images, place / "ray", table, "--engine", "ray", "--workers", "2"))
        tell("ray")


if __name__ == "__main__":
    main()
