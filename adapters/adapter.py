"""Adapter: a small set of tensors for a frozen backbone, switched on and off, merged, saved, loaded.

    adapter = Adapter.create("lora", model, rank=4, also=["decoder.norm"])
    adapter.enable()
    optimizer = torch.optim.AdamW(adapter.parameters())
    ...
    adapter.save("liver.safetensors", {"labels": {1: "liver"}, "licence": "CC-BY-4.0"})

The backbone's own tensors and their names stay as they are throughout, unless an adapter is merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from medsam_app.adapters import storage
from medsam_app.adapters.attachment_points import Sites, find_sites
from medsam_app.adapters.bottlenecks import BottleneckPart, SpatialPart
from medsam_app.adapters.component import Part
from medsam_app.adapters.copies import OwnCopies
from medsam_app.adapters.header import AdapterCard, AdapterHeader, check_card, read_header
from medsam_app.adapters.learned_prompts import LearnedPrompts
from medsam_app.adapters.lora import LoraPart
from medsam_app.adapters.ssf import SsfPart
from medsam_app.adapters.table import ADAPTER_KINDS, check_settings
from medsam_app.errors import AdapterError

PARTS: dict[str, Callable[[Sites, Any], Part]] = {
    "spatial": SpatialPart,
    "bottleneck": BottleneckPart,
    "lora": LoraPart,
    "ssf": SsfPart,
}
_changes = itertools.count(1)


class Adapter(nn.Module):
    """Create with `create` or `load`; `parameters()` and `state_dict()` are the adapter's own.

    Of several adapters of a model one can be on at a time (see `AdapterSet`). While one is on,
    `model.adapter_sha256` is its hash, which is part of the key of cached embeddings; while its tensors are
    being trained it is a name that changes with every step. Switching a model that is just computing in
    another thread is for the caller to prevent.

    Attributes:
        kind: a name of `ADAPTER_KINDS`.
        name: of its file, without the ending; its kind while it has none.
        base: name and hash of the model that it belongs to.
        card: what was given when it was saved, or an empty one.
    """

    def __init__(
        self,
        kind: str,
        model: nn.Module,
        *,
        settings: Mapping[str, Any],
        also: Sequence[str],
        labels: Sequence[int],
    ) -> None:
        super().__init__()
        checked = check_settings(kind, settings)
        with _switched_off(model):
            sites = find_sites(model)
            self.part = PARTS[kind](sites, checked)
            self.also = OwnCopies(model, also)
            self.prompts = LearnedPrompts(model, labels)
            self.base = storage.identity_of(model)
            model.requires_grad_(False)
        self.kind = self.name = kind
        self.settings: dict[str, Any] = checked.model_dump(mode="json")
        self.card = AdapterCard()
        # In a dictionary, so that the model does not become a submodule.
        self._at: dict[str, Any] = {"model": model, "sites": sites}
        self._handles: list[RemovableHandle] = []
        self._kept: list[tuple[nn.Parameter, Tensor]] = []
        self.to(sites.device)

    @classmethod
    def create(
        cls,
        kind: str,
        model: nn.Module,
        *,
        also: Sequence[str] = (),
        labels: Sequence[int] = (),
        **settings: Any,
    ) -> Adapter:
        """Create an adapter, switched off and without effect until it is trained; freeze the model.

        Args:
            kind: a name of `ADAPTER_KINDS`.
            model: any with transformer blocks that `find_sites` knows, on the device where it will run.
            also: names of the model's parameters, or of modules with parameters, of which the adapter holds
                copies of its own and trains them too.
            labels: values of the labels that are to be found without a click, by learned prompts.
            settings: of that kind, see `medsam_app.adapters.table`.

        Raises:
            AdapterError: an unknown kind, setting or parameter, or a model that it cannot be added to.
        """
        return cls(kind, model, settings=settings, also=also, labels=labels)

    @property
    def enabled(self) -> bool:
        """Whether the model computes with this adapter, by hooks or merged."""
        return bool(self._handles)

    @property
    def merged(self) -> bool:
        """Whether the model's own weights hold this adapter now."""
        return bool(self._kept)

    @property
    def sha256(self) -> str:
        """Hash of the tensors, the kind and the settings."""
        return storage.adapter_sha256(self.kind, self.settings, self.state_dict())

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load as every module does; if the adapter is on, the model gets its new hash.

        Raises:
            AdapterError: it is merged.
        """
        if self.merged:
            raise AdapterError("The adapter is merged into the model; unmerge it before it is filled anew.")
        found = super().load_state_dict(*args, **kwargs)
        if self.enabled:
            self._publish(self.sha256)
        return found

    def belongs_to(self, model: nn.Module) -> bool:
        """Return whether it was added to this very model."""
        return self._at.get("model") is model

    def enable(self) -> None:
        """Switch the adapter on; no effect if it is on already.

        Raises:
            AdapterError: another adapter of the model is on, or this one was removed.
        """
        if self.enabled:
            return
        model = self._model()
        other = adapter_in_use(model)
        if other is not None:
            raise AdapterError(
                f"Another adapter (of kind '{other.kind}') is switched on; disable it first, or keep both on "
                "an AdapterSet and choose one by its name."
            )
        sites: Sites = self._at["sites"]
        self.to(sites.device)
        self._handles = [
            *self.also.install(),
            *self.part.install(),
            sites.blocks[0].block.register_forward_pre_hook(self._mark_training),
        ]
        model.__dict__["_adapter_in_use"] = self
        self._publish(self.sha256)

    def disable(self) -> None:
        """Switch the adapter off; the model computes as before, bit for bit."""
        if not self.enabled:
            return
        self._restore()
        self._uninstall()
        del self._model().__dict__["_adapter_in_use"]
        self._publish("")

    def remove(self) -> None:
        """Switch off for good; the tensors can still be saved."""
        self.disable()
        self._at = {}

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the adapter into the model's own weights, of which copies are kept.

        The model is then as fast as without it, and its state_dict is that of the adapted model.

        Raises:
            AdapterError: a kind that cannot be merged, it is merged already, or another adapter is on.
        """
        if not ADAPTER_KINDS[self.kind].mergeable:
            raise AdapterError(
                f"A '{self.kind}' adapter cannot be merged: what it computes does not fit into the model's "
                "weights; keep it enabled instead."
            )
        if self.merged:
            raise AdapterError("The adapter is merged already; unmerge it before merging it again.")
        self.enable()
        # Worked out while the copies are in place: an adapted layer may be one of them.
        folded = [*self.also.merged(), *self.part.merged()]
        self._uninstall()
        for module, name, value in folded:
            parameter = module.get_parameter(name)
            self._kept.append((parameter, parameter.detach().clone()))
            parameter.copy_(value)
        self._handles = [self._model().register_load_state_dict_pre_hook(_refuse_weights)]

    def unmerge(self) -> None:
        """Put the model's own weights back, bit for bit; the adapter stays on.

        Raises:
            AdapterError: it is not merged.
        """
        if not self.merged:
            raise AdapterError("The adapter is not merged; there is nothing to undo.")
        self.disable()
        self.enable()

    def save(self, path: str | Path, card: AdapterCard | Mapping[str, Any] | None = None) -> Path:
        """Write the adapter as a safetensors file that says what it is and which model it belongs to.

        Args:
            path: ends in .safetensors.
            card: an `AdapterCard`, or its fields; by default the one it was loaded with.

        Raises:
            AdapterError: wrong fields, or tensors that are not finite.
            SaveError: the file could not be written or did not read back as written.
        """
        if card is not None:
            self.card = card if isinstance(card, AdapterCard) else check_card(card)
        sha256 = self.sha256
        header = AdapterHeader(
            kind=self.kind,
            settings=self.settings,
            also=self.also.names,
            prompts=self.prompts.labels,
            base=self.base,
            sha256=sha256,
            **dict(self.card),
        )
        written = storage.write(path, self.state_dict(), header)
        self.name = written.stem
        if self.enabled:
            self._publish(sha256)
        return written

    @classmethod
    def load(cls, path: str | Path, model: nn.Module, *, trainable: bool = False) -> Adapter:
        """An adapter from its file, switched off. Freezes the model.

        Args:
            path: what `save` wrote.
            model: the one that it was trained on.
            trainable: whether it is to be trained further.

        Raises:
            AdapterError: a file that is damaged, of another version or no adapter, or another model.
        """
        header = read_header(path)
        name = Path(path).name
        with _switched_off(model):
            base = storage.identity_of(model)
        # The name too: several models are made from one checkpoint.
        if base != header.base:
            raise AdapterError(
                f"'{name}' was made for the model '{header.base.id}' with sha256 {header.base.sha256}, but "
                f"this is '{base.id}' with sha256 {base.sha256}; load that model, or train an adapter on "
                "this one."
            )
        adapter = cls(header.kind, model, settings=header.settings, also=header.also, labels=header.prompts)
        adapter.load_state_dict(storage.read_tensors(path, header, adapter.state_dict()))
        adapter.card, adapter.name = header.card, Path(path).stem
        return adapter.requires_grad_(trainable).train(trainable)

    def _model(self) -> nn.Module:
        if not self._at:
            raise AdapterError("The adapter was removed from its model; load it again to use it.")
        return self._at["model"]

    def _publish(self, sha256: str) -> None:
        model: Any = self._model()
        model.adapter_id, model.adapter_sha256 = (self.name if sha256 else ""), sha256
        if hasattr(model, "clip"):  # a Sam3D
            model.clip = self.card.clip if sha256 else None

    def _mark_training(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pass with gradients: the next step changes the tensors, so no hash holds any more."""
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            self._publish(f"training-{next(_changes)}")

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.also.uninstall()

    @torch.no_grad()
    def _restore(self) -> None:
        # Backwards: a parameter may have been written twice, as a copy and as a site of the part.
        for parameter, value in reversed(self._kept):
            parameter.copy_(value)
        self._kept = []


def adapter_in_use(model: nn.Module) -> Adapter | None:
    """The adapter of a model that is on, or None."""
    return model.__dict__.get("_adapter_in_use")


def learned_prompt(model: nn.Module, label: int) -> Tensor:
    """(1, T, C) tokens of a label that the adapter in use has learned.

    Raises:
        AdapterError: no adapter is on, or it has not learned that label.
    """
    adapter = adapter_in_use(model)
    if adapter is None:
        raise AdapterError(
            f"Label {label} was asked for, but no adapter is switched on, and the model alone knows "
            "no labels; give an adapter that was taught them."
        )
    return adapter.prompts.of(label)


@contextmanager
def _switched_off(model: nn.Module) -> Iterator[None]:
    """The model without the adapter that is on."""
    other = adapter_in_use(model)
    if other is None:
        yield
        return
    if other.merged:
        raise AdapterError("An adapter is merged into the model; unmerge or disable it first.")
    other.disable()
    try:
        yield
    finally:
        other.enable()


def _refuse_weights(*args: Any) -> NoReturn:
    raise AdapterError("An adapter is merged into the model; unmerge it before weights are loaded.")
