"""Comparison of a page's objects with a mask file on the same grid: numbers and masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.protocol.binary import frame, mask_part
from medsam_app.browser.protocol.request_bodies import parse_body, read_body
from medsam_app.browser.routes.answers import binary
from medsam_app.browser.routes.dependencies import CallerWorkspace, CurrentService
from medsam_app.browser.state.comparison import Reference
from medsam_app.browser.state.service import Service
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import PromptError, VolumeError
from medsam_app.grid.geometry import Grid
from medsam_app.grid.masks import dice
from medsam_app.grid.patch import Patch, enclosing_box
from medsam_app.io.loading import load_mask
from medsam_app.measure.surface_distances import surface_distances, usual_tolerance

#: Labels of a file that are compared, at most.
MOST_LABELS = 256
_REQUEST_BYTES = 4 << 20

router = APIRouter()


class MaskSource(BaseModel):
    """A mask file to compare with: of a folder of the server or an upload."""

    model_config = ConfigDict(extra="forbid")
    source: Literal["folder", "upload"]
    root: int = 0
    path: str = ""
    upload: str = ""


class ComparisonRequest(BaseModel):
    """Request for a comparison: with a new file, or with the previous one.

    Attributes:
        tolerance_mm: by which surfaces may be apart and still agree; None for the largest side of a voxel.
        have: keys of the other file's masks that the page holds.
    """

    model_config = ConfigDict(extra="forbid")
    other: MaskSource | None = None
    tolerance_mm: float | None = Field(None, gt=0, le=1000)
    have: list[str] = Field(default_factory=list, max_length=100_000)


@router.post("/compare")
async def compare(request: Request, service: CurrentService, workspace: CallerWorkspace) -> Response:
    """Compare the objects with a mask file; see `compared`."""
    body = parse_body(ComparisonRequest, await read_body(request, _REQUEST_BYTES))

    def work() -> bytes:
        if body.other is not None:
            read_reference(workspace, service, **body.other.model_dump())
        return compared(workspace, tolerance=body.tolerance_mm, have=set(body.have))

    return binary(await run_in_threadpool(work))


@router.delete("/compare")
def forget(workspace: CallerWorkspace) -> dict[str, bool]:
    """Forget the mask file."""
    opened = workspace.opened
    if opened is not None:
        opened.reference = None
    return {"forgotten": True}


def read_reference(
    workspace: Workspace, service: Service, *, source: str, root: int, path: str, upload: str
) -> None:
    """Read a mask to compare with, in place of the one before.

    Raises:
        PromptError: no volume is open.
        VolumeError: it cannot be read, or holds no mask. GridMismatch: it lies on another grid.
    """
    with workspace.lock:
        opened = workspace.require_open()
        volume, before = opened.volume, opened.reference
    workspace.show("Reading the mask")
    try:
        where = {"source": source, "root": root, "path": path, "upload": upload}
        with service.readers, service.file(workspace, **where) as (file, name):  # type: ignore[arg-type]
            labels = load_mask(file, volume.grid)
    finally:
        workspace.show("")
        if source == "upload":
            workspace.files.drop(upload)
    values = [int(value) for value in np.unique(labels) if value]
    if not values or len(values) > MOST_LABELS:
        what = f"{len(values)} labels; at most {MOST_LABELS} are compared" if values else "no label but 0"
        raise VolumeError(f"The mask '{name}' has {what}; give another file.")
    parts = dict(_parts(labels, values))
    with workspace.lock:
        opened = workspace.require_open()
        if opened.volume is volume:
            opened.reference = Reference(before.number + 1 if before else 1, name, parts)


def _parts(labels: NDArray, values: list[int]) -> Iterator[tuple[int, Patch]]:
    """Each label and its mask."""
    if values[-1] >= 2**16:  # what looks for all boxes at once keeps a list of all values
        yield from ((value, Patch.from_mask(labels == value)) for value in values)
        return
    boxes = ndimage.find_objects(labels.astype(np.uint16, copy=False))
    for value in values:
        box = boxes[value - 1]
        i, j, k = (part.start for part in box)
        yield value, Patch((i, j, k), labels[box] == value)


def compared(workspace: Workspace, *, tolerance: float | None, have: set[str]) -> bytes:
    """Return a frame with the comparison.

    Its header has the file's name, the tolerance, and one row per object and label; then follow the other
    masks that the page does not hold.

    An object is compared with the label of its value. A file of one label only is compared with the selected
    object, whatever the value: many programs write 1, or 255, for all.

    Raises:
        PromptError: no volume is open, or no file was given.
    """
    with workspace.lock:
        opened = workspace.require_open()
        session, reference = opened.session, opened.reference
        if reference is None:
            raise PromptError("There is no mask to compare with; choose a file first.")
        objects, masks, selected = session.objects, opened.masks(workspace.show), session.selected
        grid = session.volume.grid
    within = usual_tolerance(grid.spacing) if tolerance is None else tolerance
    only_label = next(iter(reference.parts)) if len(reference.parts) == 1 else None
    rows: list[dict[str, Any]] = []
    matched: set[int] = set()
    for item in objects:
        theirs = item.label if item.label in reference.parts else None
        if only_label is not None:
            theirs = only_label if selected is not None and item.id == selected.id else None
        if theirs is not None:
            matched.add(theirs)
        key, prediction = masks.get(item.id, (None, None))
        ours = None if prediction is None else prediction.patch
        row: dict[str, Any] = {"object": item.id, "name": item.name, "label": theirs, "mask": key}
        rows.append(row | _row(ours, reference.parts.get(theirs or 0), grid, within))
    for value, part in reference.parts.items():
        if value not in matched:
            row = {"object": None, "name": f"label {value}", "label": value, "mask": None}
            rows.append(row | _row(None, part, grid, within))
    keys = {value: f"c{reference.number}l{value}" for value in reference.parts}
    for row in rows:
        row["theirs"] = keys.get(row["label"])
    parts = [mask_part(key, reference.parts[value], grid) for value, key in keys.items() if key not in have]
    return frame({"name": reference.name, "tolerance_mm": within, "rows": rows}, parts)


def _row(ours: Patch | None, theirs: Patch | None, grid: Grid, tolerance: float) -> dict[str, Any]:
    """Return the volumes of two masks, and their agreement if both are present."""
    volumes = {
        name: None if part is None else float(part.voxels * grid.voxel_volume_ml)
        for name, part in (("ours_ml", ours), ("theirs_ml", theirs))
    }
    if ours is None or theirs is None:
        return volumes | {"dice": None, "surface_dice": None, "hd95_mm": None}
    box = enclosing_box(ours.corners, theirs.corners)
    a, b = (patch.within(box) for patch in (ours, theirs))
    distances = surface_distances(a, b, spacing=grid.spacing, tolerance=tolerance)
    return volumes | {"dice": dice(a, b), "surface_dice": distances.surface_dice, "hd95_mm": distances.hd95}
