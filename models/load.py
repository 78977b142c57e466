"""Loading a model by name, and choosing where it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from medsam_app.errors import ModelError, SettingsError
from medsam_app.models.checkpoints import describe_architecture, load_strictly, read_checkpoint, read_raw
from medsam_app.models.download import sha256_of, verified_path
from medsam_app.models.published import published_state
from medsam_app.models.sam2d import SliceModel, build_slice_model
from medsam_app.models.sam3d import Sam3D, build_sam3d_tiny
from medsam_app.models.sam3d_published import PublishedSam3D, build_published
from medsam_app.models.sam3d_vit import VIT_SHAPES, build_sam3d_vit, load_vit_weights
from medsam_app.models.table import DEFAULT_MODEL, ModelEntry, model_entry

_VARIANTS = {"medsam_vit_b": "medsam", "sam_med2d_b": "sam_med2d"}
AnyModel = TypeVar("AnyModel", Sam3D, SliceModel)


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """Return the device to run on, and a sentence about the choice.

    Args:
        wanted: 'auto', or a device of torch: 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises:
        SettingsError: the device does not exist here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"Using the GPU {torch.cuda.get_device_name()}."
        threads = torch.get_num_threads()
        some = "1 thread" if threads == 1 else f"{threads} threads"
        return torch.device("cpu"), f"Using the CPU with {some} (no CUDA device found)."
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise SettingsError(f"There is no device '{wanted}'; give auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"Device '{wanted}' was asked for, but torch sees no CUDA device; give cpu or auto."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"Device '{wanted}' was asked for, but there are {torch.cuda.device_count()} CUDA devices."
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, ImportError):  # what a build of torch cannot do
            raise SettingsError(
                f"Device '{wanted}' was asked for, but this torch does not compute there; give auto or cpu."
            ) from None
    return device, f"Using {device}, as asked."


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device multiplies it faster than float32, else None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return None


def training_dtype(device: torch.device) -> torch.dtype | None:
    """Return `fast_dtype` on CUDA, and float32 on a CPU.

    Gradients through bfloat16 on a CPU are sometimes out of all bounds (torch 2.14.1 on a processor with
    AMX), and no two runs agree.
    """
    return fast_dtype(device) if device.type == "cuda" else None


def load_model(
    name: str = DEFAULT_MODEL, *, device: torch.device | str = "cpu", weights: Path | None = None
) -> Sam3D | SliceModel:
    """A model ready to predict.

    Args:
        name: of the table of models.
        device: where it will run.
        weights: a checkpoint of that model to use instead of the published one.

    Raises:
        ModelError: unknown name, or weights that are missing, damaged or of another architecture.
    """
    entry = model_entry(name)
    path = verified_path(entry) if weights is None else weights
    model = _BUILDERS[entry.family](entry, path)
    sha256 = (entry.checkpoint.sha256 if weights is None else None) or sha256_of(path)
    return prepare(model, name=name, sha256=sha256, device=torch.device(device))


def _embedded(entry: ModelEntry, path: Path) -> Sam3D:
    model = build_sam3d_tiny()
    load_strictly(model, read_checkpoint(path), what=entry.name, source=f"'{path.name}'")
    return model


def _vit(entry: ModelEntry, path: Path) -> Sam3D:
    model = build_sam3d_vit(VIT_SHAPES[entry.arch])
    load_vit_weights(model, read_checkpoint(path), what=entry.name, source=f"'{path.name}'")
    return model


def _published(entry: ModelEntry, path: Path) -> PublishedSam3D:
    held = read_raw(path)
    try:
        state = published_state(held)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(
            f"'{path.name}' is a checkpoint of {describe_architecture(read_checkpoint(path))}, but "
            f"{entry.name} needs the published 3DSAM-adapter (encoder_dict, decoder_dict and feature_dict); "
            "give that file."
        ) from None
    how = entry.normalisation
    window = None if how.clip is None else (*how.clip, how.mean[0], how.std[0])
    model = build_published(VIT_SHAPES[entry.arch], window=window)
    load_strictly(model, state, what=entry.name, source=f"'{path.name}'")
    return model


def _slices(entry: ModelEntry, path: Path) -> SliceModel:
    model = build_slice_model(_VARIANTS.get(entry.name, "sam"), entry.arch)
    state = {k: v for k, v in read_checkpoint(path).items() if k not in ("pixel_mean", "pixel_std")}
    load_strictly(model, state, what=entry.name, source=f"'{path.name}'")
    return model


_BUILDERS: dict[str, Callable[[ModelEntry, Path], Any]] = {
    "sam3d": _embedded,
    "sam3d_vit": _vit,
    "3dsam_adapter": _published,
    "slices": _slices,
}


def prepare(model: AnyModel, *, name: str, sha256: str, device: torch.device) -> AnyModel:
    """Put a model in the state the predictor wants: evaluation, no gradients, fast layout and type."""
    model.model_id, model.weights_sha256 = name, sha256
    model.eval().requires_grad_(False).to(device)
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            cast(Any, module).to(memory_format=torch.channels_last_3d)
    model.amp_dtype = fast_dtype(device)
    return model
