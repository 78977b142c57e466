"""Loading of models by name, and choice of device and dtype."""

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
from medsam_app.models.sam3d import Sam3D, build_sam3d_tiny
from medsam_app.models.sam3d_published import PublishedSam3D, build_published
from medsam_app.models.sam3d_vit import VIT_SHAPES, build_sam3d_vit, load_vit_weights
from medsam_app.models.slices.lite_medsam import LiteMedSam, build_lite_medsam
from medsam_app.models.slices.sam2d import SliceModel, build_slice_model
from medsam_app.models.table import DEFAULT_MODEL, ModelEntry, model_entry

_VARIANTS = {"medsam_vit_b": "medsam", "sam_med2d_b": "sam_med2d"}
AnyModel = TypeVar("AnyModel", Sam3D, SliceModel)


def choose_device(requested: str = "auto") -> tuple[torch.device, str]:
    """Return the device to run on, and a sentence about the choice.

    Args:
        requested: 'auto', or a device of torch: 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises:
        SettingsError: The device is not available.
    """
    if requested == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"Using the GPU {torch.cuda.get_device_name()}."
        threads = torch.get_num_threads()
        count = "1 thread" if threads == 1 else f"{threads} threads"
        return torch.device("cpu"), f"Using the CPU with {count} (no CUDA device found)."
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise SettingsError(f"There is no device '{requested}'; give auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"Device '{requested}' was asked for, but torch sees no CUDA device; give cpu or auto."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"Device '{requested}' was asked for, but there are {torch.cuda.device_count()} CUDA devices."
        )
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).item()
        except (
            RuntimeError,
            AssertionError,
            ImportError,
        ):  # raised if this build of torch does not support the device
            raise SettingsError(
                f"Device '{requested}' was asked for, but this torch does not compute there; "
                "give auto or cpu."
            ) from None
    return device, f"Using {device}, as asked."


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 if the device multiplies it faster than float32, else None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return None


def training_dtype(device: torch.device) -> torch.dtype | None:
    """Return `fast_dtype` on CUDA, and None (float32) on a CPU.

    On a CPU, gradients through bfloat16 sometimes explode (torch 2.14.1 on a processor with AMX), and no two
    runs give the same numbers.
    """
    return fast_dtype(device) if device.type == "cuda" else None


def load_model(
    name: str = DEFAULT_MODEL, *, device: torch.device | str = "cpu", weights: Path | None = None
) -> Sam3D | SliceModel:
    """Load a model, ready for prediction.

    Args:
        name: name in the table of models.
        device: device to run on.
        weights: checkpoint of that model to use instead of the published one.

    Raises:
        ModelError: The name is unknown, or weights are missing, damaged or of another architecture.
    """
    entry = model_entry(name)
    path = verified_path(entry) if weights is None else weights
    model = _LOADERS[entry.family](entry, path)
    sha256 = (entry.checkpoint.sha256 if weights is None else None) or sha256_of(path)
    model = prepare(model, name=name, sha256=sha256, device=torch.device(device))
    if entry.box_model is not None:
        model.attach_box_model(load_model(entry.box_model, device=device))
    return model


def _load_tiny(entry: ModelEntry, path: Path) -> Sam3D:
    model = build_sam3d_tiny()
    load_strictly(model, read_checkpoint(path), what=entry.name, source=f"'{path.name}'")
    return model


def _load_vit(entry: ModelEntry, path: Path) -> Sam3D:
    model = build_sam3d_vit(VIT_SHAPES[entry.arch])
    load_vit_weights(model, read_checkpoint(path), what=entry.name, source=f"'{path.name}'")
    return model


def _load_published(entry: ModelEntry, path: Path) -> PublishedSam3D:
    content = read_raw(path)
    try:
        state = published_state(content)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(
            f"'{path.name}' is a checkpoint of {describe_architecture(read_checkpoint(path))}, but "
            f"{entry.name} needs the published 3DSAM-adapter (encoder_dict, decoder_dict and feature_dict); "
            "give that file."
        ) from None
    normalisation = entry.normalisation
    window = (
        None
        if normalisation.clip is None
        else (*normalisation.clip, normalisation.mean[0], normalisation.std[0])
    )
    model = build_published(VIT_SHAPES[entry.arch], window=window)
    load_strictly(model, state, what=entry.name, source=f"'{path.name}'")
    return model


def _load_slices(entry: ModelEntry, path: Path) -> SliceModel:
    model = build_slice_model(_VARIANTS.get(entry.name, "sam"), entry.arch)
    state = {k: v for k, v in read_checkpoint(path).items() if k not in ("pixel_mean", "pixel_std")}
    load_strictly(model, state, what=entry.name, source=f"'{path.name}'")
    return model


def _load_lite_medsam(entry: ModelEntry, path: Path) -> LiteMedSam:
    model = build_lite_medsam() if entry.side is None else build_lite_medsam(entry.side)
    load_strictly(model, read_checkpoint(path), what=entry.name, source=f"'{path.name}'")
    return model


_LOADERS: dict[str, Callable[[ModelEntry, Path], Any]] = {
    "sam3d": _load_tiny,
    "sam3d_vit": _load_vit,
    "3dsam_adapter": _load_published,
    "slices": _load_slices,
    "lite_medsam": _load_lite_medsam,
}


def prepare(model: AnyModel, *, name: str, sha256: str, device: torch.device) -> AnyModel:
    """Set a model's identity and prepare it for prediction: eval mode, no gradients, fast layout, dtype."""
    model.model_id, model.weights_sha256 = name, sha256
    model.eval().requires_grad_(False).to(device)
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            cast(Any, module).to(memory_format=torch.channels_last_3d)
    model.amp_dtype = fast_dtype(device)
    if isinstance(model, LiteMedSam):
        model.speed_up()
    return model
