"""Reading files of weights without running anything in them, and fitting them to a network."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medsam_app.errors import ModelError

#: What `describe_architecture` says of anything else.
UNKNOWN = "an unknown network"
_VIT_NAMES = {(12, 768): "ViT-B", (24, 1024): "ViT-L", (32, 1280): "ViT-H"}
#: Side in pixels of a patch of SAM, and of the slices that the official checkpoints take.
_PATCH, _SLICE = 16, 1024


class _PassedOver:
    """Stands in for an optimiser that was saved next to the weights; takes its state and keeps none."""

    def __new__(cls, *_: Any) -> _PassedOver:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Stands in for a defaultdict, which torch would not fill."""
    return {}


#: Types allowed next to tensors, since training scripts save them there: numbers of numpy, whose making runs
#: nothing, and optimisers, which are not made at all.
_HARMLESS: list[Any] = [
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
    (dict, "builtins.dict"),
    (_plain_dict, "collections.defaultdict"),
    *((_PassedOver, f"torch.optim.{name.lower()}.{name}") for name in ("Adam", "AdamW", "SGD", "RMSprop")),
]

#: What torch is told to accept holds for the whole process, and is withdrawn at the end of a reading.
_READING = Lock()


def read_raw(path: Path) -> Mapping[str, Any]:
    """Everything a file of weights holds, as it was saved; tensors stay on the disk until they are used.

    Args:
        path: what `torch.save` or safetensors wrote, under any name.

    Raises:
        ModelError: it cannot be read, is damaged, no such file, or holds code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(f"The weights {path} cannot be read ({error.strerror}); check the path.") from None
    if not head:
        raise ModelError(f"'{path.name}' is empty (0 bytes); copy or download it again.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ModelError(
            f"'{path.name}' is a web page and no checkpoint; open its address in a browser, and save the "
            "file that the page offers."
        )
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"'{path.name}' is a pointer of Git LFS and no checkpoint; run 'git lfs pull' first."
        )
    # Safetensors begin with the length of a JSON header, in 8 bytes.
    found = _read_safetensors(path) if head[8:9] == b"{" else _read_torch(path)
    if not isinstance(found, Mapping):
        raise ModelError(
            f"'{path.name}' holds one {type(found).__name__}, where weights by name are needed; save what "
            "network.state_dict() gives."
        )
    return found


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a file by name, also where they were saved under 'model' or 'state_dict'.

    Raises:
        ModelError: as for `read_raw`, or no weights in any of these places.
    """
    found = read_raw(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    state = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        held = ", ".join(str(key) for key in list(found)[:5]) or "nothing"
        known = describe_architecture({"encoder_dict": found.get("encoder_dict")})
        apart = "" if known == UNKNOWN else f", as a checkpoint of {known} does"
        raise ModelError(
            f"'{path.name}' holds no weights by name, at its top or under 'model' or 'state_dict' (it holds: "
            f"{held}{apart}); give a checkpoint of the network alone."
        )
    if all(key.startswith("module.") for key in state):  # of torch's data parallel training
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, what: str, source: str = "The checkpoint"
) -> None:
    """Fill a network with weights that must fit it name by name and shape by shape.

    Values are converted to the types of the network, which are float32 when it is fresh.

    Args:
        module: the network; unchanged if the weights do not fit.
        state: weights by name.
        what: the network in the user's words, such as 'sam_vit_b'.
        source: the file in the user's words.

    Raises:
        ModelError: they do not fit, or are not finite.
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    reshaped = [key for key in wanted if key in state and wanted[key].shape != state[key].shape]
    if missing or unexpected or reshaped:
        found, needed = describe_architecture(state), describe_architecture(wanted)
        if found != needed and UNKNOWN not in (found, needed):
            raise ModelError(
                f"{source} is a checkpoint of {found}, but {what} needs {needed}; give such a file, or "
                "choose the model that this one belongs to."
            )
        faults = []
        if missing:
            faults.append(f"{len(missing)} missing (first {missing[0]})")
        if unexpected:
            faults.append(f"{len(unexpected)} not known (first {unexpected[0]})")
        if reshaped:
            faults.append(f"{len(reshaped)} of another shape (first {_reshaped(reshaped[0], state, wanted)})")
        raise ModelError(
            f"{source} does not fit {what} with its {len(wanted)} weights: {', '.join(faults)}; give the "
            "whole checkpoint of that model."
        )
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise ModelError(
                f"{source} holds {key} sparse, quantised, complex or without values; save plain numbers."
            )
        # As float32, which not every number of 64 bits is finite in, and those of 8 bits can be asked in.
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise ModelError(f"{source} holds values that are not finite (first in {key}); get it again.")
    module.load_state_dict(state)


def describe_architecture(state: Mapping[str, Any]) -> str:
    """Which network weights belong to, judged by their names and shapes, as the end of a sentence.

    Args:
        state: weights by name, or what `read_raw` gives.
    """
    if isinstance(inner := state.get("encoder_dict"), Mapping):
        return f"3DSAM-adapter {_vit(inner, 'blocks.')}"
    if "decoder.walker_weight" in state and any(key.startswith("encoder.stem.") for key in state):
        return "sam3d_tiny"
    if any(key.startswith("image_encoder.trunk.") for key in state):
        return "SAM 2"
    if "vision_encoder.neck.conv1.weight" in state:
        return f"SAM {_vit(state, 'vision_encoder.layers.')} in the layout of the transformers package"
    for start in ("image_encoder.", ""):
        if f"{start}neck.0.weight" in state:
            return _describe_sam(state, start)
    return UNKNOWN


def _describe_sam(state: Mapping[str, Any], start: str) -> str:
    """The image encoder of SAM, or of what keeps its names, whose keys begin with `start`."""
    vit = _vit(state, f"{start}blocks.")
    if f"{start}depth_embed" in state:
        return f"3DSAM-adapter {vit}"
    if any(key.startswith(f"{start}blocks.0.Adapter.") for key in state):
        return f"SAM-Med2D {vit}"
    position = state.get(f"{start}pos_embed")  # (1, rows, columns, width); of SAM-Med3D also slices
    if position is not None and position.ndim == 5:
        return "SAM-Med3D"
    pixels = position.shape[1] * _PATCH if position is not None and position.ndim == 4 else _SLICE
    return f"SAM {vit}" + ("" if pixels == _SLICE else f" for slices of {pixels} pixels")


def _vit(state: Mapping[str, Any], blocks: str) -> str:
    """Name, depth and width of a transformer whose blocks' keys begin with `blocks`."""
    pattern = re.compile(re.escape(blocks) + r"\d+\.attn\.qkv\.weight")
    found = [value for key, value in state.items() if pattern.fullmatch(str(key))]
    widths = [value.shape[-1] for value in found if isinstance(value, Tensor) and value.ndim]
    depth, width = len(widths), widths[0] if widths else 0
    return f"{_VIT_NAMES.get((depth, width), 'ViT')} ({depth} blocks of width {width})"


def _reshaped(key: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    got, needed = (" x ".join(map(str, tensors[key].shape)) or "a number" for tensors in (state, wanted))
    return f"{key}: {got} instead of {needed}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise ModelError(_damaged(path)) from None


def _read_torch(path: Path) -> Any:
    try:
        with _READING, torch.serialization.safe_globals(_HARMLESS):
            # The older format of torch.save, which is no zip file, cannot stay on the disk.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise ModelError(_damaged(path)) from None
        raise ModelError(
            f"'{path.name}' holds Python objects beside its weights ({code[1]}) and was not opened, since "
            "that could run anything; save them alone: torch.save(network.state_dict(), 'weights.pth')."
        ) from None
    except MemoryError:
        raise ModelError(f"There is not enough memory to read '{path.name}'; close other programs.") from None
    except Exception:  # a damaged file ends in errors of any kind, depending on where it is damaged
        raise ModelError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    return (
        f"'{path.name}' is cut short, damaged, or no file of PyTorch weights (.pth, .pt) or safetensors; "
        "copy or download it again."
    )
