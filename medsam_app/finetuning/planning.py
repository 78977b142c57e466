"""Plan of a fine-tuning run, derived from the fingerprint of its dataset.

resolved = plan_for(fingerprint(dataset), base="sam3d_tiny", labels=["liver"], batch=4)
resolved.plan.spacing, resolved.reasons["spacing"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsam_app.datasets.fingerprint import Fingerprint
from medsam_app.datasets.fingerprint_case import CaseFacts
from medsam_app.errors import SettingsError
from medsam_app.finetuning.plan import WINDOW_MULTIPLES, Plan, make_plan
from medsam_app.finetuning.plan_labels import RequestedLabels, select_labels
from medsam_app.finetuning.plan_windows import choose_clip, choose_spacing, choose_window, measure_objects
from medsam_app.models.table import model_entry

#: Most voxels along an axis of a window; larger windows are slow on a CPU.
SIDE = 64
MINUTES = 30.0
_REQUESTED = "as asked for"
#: Reasons for fields that do not depend on the dataset.
_REASONS = {
    "minutes": "default; many cases gain from more",
    "mirror": "labels may have a side",
    "automatic": "labels are found without a click, too",
    "rounds": "a first prompt and clicks that mend",
}


@dataclass(frozen=True)
class ResolvedPlan:
    """A complete plan and the reasons for it.

    Attributes:
        plan: the plan.
        reasons: a few words for each field of the plan.
        warnings: sentences on shortcomings of the dataset.
        cases: number of usable cases with one of the labels.
    """

    plan: Plan
    reasons: dict[str, str]
    warnings: tuple[str, ...]
    cases: int


def plan_for(
    fingerprint: Fingerprint,
    *,
    base: str = "sam3d_tiny",
    labels: Sequence[str | int] | Mapping[Any, str] | None = None,
    side: int = SIDE,
    **given: Any,
) -> ResolvedPlan:
    """Derive a complete plan.

    Args:
        fingerprint: fingerprint of the cases of the run (`medsam_app.finetuning.split.restrict_dataset`).
        base: name of the base model.
        labels: names or values of the labels to learn, or names by value; None for every label that two
            cases have.
        side: most voxels along an axis of a window, unless the window is given.
        given: other fields of `Plan`, which stay unchanged. Pass only fields the user set: None is a valid
            value.

    Raises:
        SettingsError: no case is usable, a label or setting is unknown, or a value is out of its range.
        ModelError, AdapterError: the base is unknown, or the adapter does not allow the settings.
    """
    requested = _checked(base, given)
    multiple = WINDOW_MULTIPLES[model_entry(base).family]
    if side < multiple:
        raise SettingsError(f"Windows of {base} have sides of {multiple} voxels or more; got {side}.")
    usable = [case for case in fingerprint.cases if case.usable]
    if not usable:
        raise SettingsError(
            f"No case of {fingerprint.path} can be used, so there is nothing to learn from; `medsam-app "
            "dataset inspect` says what is wrong with each."
        )
    selected = select_labels(usable, labels)
    labelled = [case for case in usable if any(label.value in selected.names for label in case.labels)]
    derived, reasons = _derived(
        fingerprint, labelled, selected, requested, given, side=side, multiple=multiple
    )
    fields = derived | {"base": base} | given
    plan = make_plan(fields, source="The plan")
    all_reasons = {name: reasons.get(name, _REASONS.get(name, "default")) for name in Plan.model_fields}
    if plan.steps is not None:
        all_reasons["minutes"] = "counted in steps"
    all_reasons |= dict.fromkeys(given, _REQUESTED)
    warnings = (*_warnings(fingerprint, labelled), *selected.warnings)
    return ResolvedPlan(plan, all_reasons, warnings, len(labelled))


def _checked(base: str, given: Mapping[str, Any]) -> Plan:
    """Validate the given fields of a plan, with placeholders for the rest."""
    length = {} if given.get("steps") is not None else {"minutes": MINUTES}
    placeholders = {"labels": {1: "label"}, "spacing": 1.0, "window": (SIDE, SIDE, SIDE), "base": base}
    requested = make_plan(placeholders | length | dict(given), source="What was asked for")
    try:
        if not {"validate_minutes", "validate_steps"} <= given.keys():
            requested.check_period(given)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return requested


def _derived(
    fingerprint: Fingerprint,
    cases: Sequence[CaseFacts],
    selected: RequestedLabels,
    requested: Plan,
    given: Mapping[str, Any],
    *,
    side: int,
    multiple: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields that follow from the dataset, and the reasons for them."""
    fields: dict[str, Any] = {"labels": selected.names}
    reasons = {"labels": selected.reason}
    objects = measure_objects(cases, selected.names)
    most = max(requested.window) if "window" in given else side // multiple * multiple
    fields["spacing"], reasons["spacing"] = choose_spacing(objects, most)
    spacing = requested.spacing if "spacing" in given else fields["spacing"]
    fields["window"], reasons["window"] = choose_window(objects, spacing, most, multiple)
    fields["clip"], reasons["clip"] = choose_clip(cases, selected.names, fingerprint.intensities)
    if fields["clip"] is not None:
        fields["bias"], reasons["bias"] = 0.0, "in CT brightness does not drift"
    if requested.steps is None:
        fields["minutes"] = MINUTES
    return fields, reasons


def _warnings(fingerprint: Fingerprint, cases: Sequence[CaseFacts]) -> list[str]:
    """Return warnings about the dataset that matter for training."""
    warnings = []
    kinds = Counter(problem.kind for problem in fingerprint.problems if problem.severity == "error")
    if fingerprint.unusable:
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        are = "case is" if fingerprint.unusable == 1 else "cases are"
        warnings.append(
            f"{fingerprint.unusable} {are} left out ({counts}); `medsam-app dataset inspect` says more."
        )
    duplicates = sum(problem.kind == "same image twice" for problem in fingerprint.problems)
    if duplicates:
        warnings.append(
            f"{duplicates} image{' is' if duplicates == 1 else 's are'} there in several files, so something "
            "may be measured on what was learned; `medsam-app dataset inspect` names them."
        )
    if len(cases) == 1:
        warnings.append(
            "There is one case to learn from and none to measure on, so nobody will know whether it works "
            "on another; draw a second one."
        )
    return warnings
