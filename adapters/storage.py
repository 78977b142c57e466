"""Adapters' files: tensors and header in one safetensors file, written with proof; hashes of tensors."""

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


def tensors_sha256(tensors: Mapping[str, Tensor], *, beside: str = "") -> str:
    """Hash of names, types, shapes and bytes of tensors, in the order of their names.

    Args:
        beside: text that belongs to the identity, too.
    """
    digest = hashlib.sha256(beside.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adapter_sha256(kind: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hash that identifies an adapter: of its kind, settings and tensors."""
    return tensors_sha256(tensors, beside=json.dumps([kind, settings], sort_keys=True))


def identity_of(model: nn.Module) -> BaseEntry:
    """Name and hash of a model: those it carries, else its class and a hash of its tensors."""
    name = getattr(model, "model_id", "") or type(model).__name__
    return BaseEntry(
        id=name, sha256=getattr(model, "weights_sha256", "") or tensors_sha256(model.state_dict())
    )


def write(path: str | Path, tensors: Mapping[str, Tensor], header: AdapterHeader) -> Path:
    """Write an adapter's file under a temporary name, read it back, compare, and give it its name.

    Raises:
        AdapterError: a tensor holds values that are not finite.
        SaveError: the name does not end in .safetensors, or the file could not be written or did not read
            back as written. What was at `path` before is then still there.
    """
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise SaveError(f"An adapter cannot be saved as '{path.name}'; let its name end in {SUFFIX}.")
    if path.is_dir():
        raise SaveError(f"'{path.name}' is a folder; give the name of a file in it.")
    if not path.parent.is_dir():
        raise SaveError(f"The folder '{path.parent}' does not exist; make it first or save elsewhere.")
    _check_finite(path, tensors)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with replace_file(path) as draft:
            save_file(held, draft, metadata=header.to_strings())
            _prove(path, draft, held, header)
    except OSError as error:
        raise _not_written(path, error.strerror) from error
    except SafetensorError as error:
        raise _not_written(path, str(error)) from error
    return path


def _prove(path: Path, draft: Path, held: Mapping[str, Tensor], header: AdapterHeader) -> None:
    found = load_file(draft)
    same = found.keys() == held.keys() and all(_same(found[name], held[name]) for name in held)
    if not same or read_header(draft) != header:
        raise SaveError(f"'{path.name}' did not read back as written; nothing was saved. Look at the disk.")


def _same(found: Tensor, held: Tensor) -> bool:
    return found.dtype == held.dtype and torch.equal(found, held)


def _not_written(path: Path, reason: str | None) -> SaveError:
    return SaveError(
        f"'{path.name}' could not be written to '{path.parent}' ({reason or 'unknown reason'}); free some "
        "space, change the permissions or save elsewhere."
    )


def read_tensors(path: str | Path, header: AdapterHeader, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter's file, which must have the names, shapes and types of `wanted`.

    Raises:
        AdapterError: the file is damaged, its tensors are others, or not all values are finite.
    """
    path = Path(path).expanduser()
    try:
        found = load_file(path)
    except (SafetensorError, OSError):
        raise AdapterError(f"'{path.name}' is cut short or damaged; copy it again.") from None
    for names, what in (
        (wanted.keys() - found.keys(), "lacks"),
        (found.keys() - wanted.keys(), "holds also"),
    ):
        if names:
            raise _not_as_promised(path, f"it {what} {len(names)} of them, first '{min(names)}'")
    for name, tensor in found.items():
        got, asked = (f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in (tensor, wanted[name]))
        if got != asked:
            raise _not_as_promised(path, f"'{name}' is {got} instead of {asked}")
    sha256 = adapter_sha256(header.kind, header.settings, found)
    if sha256 != header.sha256:
        raise AdapterError(
            f"'{path.name}' is damaged: its tensors and settings have sha256 {sha256[:12]}… instead of "
            f"{header.sha256[:12]}…; copy it again."
        )
    _check_finite(path, found)
    return found


def _not_as_promised(path: Path, difference: str) -> AdapterError:
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
