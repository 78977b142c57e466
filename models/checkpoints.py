"""Safe reading of checkpoint files, and strict loading of weights."""

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

#: Result of `describe_architecture` for weights that it does not recognise.
UNKNOWN_NETWORK = "an unknown network"
_VIT_NAMES = {(12, 768): "ViT-B", (24, 1024): "ViT-L", (32, 1280): "ViT-H"}
#: Side of a patch of SAM, and of the slices that the official checkpoints take, in pixels.
_PATCH, _SLICE = 16, 1024


class _DiscardedOptimiser:
    """Placeholder for an optimiser saved together with the weights; discards its state."""

    def __new__(cls, *_: Any) -> _DiscardedOptimiser:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _plain_dict(*_: Any) -> dict[Any, Any]:
    """Return a dict in place of a defaultdict, which torch cannot restore."""
    return {}


#: Types allowed in addition to tensors, since training scripts save them: NumPy scalars, whose construction
#: runs no foreign code, and optimisers, which are replaced by a placeholder.
_SAFE_TYPES: list[Any] = [
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
    (dict, "builtins.dict"),
    (_plain_dict, "collections.defaultdict"),
    *(
        (_DiscardedOptimiser, f"torch.optim.{name.lower()}.{name}")
        for name in ("Adam", "AdamW", "SGD", "RMSprop")
    ),
]

#: torch keeps its list of safe types per process, and leaving the context resets it: one reader at a time.
_LOAD_LOCK = Lock()


def read_raw(path: Path) -> Mapping[str, Any]:
    """Return the whole content of a checkpoint file; tensors are memory-mapped where possible.

    Args:
        path: file written by `torch.save` or safetensors, under any name.

    Raises:
        ModelError: The file does not exist, cannot be read, is damaged, or holds code.
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
    # A safetensors file begins with 8 bytes, the length of the JSON header that follows.
    content = _read_safetensors(path) if head[8:9] == b"{" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise ModelError(
            f"'{path.name}' holds one {type(content).__name__}, where weights by name are needed; save what "
            "network.state_dict() gives."
        )
    return content


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file by name; they may be nested under 'model' or 'state_dict'.

    Raises:
        ModelError: As for `read_raw`; also if there are no weights at the top level or under these keys.
    """
    content = read_raw(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    state = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not state:
        keys = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
        architecture = describe_architecture({"encoder_dict": content.get("encoder_dict")})
        hint = "" if architecture == UNKNOWN_NETWORK else f", as a checkpoint of {architecture} does"
        raise ModelError(
            f"'{path.name}' holds no weights by name, at its top or under 'model' or 'state_dict' (it holds: "
            f"{keys}{hint}); give a checkpoint of the network alone."
        )
    if all(key.startswith("module.") for key in state):  # prefix of torch's data parallel training
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], *, what: str, source: str = "The checkpoint"
) -> None:
    """Load weights into a network; all names and shapes must match.

    Values are converted to the types of the network, float32 for a new one.

    Args:
        module: the network; unchanged if the weights do not fit.
        state: weights by name.
        what: name of the network in error messages, such as 'sam_vit_b'.
        source: name of the file in error messages.

    Raises:
        ModelError: The weights do not fit, or are not finite.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing or unexpected or reshaped:
        architecture, expected_architecture = describe_architecture(state), describe_architecture(expected)
        if architecture != expected_architecture and UNKNOWN_NETWORK not in (
            architecture,
            expected_architecture,
        ):
            raise ModelError(
                f"{source} is a checkpoint of {architecture}, but {what} needs {expected_architecture}; "
                "give such a file, or "
                "choose the model that this one belongs to."
            )
        problems = []
        if missing:
            problems.append(f"{len(missing)} missing (first {missing[0]})")
        if unexpected:
            problems.append(f"{len(unexpected)} not known (first {unexpected[0]})")
        if reshaped:
            problems.append(
                f"{len(reshaped)} of another shape (first {_shape_mismatch(reshaped[0], state, expected)})"
            )
        raise ModelError(
            f"{source} does not fit {what} with its {len(expected)} weights: {', '.join(problems)}; give the "
            "whole checkpoint of that model."
        )
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise ModelError(
                f"{source} holds {key} sparse, quantised, complex or without values; save plain numbers."
            )
        # Check as float32: some float64 values overflow in it, and isfinite does not support 8-bit floats.
        if value.is_floating_point() and not torch.isfinite(value.float()).all():
            raise ModelError(f"{source} holds values that are not finite (first in {key}); get it again.")
    module.load_state_dict(state)


def describe_architecture(state: Mapping[str, Any]) -> str:
    """Return a description of the network that weights belong to, judged by their names and shapes.

    Args:
        state: weights by name, or the result of `read_raw`.

    Returns:
        A noun phrase for error messages, such as 'SAM ViT-B (12 blocks of width 768)'.
    """
    if isinstance(inner := state.get("encoder_dict"), Mapping):
        return f"3DSAM-adapter {_vit(inner, 'blocks.')}"
    if "decoder.walker_weight" in state and any(key.startswith("encoder.stem.") for key in state):
        return "sam3d_tiny"
    if "image_encoder.patch_embed.seq.0.c.weight" in state:
        return "LiteMedSAM"
    if any(key.startswith("image_encoder.trunk.") for key in state):
        return "SAM 2"
    if "vision_encoder.neck.conv1.weight" in state:
        return f"SAM {_vit(state, 'vision_encoder.layers.')} in the layout of the transformers package"
    for start in ("image_encoder.", ""):
        if f"{start}neck.0.weight" in state:
            return _describe_sam(state, start)
    return UNKNOWN_NETWORK


def _describe_sam(state: Mapping[str, Any], prefix: str) -> str:
    """Describe an image encoder with SAM's names, whose keys begin with `prefix`."""
    size = _vit(state, f"{prefix}blocks.")
    if f"{prefix}depth_embed" in state:
        return f"3DSAM-adapter {size}"
    if any(key.startswith(f"{prefix}blocks.0.Adapter.") for key in state):
        return f"SAM-Med2D {size}"
    position = state.get(
        f"{prefix}pos_embed"
    )  # (1, rows, columns, width); SAM-Med3D has an axis of slices, too
    if position is not None and position.ndim == 5:
        return "SAM-Med3D"
    pixels = position.shape[1] * _PATCH if position is not None and position.ndim == 4 else _SLICE
    return f"SAM {size}" + ("" if pixels == _SLICE else f" for slices of {pixels} pixels")


