"""Baseline networks from MONAI, trained on the same windows as an adapter.

Their scores show what the same data and training time give without a pretrained model.
`medsam_app.finetuning.baseline_trainer` trains them.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import SwinUNETR, UNet
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from medsam_app.errors import ModelError
from medsam_app.grid.roi import read_roi
from medsam_app.io.volume import Volume
from medsam_app.predict.baseline_file import read_header
from medsam_app.predict.core.intensity import rescale_intensities
from medsam_app.predict.core.prediction import LabelMap
from medsam_app.predict.whole_volume import paint, whole_roi


def build_baseline(name: str, labels: int) -> nn.Module:
    """Build an untrained network.

    It maps (B, 2, X, Y, Z) intensities and validity (see `network_input`) to (B, 1 + labels, X, Y, Z) logits.

    Args:
        name: one of `BASELINE_NETS`.
        labels: number of labels, excluding the background.
    """
    if name == "swin_unetr":
        return SwinUNETR(in_channels=2, out_channels=1 + labels, feature_size=24)
    return UNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=1 + labels,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )


def network_input(image: Tensor, valid: Tensor) -> Tensor:
    """Return the (B, 2, X, Y, Z) input of a network: intensities of about -1 to 1, and validity.

    Args:
        image: (B, 1, X, Y, Z) intensities of about 0 to 1.
        valid: (B, 1, X, Y, Z) booleans, whether a voxel lies inside the volume.
    """
    inside = valid.float()
    return torch.cat([(2 * image - 1) * inside, inside], dim=1)


class BaselineNet:
    """Trained MONAI network that segments all of its labels in a volume without prompts.

    Args:
        path: file written by `BaselineTrainer.keep`.
        device: device on which the network runs.

    Raises:
        ModelError: the file does not exist or holds no baseline network.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        try:
            with safe_open(path, framework="np") as file:
                self.name, self.plan = read_header(file.metadata() or {})
            net = build_baseline(self.name, len(self.plan.labels))
            net.load_state_dict(load_file(path))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
            raise ModelError(
                f"'{path}' is no network that medsam-app finetune --baseline has written; give such a file."
            ) from None
        self.net = net.to(device).eval().requires_grad_(False)
        self.device = device
        self._volume: Volume | None = None

    @property
    def labels(self) -> Collection[int]:
        """Values of the labels that the network was trained on."""
        return tuple(self.plan.labels)

    def set_volume(self, volume: Volume) -> None:
        """Set the volume to segment."""
        self._volume = volume

    def predict_labels(self) -> NDArray[np.integer]:
        """Return the (i, j, k) label values on the volume's grid, 0 for background."""
        return self.label_map().array

    @torch.inference_mode()
    def label_map(self, *, probabilities: bool = False) -> LabelMap:
        """Return the label map of the volume.

        Args:
            probabilities: whether to include the probability of each label against the background.
        """
        start_time = time.perf_counter()
        assert self._volume is not None
        volume, plan = self._volume, self.plan
        roi = whole_roi(volume.grid, (plan.spacing,) * 3, plan.window)
        image, valid = read_roi(volume.array, roi)
        windowed = network_input(rescale_intensities(image, valid, plan.clip)[None, None], valid[None, None])
        options: dict[str, Any] = {"overlap": 0.5, "mode": "gaussian", "sw_device": self.device}
        logits: Any = sliding_window_inference(
            windowed, plan.window, 1, self.net, device=torch.device("cpu"), **options
        )
        margins = logits[0, 1:] - logits[0, :1]
        values = list(plan.labels)
        array = np.zeros(volume.shape, dtype=np.min_scalar_type(max(values)))
        best_margin = np.zeros(volume.shape, dtype=np.float32)
        probability_maps = (
            {value: np.zeros(volume.shape, dtype=np.uint8) for value in values} if probabilities else {}
        )
        paint(margins, roi, values, array=array, best=best_margin, chances=probability_maps)
        return LabelMap(
            volume.grid, array, dict(plan.labels), time.perf_counter() - start_time, probability_maps
        )
