"""Options of an evaluation; free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from medsam_app.errors import SettingsError, unknown_name
from medsam_app.evaluate.summary import TARGETS, shown_clicks
from medsam_app.predict.model_choice import ModelChoice

#: What an object's prompts may begin with; see `EvaluateOptions.first`.
FIRSTS = ("click", "box", "found")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of an evaluation, checked on construction.

    Attributes:
        model: the model that is measured.
        base: whether the model without its adapter is measured too, and the difference.
        baselines: names of `medsam_app.evaluate.classical.BASELINES`.
        nets: files of networks that `medsam-app finetune --baseline` has written.
        split, datasets, most_cases: which cases, see `take_cases`.
        labels: names or values of the labels that are measured; empty for all.
        clicks: number of clicks on each object; or the numbers of clicks after which means are given, the
            largest of which is how many are made.
        targets: Dice values whose number of clicks is counted, each above 0 and up to 1.
        first: "click", "box" instead of the first click, or "found": methods that know the label begin with
            the mask that they find without a prompt, which is click 0, and clicks correct it; others begin
            with a click.
        distances: whether surface Dice and HD95 are measured after the clicks that are shown.
        tolerance: of the surface Dice in mm; None for the largest side of a voxel of each volume.
        refine: draw the outlines of large objects in tiles; takes seconds per click.
        seed: of boxes, of resampling and of fresh weights.

    Raises:
        SettingsError: an unknown baseline or first prompt, the base without an adapter, or a number out of
            range.
        ModelError, AdapterError: from `ModelChoice.check`.
    """

    model: ModelChoice = field(default_factory=ModelChoice)
    base: bool = False
    baselines: tuple[str, ...] = ()
    nets: tuple[Path, ...] = ()
    split: str | None = None
    datasets: tuple[str, ...] = ()
    most_cases: int | None = None
    labels: tuple[str, ...] = ()
    clicks: int | tuple[int, ...] = 10
    targets: tuple[float, ...] = TARGETS
    first: str = "click"
    distances: bool = True
    tolerance: float | None = None
    refine: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.first not in FIRSTS:
            raise SettingsError(unknown_name("first prompt", self.first, FIRSTS))
        self.model.check()
        self._check_baselines()
        if self.base and self.model.adapter is None:
            raise SettingsError(
                "The model without its adapter was asked for, but there is no adapter; give one, or measure "
                "the model alone."
            )

    @property
    def shown(self) -> tuple[int, ...]:
        """Numbers of clicks after which means are given; the last is the number of clicks made."""
        return shown_clicks(self.clicks) if isinstance(self.clicks, int) else tuple(sorted(set(self.clicks)))

    def _check_numbers(self) -> None:
        fewest = self.clicks if isinstance(self.clicks, int) else min(self.clicks, default=0)
        if fewest < 1:
            raise SettingsError(f"At least one click an object is needed; got {fewest}.")
        for target in self.targets:
            if not 0 < target <= 1:
                raise SettingsError(f"A target is a Dice above 0 and up to 1, such as 0.85; got {target:g}.")
        if self.tolerance is not None and not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise SettingsError(f"The tolerance is a distance in mm, 0 or more; got {self.tolerance:g}.")

    def _check_baselines(self) -> None:
        if not self.baselines:
            return
        from medsam_app.evaluate.classical import BASELINES  # heavy

        for name in self.baselines:
            if name not in BASELINES:
                raise SettingsError(unknown_name("baseline", name, BASELINES))
