"""Saved state, averaged gradients, updates and learning rate of training runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from medsam_app.atomic import remove_drafts, replace_file
from medsam_app.errors import ModelError, SaveError

#: Without this file in its folder there is no saved run. One file: what a killed run leaves belongs together.
STATE = "state.safetensors"
#: What the learning rate ends at, as a fraction of its peak.
LAST_RATE = 0.02


def is_saved(out: Path) -> bool:
    """Return whether a folder holds a run."""
    return (out / STATE).is_file()


def write_state(
    out: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    beside: Sequence[str] = (),
) -> None:
    """Write groups of tensors by name, and the rest, as one file.

    Args:
        beside: names of groups that also get a file of their own, NAME.safetensors.

    Raises:
        SaveError: it could not be written.
    """
    whole = {f"{name}/{key}": value for name, group in tensors.items() for key, value in group.items()}
    files: dict[str, tuple[dict[str, Tensor], dict[str, str] | None]]
    files = {STATE: (whole, {"state": json.dumps(dict(state))})}
    files |= {f"{name}.safetensors": (dict(tensors[name]), None) for name in beside}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, (group, metadata) in files.items():
            remove_drafts(out / name, older_than=0)
            with replace_file(out / name) as draft:
                save_file({key: value.contiguous() for key, value in group.items()}, draft, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise SaveError(f"The run could not be saved in {out} ({error}); make room there.") from None


def read_state(out: Path, names: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """The inverse of `write_state`, for some of the groups.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        with safe_open(out / STATE, "pt") as file:
            state = dict(json.loads((file.metadata() or {})["state"]))
            groups: dict[str, dict[str, Tensor]] = {name: {} for name in names}
            for key in file.keys():  # noqa: SIM118  no mapping
                name, _, own = key.partition("/")
                if name in groups:
                    groups[name][own] = file.get_tensor(key)
            return state, [groups[name] for name in names]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        raise damaged(out) from None


def damaged(out: Path) -> ModelError:
    """Return the error for a run that cannot be resumed."""
    return ModelError(f"The run saved in {out} is damaged or of another model; give another --out.")


def moments(optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The optimizers' memory by parameter and kind; nothing before a parameter's first gradient."""
    found = {}
    for index, parameter in enumerate(parameters):
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"{index}.{key}"] = value
    return found


def take_moments(
    optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter], found: Mapping[str, Tensor]
) -> None:
    """The inverse of `moments`. Layout matters for the last bit; AdamW keeps its counter on the CPU."""
    place = {id(parameter): index for index, parameter in enumerate(parameters)}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"{place[id(parameter)]}."
            own = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
            if own:
                optimizer.state[parameter] = {
                    key: torch.empty_like(parameter, requires_grad=False).copy_(value)
                    if value.shape == parameter.shape and key != "step"
                    else value
                    for key, value in own.items()
                }


def average_gradients(parameters: Sequence[nn.Parameter], world: int) -> None:
    """Give every process the mean of all processes' gradients; a missing one counts as zero."""
    if world == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= world
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def update(
    optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter], rate: float, *, norm: float = 1.0
) -> None:
    """One step along gradients that are cut to a norm; none where they are not finite."""
    size = torch.nn.utils.clip_grad_norm_(parameters, norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("faster", 1.0)
        if torch.isfinite(size):
            optimizer.step()


@torch.no_grad()
def follow(average: Mapping[str, Tensor], tensors: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Move a running average towards tensors, faster in the first steps; integers are copied."""
    for key, value in tensors.items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - min(decay, (1 + step) / (10 + step)))
        else:
            average[key].copy_(value)


def rate_at(peak: float, done: float, step: int, warmup: int) -> float:
    """The learning rate of a step: up along a line, down along a cosine."""
    warm = min(1.0, (step + 1) / warmup)
    return peak * warm * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))
