"""Options of an evaluation, without a dependency on torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from medsam_app.errors import SettingsError, unknown_name
from medsam_app.evaluate.summary import TARGETS, shown_clicks
from medsam_app.predict.model_choice import ModelChoice

#: Kinds of the first prompt of an object; see `EvaluateOptions.first`.
FIRSTS = ("click", "box", "found")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of an evaluation, checked on construction.

    Attributes:
        model: the model to measure.
        base: whether to measure the model without its adapter as well, and the difference.
        baselines: names in `medsam_app.evaluate.classical.BASELINES`.
        nets: network files written by `medsam-app finetune --baseline`.
        split, datasets, most_cases: selection of cases, see `select_cases`.
        labels: names or values of the labels to measure; empty for all.
        clicks: number of clicks per object; or the numbers of clicks after which means are given, the largest
            being the number of clicks made.
        targets: Dice values for which the number of clicks is counted, each above 0 and at most 1.
        first: "click"; "box" instead of the first click; or "found": methods that get the label start from
            the mask that they find without a prompt, which is click 0, and clicks correct it; other methods
            start with a click.
        distances: whether surface Dice and HD95 are measured after the clicks that are shown.
        tolerance: tolerance of the surface Dice in mm; None for the largest voxel side of each volume.
        per_case: maximum number of objects per case, evenly spread by size; None for all.
        refine: draw the outlines of large objects in tiles, as `medsam-app segment` does; takes seconds per
            click.
        seed: seed of boxes, resampling and fresh weights.

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
    per_case: int | None = None
    refine: bool = True
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
        if self.per_case is not None and self.per_case < 1:
            raise SettingsError(f"At least one object per case is needed; got {self.per_case}.")
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
