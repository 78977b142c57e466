"""Loading of an evaluation's methods: model, adapter, learned labels, baselines."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from medsam_app.adapters.adapter import Adapter
from medsam_app.evaluate.classical import baseline
from medsam_app.evaluate.options import EvaluateOptions
from medsam_app.evaluate.protocols import Methods, Segmenter
from medsam_app.io.volume import Volume
from medsam_app.models.load import choose_device, load_model
from medsam_app.predict.core.prediction import MaskPrediction
from medsam_app.predict.predictor import AnyModel, VolumePredictor


def load_methods(options: EvaluateOptions) -> Methods:
    """Load all methods of an evaluation.

    A model with an adapter is called 'MODEL + NAME'. If the adapter has learned prompts, the method 'MODEL +
    NAME, told the label' is the same model, given the object's label value with its clicks. Each method has
    its own embeddings, so that no method is faster because another one computed them.

    Raises:
        SettingsError, ModelError, AdapterError: from loading.
    """
    model, refine = options.model, options.refine
    device = choose_device(model.device)[0]
    network: AnyModel = load_model(model.name, device=device, weights=model.weights)
    methods = Methods(weights_sha256=network.weights_sha256)
    if model.adapter is None:
        methods.segmenters = {model.name: VolumePredictor(network, refine=refine)}
    else:
        adapter = Adapter.load(model.adapter, cast(nn.Module, network))
        _add_adapted(methods, model.name, adapter, network, refine, options.base)
    for name in options.baselines:
        methods.segmenters[name] = baseline(name, device=model.device, refine=refine, seed=options.seed)
    for file in options.nets:
        from medsam_app.predict.baseline_net import BaselineNet  # slow: imports MONAI's networks

        net = BaselineNet(file, device)
        methods.mappers[net.name if net.name not in methods.mappers else str(file)] = net
    return methods


def _add_adapted(
    methods: Methods, model: str, adapter: Adapter, network: AnyModel, refine: bool, base: bool
) -> None:
    """Add the model with its adapter; optionally with labels, and without the adapter."""
    name = f"{model} + {adapter.name}"
    methods.adapter = adapter.name
    methods.segmenters[name] = SwitchedModel(network, adapter, on=True, refine=refine)
    if base:
        methods.segmenters[model] = SwitchedModel(network, adapter, on=False, refine=refine)
        methods.pairs += ((name, model),)
    if adapter.prompts.labels:
        label_name = f"{name}, told the label"
        methods.labelled[label_name] = LearnedLabels(SwitchedModel(network, adapter, on=True, refine=refine))
        methods.pairs += ((label_name, name),)
        if adapter.card.spacing is not None:
            methods.initial_maps[label_name] = f"{name}, no prompt"
            methods.mappers[methods.initial_maps[label_name]] = Unprompted(network, adapter)


class SwitchedModel:
    """A model whose adapter is enabled or disabled before each prediction, which takes milliseconds.

    Args:
        model: shared with methods that use another state of the adapter.
        adapter: adapter of that model.
        on: whether this method uses the adapter.
        refine: as for `VolumePredictor`.
    """

    def __init__(self, model: AnyModel, adapter: Adapter, *, on: bool, refine: bool) -> None:
        self._predictor = VolumePredictor(model, refine=refine)
        self.adapter = adapter
        self._on = on

    @property
    def volume(self) -> Volume:
        """The volume to segment."""
        return self._predictor.volume

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""
        self._predictor.set_volume(volume)

    def predict(self, **arguments: Any) -> MaskPrediction:
        """Predict as `VolumePredictor.predict`."""
        if self._on:
            self.adapter.enable()
        else:
            self.adapter.disable()
        return self._predictor.predict(**arguments)


class LearnedLabels:
    """A model that receives the label of an object as learned prompts of its adapter."""

    def __init__(self, model: SwitchedModel) -> None:
        self._model = model

    @property
    def labels(self) -> tuple[int, ...]:
        """Label values for which the adapter has learned prompts."""
        return self._model.adapter.prompts.labels

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""
        self._model.set_volume(volume)

    def with_label(self, value: int, *, initial_mask: NDArray[np.bool_] | None = None) -> Segmenter:
        """Return the model for objects of one label value."""
        return _OneLabel(
            self._model, value, initial_mask if initial_mask is not None and initial_mask.any() else None
        )


class _OneLabel:
    def __init__(self, model: SwitchedModel, value: int, initial_mask: NDArray[np.bool_] | None) -> None:
        self._model = model
        self._label_prompts = {"label": value, "mask_input": initial_mask}

    @property
    def volume(self) -> Volume:
        return self._model.volume

    def set_volume(self, volume: Volume) -> None:
        self._model.set_volume(volume)

    def predict(self, *, points: Any = None, point_labels: Any = None, boxes: Any = None) -> MaskPrediction:
        return self._model.predict(
            points=points, point_labels=point_labels, boxes=boxes, **self._label_prompts
        )


class Unprompted:
    """A model that finds the adapter's labels in the whole volume.

    Args:
        model: shared with methods that use another state of the adapter.
        adapter: adapter of that model, with learned prompts.
    """

    def __init__(self, model: AnyModel, adapter: Adapter) -> None:
        self._predictor = VolumePredictor(model)
        self._adapter = adapter

    @property
    def labels(self) -> tuple[int, ...]:
        """Label values for which the adapter has learned prompts."""
        return self._adapter.prompts.labels

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""
        self._predictor.set_volume(volume)

    def predict_labels(self) -> NDArray[np.integer]:
        """Return (i, j, k) label values on the volume's grid, 0 for the background."""
        self._adapter.enable()
        return self._predictor.predict_labels().array
