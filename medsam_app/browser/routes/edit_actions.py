"""Actions of a page that edit masks by hand, one pydantic model each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from medsam_app.prompts.types import Coordinates
from medsam_app.session import mask_editing
from medsam_app.session.session import Session

Line = Annotated[list[Coordinates], Field(min_length=1, max_length=4000)]
Axis = Annotated[int, Field(ge=0, le=2)]


class AnyAction(BaseModel):
    """Base of all actions."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def apply(self, session: Session) -> None:
        """Change the session."""


class PaintStroke(AnyAction):
    """Paint a stroke of brush or eraser on the selected object; the first stroke creates one."""

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
    """Fill or erase the inside of a closed line on a slice."""

    do: Literal["lasso"]
    points: Line
    axis: Axis
    positive: bool = True

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        owner = session.selected or session.add_object()
        mask_editing.draw_lasso(session, owner.id, self.points, axis=self.axis, positive=self.positive)


class UseTool(AnyAction):
    """A tool on all of a mask, or on one slice of it."""

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
    """Lock or unlock a slice of an object."""

    do: Literal["lock"]
    object: str
    axis: Axis
    index: int
    locked: bool

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        mask_editing.set_lock(session, self.object, self.axis, self.index, self.locked)


class Combine(AnyAction):
    """Merge another object into one, or take it away."""

    do: Literal["combine"]
    object: str
    other: str
    how: Literal["merge", "subtract"]

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        work = mask_editing.merge if self.how == "merge" else mask_editing.subtract
        work(session, self.object, self.other)


class GoBack(AnyAction):
    """One object as a step of its history left it."""

    do: Literal["go_back"]
    object: str
    step: int

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.go_back(self.object, self.step)


EditAction = PaintStroke | Lasso | UseTool | Lock | Combine | GoBack
