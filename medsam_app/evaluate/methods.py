"""Loading of an evaluation's methods: model, adapter, prompted labels, baselines."""

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

    A model with an adapter is called 'MODEL + NAME'. Where the adapter has learned prompts, 'MODEL + NAME,
    told the label' is it again, given the value of the object with its clicks. Each method has embeddings
    of its own, so that none is quick because another one was slow.

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
        _adapted(methods, model.name, adapter, network, refine, options.base)
    for name in options.baselines:
        methods.segmenters[name] = baseline(name, device=model.device, refine=refine, seed=options.seed)
    for file in options.nets:
        from medsam_app.predict.baseline_net import BaselineNet  # slow: MONAI's networks

        net = BaselineNet(file, device)
        methods.mappers[net.name if net.name not in methods.mappers else str(file)] = net
    return methods


def _adapted(
    methods: Methods, model: str, adapter: Adapter, network: AnyModel, refine: bool, base: bool
) -> None:
    """Add the model with its adapter, told the label where it can be, and without it where wanted."""
    name = f"{model} + {adapter.name}"
    methods.adapter = adapter.name
    methods.segmenters[name] = Switched(network, adapter, on=True, refine=refine)
    if base:
        methods.segmenters[model] = Switched(network, adapter, on=False, refine=refine)
        methods.pairs += ((name, model),)
    if adapter.prompts.labels:
        knowing = f"{name}, told the label"
        methods.told[knowing] = ToldByAdapter(Switched(network, adapter, on=True, refine=refine))
        methods.pairs += ((knowing, name),)
        if adapter.card.spacing is not None:
            methods.begin[knowing] = f"{name}, no prompt"
            methods.mappers[methods.begin[knowing]] = Unprompted(network, adapter)


class Switched:
    """A model whose adapter is switched on or off before each prediction, which takes milliseconds.

    Args:
        model: shared with others that want the adapter otherwise.
        adapter: of that model.
        on: whether this one has it.
        refine: as for `VolumePredictor`.
    """

    def __init__(self, model: AnyModel, adapter: Adapter, *, on: bool, refine: bool) -> None:
        self._predictor = VolumePredictor(model, refine=refine)
        self.adapter = adapter
        self._on = on

    @property
    def volume(self) -> Volume:
        """The volume that is segmented."""
        return self._predictor.volume

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""
        self._predictor.set_volume(volume)

    def predict(self, **asked: Any) -> MaskPrediction:
        """As `VolumePredictor.predict`."""
        if self._on:
            self.adapter.enable()
        else:
            self.adapter.disable()
        return self._predictor.predict(**asked)


class ToldByAdapter:
    """A model that gets a label by the learned prompts of its adapter."""

    def __init__(self, model: Switched) -> None:
        self._model = model

    @property
    def labels(self) -> tuple[int, ...]:
        """Values that the adapter has learned prompts for."""
        return self._model.adapter.prompts.labels

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""
        self._model.set_volume(volume)

    def meaning(self, value: int, *, begun: NDArray[np.bool_] | None = None) -> Segmenter:
        """The model for objects of that value."""
        return _Meaning(self._model, value, begun if begun is not None and begun.any() else None)


class _Meaning:
    def __init__(self, model: Switched, value: int, begun: NDArray[np.bool_] | None) -> None:
        self._model = model
        self._told = {"label": value, "mask_input": begun}

    @property
    def volume(self) -> Volume:
        return self._model.volume

    def set_volume(self, volume: Volume) -> None:
        self._model.set_volume(volume)

    def predict(self, *, points: Any = None, point_labels: Any = None, boxes: Any = None) -> MaskPrediction:
        return self._model.predict(points=points, point_labels=point_labels, boxes=boxes, **self._told)


class Unprompted:
    """Model that finds the adapter's labels in the whole volume.

    Args:
        model: shared with others that want the adapter otherwise.
        adapter: of that model, with learned prompts.
    """

    def __init__(self, model: AnyModel, adapter: Adapter) -> None:
        self._predictor = VolumePredictor(model)
        self._adapter = adapter

    @property
    def labels(self) -> tuple[int, ...]:
        """Values that the adapter has learned prompts for."""
        return self._adapter.prompts.labels

    def set_volume(self, volume: Volume) -> None:
        """Choose the volume."""
        self._predictor.set_volume(volume)

    def predict_labels(self) -> NDArray[np.integer]:
        """(i, j, k) values of labels on the volume's grid, 0 for none of them."""
        self._adapter.enable()
        return self._predictor.predict_labels().array
