"""The plan of a finetuning run, derived from the fingerprint of its dataset.

settled = plan_for(fingerprint(dataset), base="sam3d_tiny", labels=["liver"], batch=4)
settled.plan.spacing, settled.reasons["spacing"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsam_app.datasets.fingerprint import Fingerprint
from medsam_app.datasets.fingerprint_case import CaseFacts
from medsam_app.errors import SettingsError
from medsam_app.finetuning.plan import TAUGHT, Plan, make_plan
from medsam_app.finetuning.plan_labels import RequestedLabels, wanted_labels
from medsam_app.finetuning.plan_windows import choose_clip, choose_spacing, choose_window, measure_objects
from medsam_app.models.table import model_entry

#: Most voxels along an axis of a window: larger ones are slow on a CPU.
SIDE = 64
MINUTES = 30.0
_ASKED = "as asked for"
#: Why fields are as they are where the dataset has no say.
_REASONS = {
    "minutes": "default; many cases gain from more",
    "mirror": "labels may have a side",
    "automatic": "labels are found without a click, too",
    "rounds": "a first prompt and clicks that mend",
}


@dataclass(frozen=True)
class ResolvedPlan:
    """A plan and where it comes from.

    Attributes:
        reasons: a few words for each field of the plan.
        warnings: sentences on what the dataset lacks.
        cases: how many can be used and have one of the labels.
    """

    plan: Plan
    reasons: dict[str, str]
    warnings: tuple[str, ...]
    cases: int


def plan_for(
    found: Fingerprint,
    *,
    base: str = "sam3d_tiny",
    labels: Sequence[str | int] | Mapping[Any, str] | None = None,
    side: int = SIDE,
    **given: Any,
) -> ResolvedPlan:
    """Derive a complete plan.

    Args:
        found: of the cases that the run is to use (`medsam_app.finetuning.split.chosen`).
        base: name of the model that is trained.
        labels: names or values of those to learn, or names by value; None for all that two cases have.
        side: most voxels along an axis of a window that is not given.
        given: other fields of `Plan`, kept as they are. Pass only fields the user set: None is a
            valid value.

    Raises:
        SettingsError: no case can be used, a label or setting that there is not, or one out of its range.
        ModelError, AdapterError: an unknown base, or an adapter that cannot be as requested.
    """
    asked = _checked(base, given)
    multiple = TAUGHT[model_entry(base).family]
    if side < multiple:
        raise SettingsError(f"Windows of {base} have sides of {multiple} voxels or more; got {side}.")
    usable = [case for case in found.cases if case.usable]
    if not usable:
        raise SettingsError(
            f"No case of {found.path} can be used, so there is nothing to learn from; `medsam-app dataset "
            "inspect` says what is wrong with each."
        )
    wanted = wanted_labels(usable, labels)
    having = [case for case in usable if any(label.value in wanted.names for label in case.labels)]
    derived, reasons = _derived(found, having, wanted, asked, given, side=side, multiple=multiple)
    fields = derived | {"base": base} | given
    plan = make_plan(fields, source="The plan")
    why = {name: reasons.get(name, _REASONS.get(name, "default")) for name in Plan.model_fields}
    if plan.steps is not None:
        why["minutes"] = "counted in steps"
    why |= dict.fromkeys(given, _ASKED)
    return ResolvedPlan(plan, why, (*_warnings(found, having), *wanted.warnings), len(having))


def _checked(base: str, given: Mapping[str, Any]) -> Plan:
    """Validate the given fields of a plan, with placeholders for the rest."""
    length = {} if given.get("steps") is not None else {"minutes": MINUTES}
    rest = {"labels": {1: "label"}, "spacing": 1.0, "window": (SIDE, SIDE, SIDE), "base": base}
    asked = make_plan(rest | length | dict(given), source="What was asked for")
    try:
        if not {"validate_minutes", "validate_steps"} <= given.keys():
            asked.check_period(given)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return asked


def _derived(
    found: Fingerprint,
    cases: Sequence[CaseFacts],
    wanted: RequestedLabels,
    asked: Plan,
    given: Mapping[str, Any],
    *,
    side: int,
    multiple: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fields that follow from the dataset, and why."""
    fields: dict[str, Any] = {"labels": wanted.names}
    reasons = {"labels": wanted.reason}
    objects = measure_objects(cases, wanted.names)
    most = max(asked.window) if "window" in given else side // multiple * multiple
    fields["spacing"], reasons["spacing"] = choose_spacing(objects, most)
    spacing = asked.spacing if "spacing" in given else fields["spacing"]
    fields["window"], reasons["window"] = choose_window(objects, spacing, most, multiple)
    fields["clip"], reasons["clip"] = choose_clip(cases, wanted.names, found.intensities)
    if fields["clip"] is not None:
        fields["bias"], reasons["bias"] = 0.0, "in CT brightness does not drift"
    if asked.steps is None:
        fields["minutes"] = MINUTES
    return fields, reasons


def _warnings(found: Fingerprint, cases: Sequence[CaseFacts]) -> list[str]:
    """Return warnings about the dataset that matter for training."""
    warnings = []
    kinds = Counter(problem.kind for problem in found.problems if problem.severity == "error")
    if found.unusable:
        told = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
        are = "case is" if found.unusable == 1 else "cases are"
        warnings.append(f"{found.unusable} {are} left out ({told}); `medsam-app dataset inspect` says more.")
    same = sum(problem.kind == "same image twice" for problem in found.problems)
    if same:
        warnings.append(
            f"{same} image{' is' if same == 1 else 's are'} there in several files, so something may be "
            "measured on what was learned; `medsam-app dataset inspect` names them."
        )
    if len(cases) == 1:
        warnings.append(
            "There is one case to learn from and none to measure on, so nobody will know whether it works "
            "on another; draw a second one."
        )
    return warnings