def _vit(state: Mapping[str, Any], prefix: str) -> str:
    """Describe name, depth and width of a transformer; the keys of its blocks begin with `prefix`."""
    pattern = re.compile(re.escape(prefix) + r"\d+\.attn\.qkv\.weight")
    weights = [value for key, value in state.items() if pattern.fullmatch(str(key))]
    widths = [value.shape[-1] for value in weights if isinstance(value, Tensor) and value.ndim]
    depth, width = len(widths), widths[0] if widths else 0
    return f"{_VIT_NAMES.get((depth, width), 'ViT')} ({depth} blocks of width {width})"


def _shape_mismatch(key: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    got, needed = (" x ".join(map(str, tensors[key].shape)) or "a number" for tensors in (state, expected))
    return f"{key}: {got} instead of {needed}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError):
        raise ModelError(_damaged_message(path)) from None


def _read_torch(path: Path) -> Any:
    try:
        with _LOAD_LOCK, torch.serialization.safe_globals(_SAFE_TYPES):
            # Only zip files can be memory-mapped, not the older format of torch.save.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise ModelError(_damaged_message(path)) from None
        raise ModelError(
            f"'{path.name}' holds Python objects beside its weights ({code[1]}) and was not opened, since "
            "that could run anything; save them alone: torch.save(network.state_dict(), 'weights.pth')."
        ) from None
    except MemoryError:
        raise ModelError(f"There is not enough memory to read '{path.name}'; close other programs.") from None
    except Exception:  # damaged files raise errors of any type, depending on where the damage is
        raise ModelError(_damaged_message(path)) from None


def _damaged_message(path: Path) -> str:
    return (
        f"'{path.name}' is cut short, damaged, or no file of PyTorch weights (.pth, .pt) or safetensors; "
        "copy or download it again."
    )
