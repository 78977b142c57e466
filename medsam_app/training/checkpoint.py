"""Saved state, gradient averaging, updates and learning rate of training runs."""

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

#: File of the saved state; a folder without it holds no run. It is one file, so that a killed run leaves a
#: consistent state.
STATE = "state.safetensors"
#: Final learning rate as a fraction of its peak.
LAST_RATE = 0.02


def is_saved(out: Path) -> bool:
    """Return whether a folder holds a saved run."""
    return (out / STATE).is_file()


def write_state(
    out: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    beside: Sequence[str] = (),
) -> None:
    """Write a run's tensors and counters as one file.

    Args:
        out: folder of the run.
        tensors: groups of tensors by name.
        state: other values, which must be valid JSON.
        beside: names of groups that are also written to a separate file, NAME.safetensors.

    Raises:
        SaveError: a file could not be written.
    """
    flat = {f"{name}/{key}": value for name, group in tensors.items() for key, value in group.items()}
    files: dict[str, tuple[dict[str, Tensor], dict[str, str] | None]]
    files = {STATE: (flat, {"state": json.dumps(dict(state))})}
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
    """Read the state and some of the groups that `write_state` wrote.

    Returns:
        The other values, and the tensors of each group in the order of `names`.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        with safe_open(out / STATE, "pt") as file:
            state = dict(json.loads((file.metadata() or {})["state"]))
            groups: dict[str, dict[str, Tensor]] = {name: {} for name in names}
            for key in file.keys():  # noqa: SIM118  not a mapping
                name, _, tensor_name = key.partition("/")
                if name in groups:
                    groups[name][tensor_name] = file.get_tensor(key)
            return state, [groups[name] for name in names]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        raise damaged(out) from None


def damaged(out: Path) -> ModelError:
    """Return the error for a run that cannot be resumed."""
    return ModelError(f"The run saved in {out} is damaged or of another model; give another --out.")


def moments(optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizers' state tensors, keyed by 'INDEX.NAME' with the index of the parameter.

    A parameter has no state before its first gradient.
    """
    tensors = {}
    for index, parameter in enumerate(parameters):
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{index}.{key}"] = value
    return tensors


def restore_moments(
    optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Set the optimizers' state to tensors from `moments`.

    Tensors get the memory layout of their parameter, since results depend on it in the last bit. AdamW's step
    counter stays on the CPU.
    """
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            prefix = f"{index_of[id(parameter)]}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                optimizer.state[parameter] = {
                    key: torch.empty_like(parameter, requires_grad=False).copy_(value)
                    if value.shape == parameter.shape and key != "step"
                    else value
                    for key, value in state.items()
                }


def average_gradients(parameters: Sequence[nn.Parameter], world: int) -> None:
    """Replace gradients by their mean over all processes; a missing gradient counts as zero."""
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
    """Make one step with gradients clipped to a norm; skip it if a gradient is not finite.

    Args:
        rate: learning rate; parameter groups with an entry 'faster' multiply it by that.
        norm: largest norm of all gradients together.
    """
    total_norm = torch.nn.utils.clip_grad_norm_(parameters, norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("faster", 1.0)
        if torch.isfinite(total_norm):
            optimizer.step()


@torch.no_grad()
def follow(average: Mapping[str, Tensor], tensors: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Move a running average towards tensors, faster during the first steps; copy integers."""
    for key, value in tensors.items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - min(decay, (1 + step) / (10 + step)))
        else:
            average[key].copy_(value)


def rate_at(peak: float, done: float, step: int, warmup: int) -> float:
    """Return the learning rate of a step: linear warm-up times cosine decay.

    Args:
        peak: highest learning rate.
        done: fraction of the run that is done, from 0 to 1.
        step: updates so far.
        warmup: updates of the warm-up.
    """
    warm = min(1.0, (step + 1) / warmup)
    return peak * warm * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))
