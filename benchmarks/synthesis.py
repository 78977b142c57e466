"""Processor time of training windows by source on one core: python benchmarks/synthesis.py --data FOLDER

With `--against CHECKOUT`, another checkout of this repository draws its windows after this one, source by
source, and the ratio of the two is printed. Processor time is less sensitive to other work than wall time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SOURCES = ("synthetic", "heads", "pseudo", "real")
SIDES = (32, 48, 64)


def milliseconds(source: str, data: Path | None, windows: int) -> list[float]:
    """Return the processor time per window for each of SIDES."""
    from medsam_app.pretraining.windows import Mixture

    torch.set_num_threads(1)
    mixture = Mixture(data, {source: 1.0})
    found = []
    for side in SIDES:
        mixture.draw(windows, side)  # fill caches that later windows use
        began = time.process_time()
        for seed in range(windows):
            mixture.draw(seed, side)
        found.append(1000 * (time.process_time() - began) / windows)
    return found


def measure(checkout: Path, source: str, options: argparse.Namespace) -> list[float]:
    """Return the processor time of a checkout, measured in a separate process."""
    command = [sys.executable, __file__, "--only", source, "--windows", str(options.windows)]
    command += ["--data", str(options.data)] if options.data else []
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "passive"}
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [float(value) for value in lines.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with manifest.json; synthetic windows alone without"
    )
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--windows", type=int, default=60, help="windows of each side and source")
    parser.add_argument("--sources", nargs="+", default=SOURCES, choices=SOURCES)
    parser.add_argument("--only", choices=SOURCES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(*milliseconds(options.only, options.data, options.windows))
        return
    for source in options.sources if options.data else SOURCES[:1]:
        own = measure(ROOT, source, options)
        other = measure(options.against, source, options) if options.against else None
        for index, (side, value) in enumerate(zip(SIDES, own, strict=True)):
            line = f"{source:10} {side}^3: {value:6.1f} ms, {1000 / value:6.1f} a second"
            if other:
                line += f"; before {other[index]:6.1f} ms, ratio {other[index] / value:.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
