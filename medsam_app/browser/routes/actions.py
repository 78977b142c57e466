"""Actions of a page on its session, as pydantic models, and the resulting state."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medsam_app.browser.protocol.binary import frame, mask_part
from medsam_app.browser.routes.edit_actions import AnyAction, EditAction
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import MedsamError
from medsam_app.prompts.types import AnyPrompt, Box, Paint, Prompt, can_choose
from medsam_app.session.mask_editing import locked_slices
from medsam_app.session.session import Session


class Look(AnyAction):
    """Action that changes nothing and requests the state only."""

    do: Literal["look"]


class AddPrompt(AnyAction):
    """Action that adds a click or a box to the selected object; creates an object if none is selected."""

    do: Literal["add_prompt"]
    prompt: Prompt

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        owner = session.selected or session.add_object()
        session.add_prompt(owner.id, self.prompt)


class Choose(AnyAction):
    """Action that chooses the next larger or smaller mask for the first prompt of an object."""

    do: Literal["choose"]
    object: str
    step: Literal[-1, 1]

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.choose_next(self.object, self.step)


class ReplacePrompt(AnyAction):
    """Action that replaces a prompt: a resized box or a moved point."""

    do: Literal["replace_prompt"]
    object: str
    index: int
    prompt: Prompt

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.replace_prompt(self.object, self.index, self.prompt)


class DeletePrompt(AnyAction):
    """Action that deletes a prompt of an object."""

    do: Literal["delete_prompt"]
    object: str
    index: int

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.delete_prompt(self.object, self.index)


class Clear(AnyAction):
    """Action that deletes all prompts of an object."""

    do: Literal["clear"]
    object: str

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.clear(self.object)


class AddObject(AnyAction):
    """Action that adds an object."""

    do: Literal["add_object"]
    name: str | None = None
    label: int | None = None
    colour: str | None = None
    may_overlap: bool = True

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.add_object(self.name, label=self.label, colour=self.colour, may_overlap=self.may_overlap)


class ChangeObject(AnyAction):
    """Action that changes the name, label value, colour or overlap setting of an object."""

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
    """Action that deletes an object."""

    do: Literal["delete_object"]
    object: str

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.delete_object(self.object)


class Select(AnyAction):
    """Action that selects an object."""

    do: Literal["select"]
    object: str

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.select(self.object)


class Undo(AnyAction):
    """Action that undoes the last step."""

    do: Literal["undo"]

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.undo()


class Redo(AnyAction):
    """Action that redoes the step that was undone last."""

    do: Literal["redo"]

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.redo()


class Refine(AnyAction):
    """Action that sets whether large objects are refined in tiles or segmented in a single window."""

    do: Literal["refine"]
    on: bool

    def apply(self, session: Session) -> None:
        """Apply the action to a session."""
        session.settings = replace(session.settings, refine=self.on)


Action = Annotated[
    Look | AddPrompt | Choose | ReplacePrompt | DeletePrompt | Clear | AddObject | ChangeObject
    | DeleteObject | Select | Undo | Redo | Refine | EditAction,
    Field(discriminator="do"),
]  # fmt: skip


class ActionRequest(BaseModel):
    """Action, and keys of the masks that the page has cached."""

    model_config = ConfigDict(extra="forbid")
    action: Action
    have: list[str] = Field(default_factory=list, max_length=100_000)


def perform(workspace: Workspace, action: Action, have: list[str], *, number: int | None = None) -> bytes:
    """Apply an action and return the frame of the new state; on an error, change nothing.

    Args:
        workspace: workspace of the page.
        action: action to apply.
        have: keys of the masks that the page has cached.
        number: number of the volume that the action is for; None for the open one.

    Raises:
        HTTPException: another volume has been opened (409).
        PromptError: no volume is open, or the prompt is not valid for it.
    """
    with workspace.lock:
        session = workspace.require_open().session
        workspace.check(number)  # again, since the volume may have changed while the action was queued
        workspace.show("Segmenting")
        before, settings = session.objects, session.settings
        try:
            action.apply(session)
            return state_frame(workspace, have)
        except MedsamError:
            # The session has accepted the action but the model refuses it. Undo it, so that the session
            # agrees with the page.
            while session.objects != before and session.undo():
                pass
            session.settings = settings
            raise
        finally:
            workspace.show("")


def prompt_for_page(prompt: AnyPrompt) -> dict[str, Any]:
    """Return the JSON values of a prompt for the page, without voxels."""
    if isinstance(prompt, Paint):
        boxes = [box for box, _ in prompt.parts]
        return {
            "kind": "paint",
            "what": prompt.what,
            "locked": prompt.locked,
            "lower": [min(indices) for indices in zip(*(box.start for box in boxes), strict=True)],
            "upper": [max(indices) - 1 for indices in zip(*(box.stop for box in boxes), strict=True)],
        }
    values = prompt.model_dump(exclude={"packed"})
    return values | {"slice_axis": prompt.slice_axis} if isinstance(prompt, Box) else values


def state_frame(workspace: Workspace, have: list[str], *, messages: list[str] | None = None) -> bytes:
    """Return the frame of the session's state and of the masks that the page has not cached.

    Args:
        workspace: workspace of the page, with an open volume.
        have: keys of the masks that the page has cached.
        messages: sentences for the page, in addition to the notes of the volume.
    """
    opened = workspace.opened
    assert opened is not None
    session = opened.session
    masks, cached = opened.masks(workspace.show), set(have)
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
                "can_choose": can_choose(item.prompts),
                "choice": session.choice(item.id),
                "may_overlap": item.may_overlap,
                "given_up_ml": session.subtracted_voxels(item.id) * session.volume.grid.voxel_volume_ml,
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
        # Store the work before answering, so that everything the page shows is saved.
        "case": opened.keep_work(),
    }
    grid = session.volume.grid
    missing = {key: prediction for key, prediction in masks.values() if key not in cached}
    parts = [mask_part(key, prediction.patch, grid) for key, prediction in missing.items()]
    notes, opened.notes = opened.notes, []
    return frame({"state": state, "messages": [*notes, *(messages or [])]}, parts)
