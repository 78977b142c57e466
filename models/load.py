"""Loading a model by name, and choosing where it runs."""

from __future__ import annotations

import torch

from medsam_app.errors import ModelError, SettingsError
from medsam_app.models.checkpoints import load_strictly, read_checkpoint
from medsam_app.models.download import verified_path
from medsam_app.models.sam3d import Sam3D, build_sam3d_tiny
from medsam_app.models.table import DEFAULT_MODEL, model_entry

_BUILDERS = {"sam3d_tiny": build_sam3d_tiny}


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """Where to run, and a sentence that says so.

    Args:
        wanted: 'auto', or a device of torch: 'cpu', 'cuda', 'cuda:1', 'mps'.

    Raises:
        SettingsError: the device does not exist here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"Using the GPU {torch.cuda.get_device_name()}."
        threads = torch.get_num_threads()
        return torch.device("cpu"), f"Using the CPU with {threads} threads (no CUDA device found)."
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
    return device, f"Using {device}, as asked."


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device multiplies it faster than float32, else None."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    return None


def load_model(name: str = DEFAULT_MODEL, *, device: torch.device | str = "cpu") -> Sam3D:
    """A model ready to predict.

    Raises:
        ModelError: unknown name, or weights that are missing, damaged or of another architecture.
    """
    entry = model_entry(name)
    if name not in _BUILDERS:
        raise ModelError(f"'{name}' cannot be loaded yet; give one of {', '.join(_BUILDERS)}.")
    path = verified_path(entry)
    model = _BUILDERS[name]()
    load_strictly(model, read_checkpoint(path), what=name, source=path.name)
    return prepare(model, name=name, sha256=entry.checkpoint.sha256 or "", device=torch.device(device))


def prepare(model: Sam3D, *, name: str, sha256: str, device: torch.device) -> Sam3D:
    """Put a model in the state the predictor wants: evaluation, no gradients, fast layout and type."""
    model.model_id, model.weights_sha256 = name, sha256
    model.eval().requires_grad_(False).to(device)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    model.amp_dtype = fast_dtype(device)
    return model
