"""Routes of the comparison of objects with a mask file on the same grid."""

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

#: Largest number of labels in a file that is compared.
MOST_LABELS = 256
_REQUEST_BYTES = 4 << 20

router = APIRouter()


class MaskSource(BaseModel):
    """Mask file to compare with: in a folder on the server, or an upload."""

    model_config = ConfigDict(extra="forbid")
    source: Literal["folder", "upload"]
    root: int = 0
    path: str = ""
    upload: str = ""


class ComparisonRequest(BaseModel):
    """Request for a comparison.

    Attributes:
        other: mask file to compare with; None for the previous one.
        tolerance_mm: distance in mm up to which surfaces agree; None for the largest voxel size.
        have: keys of the file's masks that the page has cached.
    """

    model_config = ConfigDict(extra="forbid")
    other: MaskSource | None = None
    tolerance_mm: float | None = Field(None, gt=0, le=1000)
    have: list[str] = Field(default_factory=list, max_length=100_000)


@router.post("/compare")
async def compare(request: Request, service: CurrentService, workspace: CallerWorkspace) -> Response:
    """Compare the objects with a mask file; see `comparison_frame`."""
    body = parse_body(ComparisonRequest, await read_body(request, _REQUEST_BYTES))

    def work() -> bytes:
        if body.other is not None:
            read_reference(workspace, service, **body.other.model_dump())
        return comparison_frame(workspace, tolerance=body.tolerance_mm, have=set(body.have))

    return binary(await run_in_threadpool(work))


@router.delete("/compare")
def forget(workspace: CallerWorkspace) -> dict[str, bool]:
    """End the comparison with the mask file."""
    opened = workspace.opened
    if opened is not None:
        opened.reference = None
    return {"forgotten": True}


def read_reference(
    workspace: Workspace, service: Service, *, source: str, root: int, path: str, upload: str
) -> None:
    """Read a mask file to compare with, in place of the previous one.

    Args:
        workspace: workspace of the page.
        service: service of the server.
        source: 'folder' or 'upload'.
        root: index of the root of a file in a folder.
        path: path of the file relative to the root.
        upload: key of an upload, which is deleted afterwards.

    Raises:
        PromptError: no volume is open.
        VolumeError: the file cannot be read, or contains no mask or too many labels.
        GridMismatch: the mask is on another grid.
    """
    with workspace.lock:
        opened = workspace.require_open()
        volume, previous = opened.volume, opened.reference
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
        problem = f"{len(values)} labels; at most {MOST_LABELS} are compared" if values else "no label but 0"
        raise VolumeError(f"The mask '{name}' has {problem}; give another file.")
    parts = dict(_parts(labels, values))
    with workspace.lock:
        opened = workspace.require_open()
        if opened.volume is volume:
            opened.reference = Reference(previous.number + 1 if previous else 1, name, parts)


def _parts(labels: NDArray, values: list[int]) -> Iterator[tuple[int, Patch]]:
    """Yield each label value and its mask."""
    if values[-1] >= 2**16:  # `find_objects` would return a list with one entry per possible value
        yield from ((value, Patch.from_mask(labels == value)) for value in values)
        return
    boxes = ndimage.find_objects(labels.astype(np.uint16, copy=False))
    for value in values:
        box = boxes[value - 1]
        i, j, k = (part.start for part in box)
        yield value, Patch((i, j, k), labels[box] == value)


def comparison_frame(workspace: Workspace, *, tolerance: float | None, have: set[str]) -> bytes:
    """Return a frame with the comparison.

    The header contains the name of the file, the tolerance, and one row per object and label. It is followed
    by the masks of the file that the page has not cached.

    An object is compared with the label that has the object's value. A file with a single label is compared
    with the selected object, whatever the value, because many programs always write 1 or 255.

    Args:
        workspace: workspace of the page.
        tolerance: distance in mm up to which surfaces agree; None for the largest voxel size.
        have: keys of the file's masks that the page has cached.

    Raises:
        PromptError: no volume is open, or no mask file has been read.
    """
    with workspace.lock:
        opened = workspace.require_open()
        session, reference = opened.session, opened.reference
        if reference is None:
            raise PromptError("There is no mask to compare with; choose a file first.")
        objects, masks, selected = session.objects, opened.masks(workspace.show), session.selected
        grid = session.volume.grid
    tolerance = usual_tolerance(grid.spacing) if tolerance is None else tolerance
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
        rows.append(row | _row(ours, reference.parts.get(theirs or 0), grid, tolerance))
    for value, part in reference.parts.items():
        if value not in matched:
            row = {"object": None, "name": f"label {value}", "label": value, "mask": None}
            rows.append(row | _row(None, part, grid, tolerance))
    keys = {value: f"c{reference.number}l{value}" for value in reference.parts}
    for row in rows:
        row["theirs"] = keys.get(row["label"])
    parts = [mask_part(key, reference.parts[value], grid) for value, key in keys.items() if key not in have]
    return frame({"name": reference.name, "tolerance_mm": tolerance, "rows": rows}, parts)


def _row(ours: Patch | None, theirs: Patch | None, grid: Grid, tolerance: float) -> dict[str, Any]:
    """Return the volumes of two masks in ml, and their agreement if both exist."""
    volumes = {
        name: None if part is None else float(part.voxels * grid.voxel_volume_ml)
        for name, part in (("ours_ml", ours), ("theirs_ml", theirs))
    }
    if ours is None or theirs is None:
        return volumes | {"dice": None, "surface_dice": None, "hd95_mm": None}
    box = enclosing_box(ours.corners, theirs.corners)
    our_mask, their_mask = (patch.within(box) for patch in (ours, theirs))
    distances = surface_distances(our_mask, their_mask, spacing=grid.spacing, tolerance=tolerance)
    return volumes | {
        "dice": dice(our_mask, their_mask),
        "surface_dice": distances.surface_dice,
        "hd95_mm": distances.hd95,
    }
