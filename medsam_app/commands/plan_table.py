"""Table of a plan: item, value and reason."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from medsam_app.console import note, table_console, titled_table
from medsam_app.datasets.fingerprint import first_few
from medsam_app.finetuning.plan import Plan
from medsam_app.finetuning.planning import ResolvedPlan

#: Units after the value.
_UNITS = {"spacing": "mm", "window": "voxels", "rotate": "degrees", "blur": "voxels", "save_minutes": "min"}
_UNITS |= {"minutes": "min", "validate_minutes": "min"}


def show_plan(resolved: ResolvedPlan) -> None:
    """Print the plan as a table, and the warnings about the dataset."""
    table_console().print(plan_table(resolved))
    for warning in resolved.warnings:
        note(f"Warning: {warning}")


def plan_table(resolved: ResolvedPlan) -> Table:
    """Return the plan as a table, one row per field that affects this run."""
    cases = f"{resolved.cases} case{'' if resolved.cases == 1 else 's'}"
    table = titled_table(f"Plan, for {cases}; each item is an option or a field of --settings")
    table.add_column("item", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=48)
    table.add_column("why", overflow="fold")
    for name in Plan.model_fields:
        if name not in _hidden_fields(resolved.plan):
            table.add_row(name, _value_text(name, getattr(resolved.plan, name)), resolved.reasons[name])
    return table


def _hidden_fields(plan: Plan) -> set[str]:
    """Return the fields that are not shown."""
    counted = plan.steps is not None
    hidden = {"minutes", "validate_minutes"} if counted else {"steps", "validate_steps"}
    return hidden | {
        name for name in ("split", "datasets", "most_cases", "settings") if not getattr(plan, name)
    }


def _value_text(name: str, value: Any) -> str:
    if name == "labels":
        return first_few(f"{number} {text}" for number, text in value.items())
    if value is None or isinstance(value, bool):
        return {None: "all", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, tuple):
        separator = {"window": " x ", "datasets": ", "}.get(name, " to ")
        return separator.join(_value_text("", item) for item in value) + _unit(name)
    return (f"{value:g}" if isinstance(value, float) else str(value)) + _unit(name)


def _unit(name: str) -> str:
    return f" {_UNITS[name]}" if name in _UNITS else ""
