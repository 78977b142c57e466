"""Time and peak memory of the 3D backbone, compared with the reference implementation, alternately.

python benchmarks/backbone.py [--arch vit_b] [--side 128] [--train-side 64] [--repeats 2]
                              [--device cpu] [--dtype float32] [--only encode,click,train,own]
python benchmarks/backbone.py --profile [--side 128]    time of one encoding by operators, on a CPU

Weights are random, since neither time nor memory depends on them. Peak memory is that of the whole process on
a CPU, and torch's count on a GPU. The reference ("formula") is in `straightforward.py`. `--only` selects
parts; `--ours` skips the formula, which needs much more memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from straightforward import decode, features
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from medsam_app.adapters.adapter import Adapter
from medsam_app.models.encoder import Embedding, normalise
from medsam_app.models.load import prepare
from medsam_app.models.prompt_encoder import RoiPrompts
from medsam_app.models.sam3d_published import build_published
from medsam_app.models.sam3d_vit import VIT_SHAPES, build_sam3d_vit

Run = Callable[[], object]

#: Groups of torch's operators; an operator belongs to the first group with a word that is in its name.
LINEAR = "products of linear layers"
GROUPS = {
    LINEAR: ("addmm",),
    "attention": ("scaled_dot_product", "bmm", "gather"),  # bmm and gather compute the relative positions
    "convolutions": ("convolution",),
    "copies, concatenations, padding": ("copy_", "cat", "fill_", "index"),
    "norms and activations": ("norm", "lu", "clamp"),  # "lu" is GELU; torch computes ReLU as a clamp
    "the rest": ("",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default="vit_b", choices=VIT_SHAPES)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--train-side", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", default="encode,click,train,own")
    parser.add_argument("--ours", action="store_true", help="leave the written-out formula out")
    parser.add_argument("--profile", action="store_true", help="where the time of one encoding goes")
    options = parser.parse_args()
    if options.profile and options.device != "cpu":
        parser.error("--profile counts the time of a CPU; leave --device out")
    device = torch.device(options.device)
    bench = Bench(device, options.repeats, with_formula=not options.ours)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16")
    parts = options.only.split(",")
    machine = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{options.arch}, {options.dtype}, {machine}")
    network = Published(options.arch).to(device).eval().requires_grad_(False)
    volume = torch.randn(1, 1, *[options.side] * 3, device=device)
    if options.profile:
        with torch.inference_mode(), autocast:
            print_shares(lambda: network.encoder(volume))
        return
    with torch.inference_mode(), autocast:
        if "encode" in parts:
            bench.compare(
                f"encode {options.side}^3", lambda: features(network, volume), lambda: network.encoder(volume)
            )
        if "click" in parts:
            click(bench, network, volume, options.arch)
    if "train" in parts:
        train(bench, network, torch.randn(1, 1, *[options.train_side] * 3, device=device), autocast)
    if "own" in parts:
        del network, volume
        own_step(bench, options.arch, options.train_side, autocast)


class Bench:
    """Alternate runs of two implementations, with their ratios of time and memory."""

    def __init__(self, device: torch.device, repeats: int, *, with_formula: bool) -> None:
        self.device = device
        self.repeats = repeats
        self.with_formula = with_formula

    def compare(self, name: str, formula: Run, ours: Run, *, only_ours: bool = False) -> None:
        with_formula = self.with_formula and not only_ours
        seconds: dict[str, list[float]] = {"formula": [], "ours": []}
        peaks: dict[str, list[float]] = {"formula": [], "ours": []}
        for _ in range(self.repeats):
            for label, run in (("formula", formula), ("ours", ours)):
                if label == "ours" or with_formula:
                    took, peak = self.measure(run)
                    seconds[label].append(took)
                    peaks[label].append(peak)
        line = f"{name:34s} ours {median(seconds['ours']):8.2f} s {max(peaks['ours']):6.2f} GB"
        if with_formula:
            faster = median(seconds["formula"]) / median(seconds["ours"])
            smaller = max(peaks["formula"]) / max(peaks["ours"])
            line += f"   formula {median(seconds['formula']):8.2f} s {max(peaks['formula']):6.2f} GB"
            line += f"   {faster:5.2f} x faster, memory 1/{smaller:.2f}"
        print(line, flush=True)

    def measure(self, run: Run) -> tuple[float, float]:
        """Return the seconds and the peak memory in GB of a run."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        else:
            # Return freed memory to the system and reset the peak, so that earlier use does not count.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 1e9
        seconds = time.perf_counter() - start
        status = Path("/proc/self/status").read_text()
        return seconds, int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def print_shares(run: Run) -> None:
    """Print the time by groups of operators, and the minimum given by the matrix products."""
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        run()
    seconds, operations = dict.fromkeys(GROUPS, 0.0), 0
    for event in profiler.key_averages():
        group = next(name for name, words in GROUPS.items() if any(word in event.key for word in words))
        seconds[group] += event.self_cpu_time_total / 1e6
        operations += event.flops if group == LINEAR else 0
    total = sum(seconds.values())
    for group, took in seconds.items():
        print(f"{group:34s} {took:8.2f} s {took / total:6.1%}")
    rate = operations / seconds[LINEAR] / 1e9
    print(f"{'all':34s} {total:8.2f} s")
    print(f"{operations / 1e12:.2f} TFLOP at {rate:.0f} GFLOP/s: at best {seconds[LINEAR]:.1f} s")


