"""Options of a fine-tuning run, without a dependency on torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medsam_app.errors import SettingsError, unknown_name
from medsam_app.predict.baseline_file import BASELINE_NETS
from medsam_app.predict.model_choice import check_weights


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Options of `medsam-app finetune`, checked on construction.

    Attributes:
        dataset: labelled volumes.
        output: file of the adapter; the folder of the run is next to it.
        fields: fields of `Plan` that the user set.
        baseline: name of a network to train on the same windows afterwards.
        memory: maximum memory of all processes in bytes; None for most of the free memory.
        preflight: whether to try one step first, and adapt the plan to the available memory.
        weights: weights of the base model, instead of the published ones.
        device: 'auto' or a torch device.
        tensorboard: whether to write curves.
        dry_run: whether to stop after printing the plan.
        overwrite: whether to replace an existing adapter and run.
        processes: number of processes that share the run, unless torchrun started them; None for a number
            that suits the machine.
        command: `medsam-app` arguments for starting the other processes.

    Raises:
        ModelError: the weights file does not exist.
        SettingsError: an unknown baseline, or curves without tensorboard.
    """

    dataset: Path
    output: Path
    fields: Mapping[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    memory: int | None = None
    preflight: bool = True
    weights: Path | None = None
    device: str = "auto"
    tensorboard: bool = False
    dry_run: bool = False
    overwrite: bool = False
    processes: int | None = 1
    command: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_weights(self.weights)
        if self.tensorboard and find_spec("tensorboard") is None:
            raise SettingsError(
                "--tensorboard needs tensorboard, which is not installed; run 'pip install tensorboard'."
            )
        if self.baseline is not None and self.baseline not in BASELINE_NETS:
            raise SettingsError(unknown_name("baseline", self.baseline, BASELINE_NETS))

    @property
    def adapter_file(self) -> Path:
        """Path `output` with the suffix of an adapter."""
        if self.output.suffix == ".safetensors":
            return self.output
        return self.output.with_name(self.output.name + ".safetensors")

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.adapter_file.with_name(self.adapter_file.stem + ".run")
