"""Processes of a training run: the device of each, how they come together, how they are told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

from medsam_app.commands import step
from medsam_app.errors import SettingsError

if TYPE_CHECKING:  # heavy
    import torch

#: How long processes wait for the first, which measures, and for each other while they read.
PATIENCE = timedelta(hours=3)


def is_first() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def told_by(first: bool, text: str) -> AbstractContextManager[Any]:
    """Say what is being done, in the first process alone."""
    return step(text) if first else nullcontext()


def process_device(wanted: str) -> tuple[torch.device, str]:
    """The device of this process, and a sentence that says so; torchrun numbers a machine's processes."""
    import torch

    from medsam_app.models.load import choose_device

    device, told = choose_device(wanted)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        if device.index is not None and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
            raise SettingsError(
                f"Each process takes a GPU of its own, but --device names {device} for all; give cuda."
            )
        device, told = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if device.index is None else wanted)
        torch.cuda.set_device(device)
    return device, told


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the other processes that torchrun started, if it did."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Take Ctrl-C and SIGTERM as a wish to stop after the step; yields what says whether there is one.

    A second Ctrl-C stops at once, unless torchrun is there, which passes on the one that all have got.
    """
    wished = False

    def wish(number: int, frame: FrameType | None) -> None:
        nonlocal wished
        wished = True
        if number == signal.SIGINT and "WORLD_SIZE" not in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
