"""Actions of a page that edit masks by hand, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from medsam_app.prompts.types import Coordinates
from medsam_app.session import mask_editing
from medsam_app.session.session import Session

Line = Annotated[list[Coordinates], Field(min_length=1, max_length=4000)]
Axis = Annotated[int, Field(ge=0, le=2)]


class AnyAction(BaseModel):
    """Base class of all actions."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def apply(self, session: Session) -> None:
        """Apply the action to a session; the base class changes nothing."""


class PaintStroke(AnyAction):
    """Action that paints or erases a stroke on the selected object; creates an object if none is selected."""

    do: Literal["paint"]
    points: Line
    radius: float
    positive: bool = True
    axis: Axis | None = None

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        owner = session.selected or session.add_object()
        mask_editing.paint(
            session, owner.id, self.points, radius=self.radius, positive=self.positive, axis=self.axis
        )


class Lasso(AnyAction):
    """Action that fills or erases the inside of a closed line on a slice."""

    do: Literal["lasso"]
    points: Line
    axis: Axis
    positive: bool = True

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        owner = session.selected or session.add_object()
        mask_editing.draw_lasso(session, owner.id, self.points, axis=self.axis, positive=self.positive)


class UseTool(AnyAction):
    """Action that applies a tool to a whole mask, or to one slice of it."""

    do: Literal["tool"]
    object: str
    tool: mask_editing.Tool
    mm: float = 1.0
    axis: Axis | None = None
    index: int | None = None

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        mask_editing.use_tool(session, self.object, self.tool, mm=self.mm, axis=self.axis, index=self.index)


class Lock(AnyAction):
    """Action that locks or unlocks a slice of an object."""

    do: Literal["lock"]
    object: str
    axis: Axis
    index: int
    locked: bool

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        mask_editing.set_lock(session, self.object, self.axis, self.index, self.locked)


class Combine(AnyAction):
    """Action that merges another object into an object, or subtracts it."""

    do: Literal["combine"]
    object: str
    other: str
    how: Literal["merge", "subtract"]

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        operation = mask_editing.merge if self.how == "merge" else mask_editing.subtract
        operation(session, self.object, self.other)


class GoBack(AnyAction):
    """Action that restores an object to a step of its history."""

    do: Literal["go_back"]
    object: str
    step: int

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.go_back(self.object, self.step)


EditAction = PaintStroke | Lasso | UseTool | Lock | Combine | GoBack
