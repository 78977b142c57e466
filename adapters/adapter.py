"""The `Adapter`: a small set of trained tensors for a frozen backbone.

An adapter can be switched on and off, merged into the backbone, saved and loaded:

    adapter = Adapter.create("lora", model, rank=4, also=["decoder.norm"])
    adapter.enable()
    optimizer = torch.optim.AdamW(adapter.parameters())
    ...
    adapter.save("liver.safetensors", {"labels": {1: "liver"}, "licence": "CC-BY-4.0"})

The backbone's own tensors and their names never change, except while an adapter is merged.
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
from medsam_app.adapters.attachment_points import AttachmentPoints, find_attachment_points
from medsam_app.adapters.bottlenecks import BottleneckComponent, SpatialComponent
from medsam_app.adapters.component import Component
from medsam_app.adapters.copies import ParameterCopies
from medsam_app.adapters.header import AdapterCard, AdapterHeader, check_card, read_header
from medsam_app.adapters.learned_prompts import LearnedPrompts
from medsam_app.adapters.lora import LoraComponent
from medsam_app.adapters.ssf import SsfComponent
from medsam_app.adapters.table import ADAPTER_KINDS, check_settings
from medsam_app.errors import AdapterError

#: Component classes by kind of adapter.
COMPONENTS: dict[str, Callable[[AttachmentPoints, Any], Component]] = {
    "spatial": SpatialComponent,
    "bottleneck": BottleneckComponent,
    "lora": LoraComponent,
    "ssf": SsfComponent,
}
#: Numbers of training steps, for names of tensors that change.
_step_numbers = itertools.count(1)


class Adapter(nn.Module):
    """Small set of trained tensors for one frozen model, built by `create` or `load`.

    `parameters()` and `state_dict()` hold the adapter's tensors only. At most one adapter of a model is on
    at a time (see `AdapterSet`). While it is on, `model.adapter_sha256` is its hash, which is part of the key
    of cached embeddings. During training it is a name that changes with every step. The caller must not
    switch adapters while the model computes in another thread.

    Attributes:
        kind: kind of adapter, a key of `ADAPTER_KINDS`.
        name: name of its file without the ending; the kind if it has no file yet.
        base: name and hash of the model that it belongs to.
        card: information given when it was saved; empty by default.
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
            points = find_attachment_points(model)
            self.part = COMPONENTS[kind](points, checked)
            self.also = ParameterCopies(model, also)
            self.prompts = LearnedPrompts(model, labels)
            self.base = storage.identity_of(model)
            model.requires_grad_(False)
        self.kind = self.name = kind
        self.settings: dict[str, Any] = checked.model_dump(mode="json")
        self.card = AdapterCard()
        # In a dictionary, so that the model does not become a submodule.
        self._attached: dict[str, Any] = {"model": model, "points": points}
        self._handles: list[RemovableHandle] = []
        self._original_weights: list[tuple[nn.Parameter, Tensor]] = []
        self.to(points.device)

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
            kind: kind of adapter, a key of `ADAPTER_KINDS`.
            model: a model with transformer blocks that `find_attachment_points` recognises, on the device
                where it will run.
            also: names of the model's parameters, or of modules with parameters, that are trained as well.
                The adapter holds the trained copies.
            labels: values of the labels to segment without a click, by learned prompts.
            settings: settings of that kind, see `medsam_app.adapters.table`.

        Raises:
            AdapterError: The kind, a setting or a parameter is unknown, or the adapter does not fit the
                model.
        """
        return cls(kind, model, settings=settings, also=also, labels=labels)

    @property
    def enabled(self) -> bool:
        """Whether the model computes with this adapter, by hooks or merged."""
        return bool(self._handles)

    @property
    def merged(self) -> bool:
        """Whether the adapter is merged into the model's weights."""
        return bool(self._original_weights)

    @property
    def sha256(self) -> str:
        """Hash of the tensors, the kind and the settings."""
        return storage.adapter_sha256(self.kind, self.settings, self.state_dict())

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load tensors as `nn.Module` does, and update the model's adapter hash if the adapter is on.

        Raises:
            AdapterError: The adapter is merged.
        """
        if self.merged:
            raise AdapterError("The adapter is merged into the model; unmerge it before it is filled anew.")
        result = super().load_state_dict(*args, **kwargs)
        if self.enabled:
            self._publish(self.sha256)
        return result

    def belongs_to(self, model: nn.Module) -> bool:
        """Return whether the adapter was created for this model object."""
        return self._attached.get("model") is model

    def enable(self) -> None:
        """Switch the adapter on; no effect if it is on already.

        Raises:
            AdapterError: Another adapter of the model is on, or this one was removed.
        """
        if self.enabled:
            return
        model = self._model()
        active = adapter_in_use(model)
        if active is not None:
            raise AdapterError(
                f"Another adapter (of kind '{active.kind}') is switched on; disable it first, or keep both "
                "on an AdapterSet and choose one by its name."
            )
        points: AttachmentPoints = self._attached["points"]
        self.to(points.device)
        self._handles = [
            *self.also.install(),
            *self.part.install(),
            points.blocks[0].block.register_forward_pre_hook(self._mark_training),
        ]
        model.__dict__["_adapter_in_use"] = self
        self._publish(self.sha256)

    def disable(self) -> None:
        """Switch the adapter off; the model's output is the same as before, bit for bit."""
        if not self.enabled:
            return
        self._restore()
        self._uninstall()
        del self._model().__dict__["_adapter_in_use"]
        self._publish("")

    def remove(self) -> None:
        """Detach the adapter from its model for good; its tensors can still be saved."""
        self.disable()
        self._attached = {}

    @torch.no_grad()
    def merge(self) -> None:
        """Merge the adapter into the model's weights, and keep copies of the original weights.

        The model is then as fast as without an adapter, and its state_dict is that of the adapted model.

        Raises:
            AdapterError: The kind cannot be merged, the adapter is merged already, or another adapter is on.
        """
        if not ADAPTER_KINDS[self.kind].mergeable:
            raise AdapterError(
                f"A '{self.kind}' adapter cannot be merged: what it computes does not fit into the model's "
                "weights; keep it enabled instead."
            )
        if self.merged:
            raise AdapterError("The adapter is merged already; unmerge it before merging it again.")
        self.enable()
        # Compute this while the copies are in place: an adapted layer may be one of them.
        merged_parameters = [*self.also.merged(), *self.part.merged()]
        self._uninstall()
        for module, name, value in merged_parameters:
            parameter = module.get_parameter(name)
            self._original_weights.append((parameter, parameter.detach().clone()))
            parameter.copy_(value)
        self._handles = [self._model().register_load_state_dict_pre_hook(_refuse_weights)]

    def unmerge(self) -> None:
        """Restore the model's own weights, bit for bit; the adapter stays on.

        Raises:
            AdapterError: The adapter is not merged.
        """
        if not self.merged:
            raise AdapterError("The adapter is not merged; there is nothing to undo.")
        self.disable()
        self.enable()

    def save(self, path: str | Path, card: AdapterCard | Mapping[str, Any] | None = None) -> Path:
        """Write the adapter as a safetensors file, with its settings and the model's identity in the header.

        Args:
            path: output path, ending in .safetensors.
            card: an `AdapterCard` or its fields; by default the card that the adapter was loaded with.

        Returns:
            The path of the file.

        Raises:
            AdapterError: Fields of the card are wrong, or tensors are not finite.
            SaveError: The file could not be written or did not read back as written.
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
        """Load an adapter from its file, switched off; freeze the model.

        Args:
            path: file written by `save`.
            model: the model that the adapter was trained on.
            trainable: whether the adapter will be trained further.

        Raises:
            AdapterError: The file is damaged, has another version or is no adapter, or the model is another.
        """
        header = read_header(path)
        name = Path(path).name
        with _switched_off(model):
            base = storage.identity_of(model)
        # Compare names as well: several models share one checkpoint.
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
        if not self._attached:
            raise AdapterError("The adapter was removed from its model; load it again to use it.")
        return self._attached["model"]

    def _publish(self, sha256: str) -> None:
        model: Any = self._model()
        model.adapter_id, model.adapter_sha256 = (self.name if sha256 else ""), sha256
        if hasattr(model, "clip"):  # a Sam3D
            model.clip = self.card.clip if sha256 else None

    def _mark_training(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Publish a new name at each forward pass with gradients, since the next step changes the hash."""
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            self._publish(f"training-{next(_step_numbers)}")

    def _uninstall(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.also.uninstall()

    @torch.no_grad()
    def _restore(self) -> None:
        # In reverse order: a parameter may have been written twice, as a copy and by the component.
        for parameter, value in reversed(self._original_weights):
            parameter.copy_(value)
        self._original_weights = []


def adapter_in_use(model: nn.Module) -> Adapter | None:
    """Return the adapter of a model that is switched on, or None."""
    return model.__dict__.get("_adapter_in_use")


def learned_prompt(model: nn.Module, label: int) -> Tensor:
    """Return the learned tokens of a label, (1, T, C), from the adapter in use.

    Raises:
        AdapterError: No adapter is on, or it has no learned prompt for that label.
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
    """Switch off the adapter in use while the context is open.

    Raises:
        AdapterError: The adapter in use is merged.
    """
    active = adapter_in_use(model)
    if active is None:
        yield
        return
    if active.merged:
        raise AdapterError("An adapter is merged into the model; unmerge or disable it first.")
    active.disable()
    try:
        yield
    finally:
        active.enable()


def _refuse_weights(*args: Any) -> NoReturn:
    raise AdapterError("An adapter is merged into the model; unmerge it before weights are loaded.")
