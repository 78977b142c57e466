"""Actions of a page on its session, one pydantic model each, and the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medsam_app.browser.protocol.binary import frame, mask_part
from medsam_app.browser.routes.edit_actions import AnyAction, EditAction
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError
from medsam_app.prompts.types import AnyPrompt, Box, Paint, Prompt
from medsam_app.session.mask_editing import locked_slices
from medsam_app.session.session import Session


class Look(AnyAction):
    """No change; only the state is requested."""

    do: Literal["look"]


class AddPrompt(AnyAction):
    """Add a click or a box to the selected object; the first one creates an object."""

    do: Literal["add_prompt"]
    prompt: Prompt

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        owner = session.selected or session.add_object()
        session.add_prompt(owner.id, self.prompt)


class ReplacePrompt(AnyAction):
    """A box that was pulled to another size, a point that was moved."""

    do: Literal["replace_prompt"]
    object: str
    index: int
    prompt: Prompt

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.replace_prompt(self.object, self.index, self.prompt)


class DeletePrompt(AnyAction):
    """Delete a prompt of an object."""

    do: Literal["delete_prompt"]
    object: str
    index: int

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.delete_prompt(self.object, self.index)


class Clear(AnyAction):
    """Delete all prompts of an object."""

    do: Literal["clear"]
    object: str

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.clear(self.object)


class AddObject(AnyAction):
    """Add an object."""

    do: Literal["add_object"]
    name: str | None = None
    label: int | None = None
    colour: str | None = None
    may_overlap: bool = True

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.add_object(self.name, label=self.label, colour=self.colour, may_overlap=self.may_overlap)


class ChangeObject(AnyAction):
    """Another name, label value or colour, or whether it may overlap."""

    do: Literal["change_object"]
    object: str
    name: str | None = None
    label: int | None = None
    colour: str | None = None
    may_overlap: bool | None = None

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        if self.may_overlap is not None:
            session.set_may_overlap(self.object, self.may_overlap)
        if self.name is not None:
            session.rename(self.object, self.name)
        if self.label is not None:
            session.set_label(self.object, self.label)
        if self.colour is not None:
            session.set_colour(self.object, self.colour)


class DeleteObject(AnyAction):
    """Delete an object."""

    do: Literal["delete_object"]
    object: str

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.delete_object(self.object)


class Select(AnyAction):
    """Select an object."""

    do: Literal["select"]
    object: str

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.select(self.object)


class Undo(AnyAction):
    """Undo the last step."""

    do: Literal["undo"]

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.undo()


class Redo(AnyAction):
    """Redo the step that was undone last."""

    do: Literal["redo"]

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.redo()


class Refine(AnyAction):
    """Outlines of large objects in tiles, or as the one window shows them."""

    do: Literal["refine"]
    on: bool

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.settings = replace(session.settings, refine=self.on)


Action = Annotated[
    Look | AddPrompt | ReplacePrompt | DeletePrompt | Clear | AddObject | ChangeObject | DeleteObject | Select
    | Undo | Redo | Refine | EditAction,
    Field(discriminator="do"),
]  # fmt: skip


class ActionRequest(BaseModel):
    """An action, and the keys of the masks that the page holds."""

    model_config = ConfigDict(extra="forbid")
    action: Action
    have: list[str] = Field(default_factory=list, max_length=100_000)


def perform(workspace: Workspace, action: Action, have: list[str], *, number: int | None = None) -> bytes:
    """Apply an action and answer with the state, or change nothing and raise.

    Args:
        number: of the volume that the action is meant for, as pages have it; None for the open one.

    Raises:
        HTTPException: another volume was opened meanwhile.
        PromptError: no volume is open, or the prompt makes no sense on it.
    """
    with workspace.lock:
        session = workspace.require_open().session
        workspace.check(number)  # again: it waited for its turn
        workspace.show("Segmenting")
        before, settings = session.objects, session.settings
        try:
            action.apply(session)
            return state_frame(workspace, have)
        except MedsamError:
            # Accepted by the session but refused by the model: taken back, so that the page and the
            # session agree.
            while session.objects != before and session.undo():
                pass
            session.settings = settings
            raise
        finally:
            workspace.show("")


def prompt_for_page(prompt: AnyPrompt) -> dict[str, Any]:
    """Return a prompt for the page, without voxels."""
    if isinstance(prompt, Paint):
        boxes = [bits for bits, _ in prompt.parts]
        return {
            "kind": "paint",
            "what": prompt.what,
            "locked": prompt.locked,
            "lower": [min(corner) for corner in zip(*(bits.start for bits in boxes), strict=True)],
            "upper": [max(corner) - 1 for corner in zip(*(bits.stop for bits in boxes), strict=True)],
        }
    shown = prompt.model_dump(exclude={"packed"})
    return shown | {"slice_axis": prompt.slice_axis} if isinstance(prompt, Box) else shown


def state_frame(workspace: Workspace, have: list[str], *, messages: list[str] | None = None) -> bytes:
    """Return the session's state, with the masks that the page does not hold."""
    opened = workspace.opened
    assert opened is not None
    session = opened.session
    masks, held = opened.masks(workspace.show), set(have)
    objects: list[dict[str, Any]] = []
    for item in session.objects:
        key, prediction = masks.get(item.id, (None, None))
        unmet = set(prediction.unmet) if prediction is not None else set()
        prompts = [prompt_for_page(prompt) | {"unmet": n in unmet} for n, prompt in enumerate(item.prompts)]
        objects.append(
            {
                "id": item.id,
                "name": item.name,
                "label": item.label,
                "colour": item.colour,
                "prompts": prompts,
                "mask": key,
                "volume_ml": prediction.volume_ml if prediction is not None else 0.0,
                "score": prediction.score if prediction is not None else 0.0,
                "may_overlap": item.may_overlap,
                "given_up_ml": session.given_up(item.id) * session.volume.grid.voxel_volume_ml,
                "locks": [{"axis": axis, "index": index} for axis, index in locked_slices(item)],
            }
        )
    selected = session.selected
    state = {
        "objects": objects,
        "selected": selected.id if selected else None,
        "can_undo": session.can_undo,
        "can_redo": session.can_redo,
        "undo_text": session.undo_text,
        "redo_text": session.redo_text,
        "refine": session.settings.refine,
        # Store the work before answering: what the page shows is safe.
        "case": opened.keep_work(),
    }
    grid = session.volume.grid
    missing = {key: prediction for key, prediction in masks.values() if key not in held}
    parts = [mask_part(key, prediction.patch, grid) for key, prediction in missing.items()]
    notes, opened.notes = opened.notes, []
    return frame({"state": state, "messages": [*notes, *(messages or [])]}, parts)
