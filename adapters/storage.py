"""Adapter files, written with verification, and hashes of tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medsam_app.adapters.header import AdapterHeader, BaseEntry, read_header
from medsam_app.atomic import replace_file
from medsam_app.errors import AdapterError, SaveError

SUFFIX = ".safetensors"


def tensors_sha256(tensors: Mapping[str, Tensor], *, prefix: str = "") -> str:
    """Return a hash of the names, types, shapes and bytes of tensors, in the order of their names.

    Args:
        tensors: tensors by name.
        prefix: text that is hashed before the tensors.
    """
    digest = hashlib.sha256(prefix.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adapter_sha256(kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of an adapter's kind, settings and tensors, which identifies it."""
    return tensors_sha256(tensors, prefix=json.dumps([kind, settings], sort_keys=True))


def identity_of(model: nn.Module) -> BaseEntry:
    """Return the name and hash that a model carries, or else its class name and a hash of its tensors."""
    name = getattr(model, "model_id", "") or type(model).__name__
    return BaseEntry(
        id=name, sha256=getattr(model, "weights_sha256", "") or tensors_sha256(model.state_dict())
    )


def write(path: str | Path, tensors: Mapping[str, Tensor], header: AdapterHeader) -> Path:
    """Write an adapter file under a temporary name, verify it by reading it back, and rename it.

    Raises:
        AdapterError: A tensor holds values that are not finite.
        SaveError: The name does not end in .safetensors, or the file could not be written or did not read
            back as written. An earlier file at `path` is then unchanged.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise SaveError(f"An adapter cannot be saved as '{path.name}'; let its name end in {SUFFIX}.")
    if path.is_dir():
        raise SaveError(f"'{path.name}' is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise SaveError(f"The folder '{path.parent}' does not exist; make it first or save elsewhere.")
    _check_finite(path, tensors)
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replace_file(path) as draft:
            save_file(cpu_tensors, draft, metadata=header.to_strings())
            _verify(path, draft, cpu_tensors, header)
    except OSError as error:
        raise _not_written(path, error.strerror) from error
    except SafetensorError as error:
        raise _not_written(path, str(error)) from error
    return path


def _verify(path: Path, draft: Path, expected: Mapping[str, Tensor], header: AdapterHeader) -> None:
    stored = load_file(draft)
    equal = stored.keys() == expected.keys() and all(
        _tensors_equal(stored[name], expected[name]) for name in expected
    )
    if not equal or read_header(draft) != header:
        raise SaveError(f"'{path.name}' did not read back as written; nothing was saved. Look at the disk.")


def _tensors_equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _not_written(path: Path, reason: str | None) -> SaveError:
    return SaveError(
        f"'{path.name}' could not be written to '{path.parent}' ({reason or 'unknown reason'}); free some "
        "space, change the permissions or save elsewhere."
    )


def read_tensors(
    path: str | Path, header: AdapterHeader, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Read the tensors of an adapter file, which must have the names, shapes and types of `expected`.

    Raises:
        AdapterError: The file is damaged, its tensors are not the expected ones, or values are not finite.
    """
    path = Path(path).expanduser()
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError):
        raise AdapterError(f"'{path.name}' is cut short or damaged; copy it again.") from None
    for names, verb in (
        (expected.keys() - tensors.keys(), "lacks"),
        (tensors.keys() - expected.keys(), "holds also"),
    ):
        if names:
            raise _mismatch(path, f"it {verb} {len(names)} of them, first '{min(names)}'")
    for name, tensor in tensors.items():
        got, needed = (f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in (tensor, expected[name]))
        if got != needed:
            raise _mismatch(path, f"'{name}' is {got} instead of {needed}")
    sha256 = adapter_sha256(header.kind, header.settings, tensors)
    if sha256 != header.sha256:
        raise AdapterError(
            f"'{path.name}' is damaged: its tensors and settings have sha256 {sha256[:12]}… instead of "
            f"{header.sha256[:12]}…; copy it again."
        )
    _check_finite(path, tensors)
    return tensors


def _mismatch(path: Path, difference: str) -> AdapterError:
    return AdapterError(
        f"'{path.name}' does not hold the tensors that its header promises: {difference}; take the file as "
        "it was saved."
    )


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(
                f"The adapter of '{path.name}' has values that are not finite, in '{name}'; train it again "
                "with a lower learning rate."
            )
