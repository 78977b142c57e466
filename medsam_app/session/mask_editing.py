"""Manual editing of an object's mask: brush, lasso, tools, locked slices, merging.

Each edit becomes a `Paint` prompt. Like any other prompt it is one step of the history, is written to prompt
files and can be deleted individually. It never contains locked voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam_app.errors import PromptError, SettingsError
from medsam_app.grid.masks import keep_largest
from medsam_app.grid.patch import Index, Patch
from medsam_app.predict.core.paint_layer import Layer
from medsam_app.prompts.types import Bits, Paint
from medsam_app.session import mask_tools
from medsam_app.session.objects import SegmentedObject
from medsam_app.session.session import Session
from medsam_app.session.strokes import brush_stroke, lasso

Tool = Literal["fill holes", "keep largest", "smooth", "grow", "shrink", "interpolate"]
#: Largest radius of a brush and largest distance of a tool, in mm.
MOST_MM = 100.0
#: Names of the slices perpendicular to the RAS axes.
_PLANES = ("sagittal", "coronal", "axial")


def paint(
    session: Session,
    object_id: str,
    points: Sequence[Sequence[float]],
    *,
    radius: float,
    positive: bool = True,
    axis: int | None = None,
) -> SegmentedObject:
    """Draw on an object's mask with a brush, or erase; see `brush_stroke` for the arguments.

    Raises:
        PromptError: the stroke draws nothing.
        SettingsError: the radius is out of range.
    """
    _check_mm("The brush's radius", radius)
    drawn = brush_stroke(points, radius, session.grid, axis=axis)
    return _draw(session, object_id, drawn, positive, "brush" if positive else "eraser")


def draw_lasso(
    session: Session, object_id: str, points: Sequence[Sequence[float]], *, axis: int, positive: bool = True
) -> SegmentedObject:
    """Fill or erase the inside of a lasso; see `lasso` for the arguments.

    Raises:
        PromptError: the lasso draws nothing.
    """
    drawn = lasso(points, session.grid, axis=axis)
    return _draw(session, object_id, drawn, positive, "lasso" if positive else "lasso, erasing")


def use_tool(
    session: Session,
    object_id: str,
    tool: Tool,
    *,
    mm: float = 1.0,
    axis: int | None = None,
    index: int | None = None,
) -> SegmentedObject:
    """Change an object's mask with a tool of `mask_tools`.

    Args:
        session: session of the object.
        object_id: the object.
        tool: the tool.
        mm: distance in mm, for 'smooth', 'grow' and 'shrink'.
        axis, index: slice to change; the whole mask by default. 'interpolate' needs only the axis
            perpendicular to the slices. Its key slices are the locked slices if there are two or more,
            otherwise all slices that are not empty.

    Raises:
        PromptError: there is no mask, the mask would not change, or it would be empty.
        SettingsError: the distance is out of range.
    """
    _check_mm(f"'{tool}'", mm)
    owner, prediction = session.get(object_id), session.prediction(object_id)
    if prediction is None or not prediction.voxels:
        raise PromptError(f"'{owner.name}' has no mask yet; click inside it or paint it first.")
    reach = {"grow": mm, "smooth": 3 * mm}.get(tool, 0.0)
    padding = np.ceil(reach / session.grid.spacing).astype(int) + 1
    low = _index(np.maximum(np.asarray(prediction.patch.start) - padding, 0))
    high = _index(np.minimum(np.asarray(prediction.patch.stop) + padding, session.grid.shape))
    before = Patch(low, prediction.patch.within((low, high)))
    after = Patch(low, _apply(tool, before, session, owner, mm, axis, index))
    if not after.mask.any():
        raise PromptError(f"Nothing would be left of '{owner.name}'; give fewer millimetres.")
    words = f"{tool} {mm:g} mm" if tool in ("smooth", "grow", "shrink") else tool
    return _change(session, owner, before, after, words)


def _apply(
    tool: Tool,
    before: Patch,
    session: Session,
    owner: SegmentedObject,
    mm: float,
    axis: int | None,
    index: int | None,
) -> NDArray[np.bool_]:
    spacing, mask, start = session.grid.spacing.tolist(), before.mask, before.start
    if tool == "interpolate":
        if axis is None:
            raise PromptError("Interpolation goes along an axis; say which.")
        keys = [position - start[axis] for across, position in locked_slices(owner) if across == axis]
        return mask_tools.interpolate(mask, spacing, axis, keys if len(keys) > 1 else ())
    tools: dict[str, Callable[[NDArray[np.bool_], list[float]], NDArray[np.bool_]]] = {
        "fill holes": lambda mask, _: mask_tools.fill_holes(mask),
        "keep largest": lambda mask, _: keep_largest(mask),
        "smooth": lambda mask, step: mask_tools.smooth(mask, step, mm),
        "grow": lambda mask, step: mask_tools.grow(mask, step, mm),
        "shrink": lambda mask, step: mask_tools.grow(mask, step, -mm),
    }
    if axis is None or index is None:
        return tools[tool](mask, spacing)
    after, position = mask.copy(), index - start[axis]
    if 0 <= position < mask.shape[axis]:
        plane = tuple(position if n == axis else slice(None) for n in range(3))
        after[plane] = tools[tool](mask[plane], [step for n, step in enumerate(spacing) if n != axis])
    return after


def merge(session: Session, object_id: str, other_id: str) -> SegmentedObject:
    """Add the mask of another object and delete that object, as one step of the history.

    Raises:
        PromptError: an object does not exist or has no mask, or both are the same object.
    """
    owner, absorbed, mask, absorbed_mask = _pair(session, object_id, other_id)
    change = _paint(session, owner, absorbed_mask.without(mask), Patch.empty(), f"merge {absorbed.name}")
    return session.absorb(owner.id, absorbed.id, change)


def subtract(session: Session, object_id: str, other_id: str) -> SegmentedObject:
    """Subtract the mask of another object from an object's mask; the other object is unchanged.

    Raises:
        PromptError: see `merge`, or the masks share no voxel.
    """
    owner, subtracted, mask, subtracted_mask = _pair(session, object_id, other_id)
    return _change(session, owner, mask, mask.without(subtracted_mask), f"subtract {subtracted.name}")


def set_lock(session: Session, object_id: str, axis: int, index: int, locked: bool) -> SegmentedObject:
    """Lock a slice of an object in its current state, or unlock it. Locked voxels never change.

    Args:
        session: session of the object.
        object_id: the object.
        axis, index: voxel axis perpendicular to the slice, and index along it.
        locked: whether to lock or unlock.

    Raises:
        PromptError: there is no such slice.
    """
    grid, owner = session.grid, session.get(object_id)
    if not (0 <= axis < 3 and 0 <= index < grid.shape[axis]):
        raise PromptError(f"There is no slice {index} across axis {axis} in an image of shape {grid.shape}.")
    locks = [
        n
        for n, prompt in enumerate(owner.prompts)
        if isinstance(prompt, Paint) and slice_of_lock(prompt) == (axis, index)
    ]
    if locked == bool(locks):
        return owner
    if not locked:
        return session.delete_prompt(object_id, locks[-1])
    first, stop = [0, 0, 0], list(grid.shape)
    first[axis], stop[axis] = index, index + 1
    start, prediction = _index(first), session.prediction(object_id)
    mask = (Patch.empty() if prediction is None else prediction.patch).within((start, _index(stop)))
    what = f"lock {slice_words(session, axis, index)}"
    parts = [Bits.from_patch(Patch(start, part), grid.shape) for part in (mask, ~mask)]
    return session.add_prompt(object_id, Paint(what=what, inside=parts[0], outside=parts[1], locked=True))


def slice_words(session: Session, axis: int, index: int) -> str:
    """Return the name and number of a slice as the page shows them: 'axial slice 13'."""
    ras = session.grid.ras
    plane = ras.axes.index(axis)
    number = ras.shape[plane] - index if ras.flips[plane] else index + 1
    return f"{_PLANES[plane]} slice {number}"


def slice_of_lock(prompt: Paint) -> tuple[int, int] | None:
    """Return the axis and index of the slice that a prompt locks, or None."""
    if not prompt.locked:
        return None
    boxes = [bits for bits, _ in prompt.parts]
    low, high = np.min([b.start for b in boxes], axis=0), np.max([b.stop for b in boxes], axis=0)
    thin = [n for n in range(3) if high[n] - low[n] == 1 and boxes[0].shape[n] > 1]
    return (thin[0], int(low[thin[0]])) if thin else None


def locked_slices(owner: SegmentedObject) -> list[tuple[int, int]]:
    """Return the axis and index of each locked slice of an object, in order."""
    slices = {slice_of_lock(prompt) for prompt in owner.prompts if isinstance(prompt, Paint)}
    return sorted(locked for locked in slices if locked is not None)


def _draw(session: Session, object_id: str, drawn: Patch, positive: bool, what: str) -> SegmentedObject:
    owner, nothing = session.get(object_id), Patch.empty()
    if not positive and session.prediction(object_id) is None:
        raise PromptError(f"'{owner.name}' has no mask yet; there is nothing to erase.")
    prompt = _paint(session, owner, *((drawn, nothing) if positive else (nothing, drawn)), what)
    if prompt is None:
        raise PromptError(f"All that was drawn on is locked for '{owner.name}'; unlock the slice first.")
    return session.add_prompt(object_id, prompt)


def _change(
    session: Session, owner: SegmentedObject, before: Patch, after: Patch, what: str
) -> SegmentedObject:
    prompt = _paint(session, owner, after.without(before), before.without(after), what)
    if prompt is None and before.difference(after) is not None:
        raise PromptError(
            f"All that would change of '{owner.name}' ({what}) is locked; unlock the slice first."
        )
    if prompt is None:
        raise PromptError(f"There is nothing to change: the mask of '{owner.name}' stays as it is ({what}).")
    return session.add_prompt(owner.id, prompt)


def _paint(
    session: Session, owner: SegmentedObject, inside: Patch, outside: Patch, what: str
) -> Paint | None:
    """Return the voxels as a prompt, without locked voxels; None if all are locked."""
    shape = session.grid.shape
    locks = [prompt for prompt in owner.prompts if isinstance(prompt, Paint) and prompt.locked]
    locked = Layer(locks, shape).locked
    parts = [Bits.from_patch(part.without(locked), shape) for part in (inside, outside)]
    if parts == [None, None]:
        return None
    return Paint(what=what[:60], inside=parts[0], outside=parts[1])


def _pair(
    session: Session, object_id: str, other_id: str
) -> tuple[SegmentedObject, SegmentedObject, Patch, Patch]:
    """Return two objects and their masks."""
    owner, other = session.get(object_id), session.get(other_id)
    if owner.id == other.id:
        raise PromptError(f"'{owner.name}' cannot be combined with itself; choose another object.")
    masks = []
    for item in (owner, other):
        prediction = session.prediction(item.id)
        if prediction is None or not prediction.voxels:
            raise PromptError(f"'{item.name}' has no mask yet; click inside it or paint it first.")
        masks.append(prediction.patch)
    return owner, other, masks[0], masks[1]


def _index(values: Sequence[int] | NDArray[np.int_]) -> Index:
    i, j, k = (int(value) for value in values)
    return i, j, k


def _check_mm(what: str, mm: float) -> None:
    if not 0 < mm <= MOST_MM:
        raise SettingsError(f"{what} goes from above 0 to {MOST_MM:g} mm; got {mm:g}.")