class Published(nn.Module):
    """Published network, with the encoder that is compared."""

    def __new__(cls, arch: str):  # type: ignore[no-untyped-def]
        model = build_published(VIT_SHAPES[arch])
        network = nn.Module()
        network.encoder, network.decoder = model.encoder, model.decoder
        network.prompt_encoder = model.prompt_encoder
        return network


def click(bench: Bench, network: nn.Module, volume: Tensor, arch: str) -> None:
    """Compare a second click: whole published decoder, prompt-dependent part only, and light decoder."""
    side, device = volume.shape[-1], volume.device
    image_features = [torch.randn(1, 256, *[side // 4] * 3, device=device) for _ in range(4)]
    points = torch.full((1, 1, 3), side / 2, device=device)
    unprompted = network.decoder.unprompted(image_features, volume)
    bench.compare(
        "click, published decoder",
        lambda: decode(network, image_features, volume, points),
        lambda: network.decoder(unprompted, network.prompt_encoder(image_features[3], points)),
    )
    light = prepare(build_sam3d_vit(VIT_SHAPES[arch]), name=arch, sha256="", device=device)
    valid = torch.ones_like(volume, dtype=torch.bool)
    embedding = Embedding(
        normalise(volume, valid),
        valid,
        *(
            torch.randn(1, width, *[side // stride] * 3, device=device)
            for width, stride in ((24, 4), (64, 8), (192, 16))
        ),
    )
    prompts = RoiPrompts(
        points, torch.ones(1, 1, dtype=torch.long, device=device), mask=torch.rand_like(volume)
    )
    bench.compare(
        "click, light decoder",
        lambda: decode(network, image_features, volume, points),
        lambda: light.decode(embedding, prompts).best(),
    )


def train(bench: Bench, network: nn.Module, volume: Tensor, autocast: torch.autocast) -> None:
    """Compare a training step as in the paper: adapters, norms, depth and slice embeddings, neck, decoder."""
    network.train()
    network.requires_grad_(True)
    for name, parameter in network.encoder.named_parameters():
        trained = ("adapter", "norm", "depth_embed", "slice_embed", "rel_pos_d", "neck_3d")
        parameter.requires_grad_(any(part in name for part in trained))
    points = torch.full((1, 1, 3), volume.shape[-1] / 2, device=volume.device)
    target = (volume[0, 0] > 0).long()[None]

    def step(logits: Callable[[], Tensor]) -> None:
        with autocast:
            loss = nn.functional.cross_entropy(logits().float(), target)
        loss.backward()
        network.zero_grad(set_to_none=True)

    def ours() -> Tensor:
        image_features = network.encoder(volume)
        unprompted = network.decoder.unprompted(image_features, volume)
        return network.decoder(unprompted, network.prompt_encoder(image_features[3], points))

    side = volume.shape[-1]
    for checkpointing, how in ((True, "least memory"), (False, "all kept")):
        network.encoder.checkpointing = checkpointing
        bench.compare(
            f"fine-tuning step {side}^3, {how}",
            lambda: step(lambda: decode(network, features(network, volume), volume, points)),
            lambda: step(ours),
        )


def own_step(bench: Bench, arch: str, side: int, autocast: torch.autocast) -> None:
    """Measure a step of this project's model with a spatial adapter and the tensors trained with it."""
    model = build_sam3d_vit(VIT_SHAPES[arch], roi_shape=(side, side, side)).to(bench.device)
    adapter = Adapter.create("spatial", model, bottleneck=VIT_SHAPES[arch].dim // 2, also=model.taught)
    adapter.enable()
    model.train()
    volume = torch.randn(1, 1, side, side, side, device=bench.device)
    valid = torch.ones_like(volume, dtype=torch.bool)
    prompts = RoiPrompts(
        torch.full((1, 1, 3), side / 2, device=bench.device),
        torch.ones(1, 1, dtype=torch.long, device=bench.device),
    )

    def step() -> None:
        with autocast:
            logits = model.decode(model.encode_image(volume, valid), prompts).logits
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits.float(), (volume > 0).float().expand_as(logits)
            )
        loss.backward()
        adapter.zero_grad(set_to_none=True)

    bench.compare(f"fine-tuning step {side}^3, sam3d_{arch}", step, step, only_ours=True)


if __name__ == "__main__":
    main()
