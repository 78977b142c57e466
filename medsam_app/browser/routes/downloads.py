"""Routes of downloads: masks, prompts, measurements, and a case as one .zip.

Files are written in the workspace's folder by the common functions, which verify what they have written, and
then sent.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.protocol.request_bodies import read_body
from medsam_app.browser.routes.dependencies import CallerWorkspace
from medsam_app.browser.state.open_volume import OpenVolume
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import SaveError
from medsam_app.io.dicom.seg_source import read_source
from medsam_app.io.mask_formats import ending_of, save_labels
from medsam_app.measure.measurements import Measurement, area_table, measure, object_table
from medsam_app.session.case_zip import save_case
from medsam_app.session.prompt_file import SUFFIX, save_prompt_file
from medsam_app.session.session import Session

#: Size of the largest screenshot in a case, in bytes.
SCREENSHOT_BYTES = 32 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
#: Largest number of cached measurements per open volume.
_MOST_CACHED = 64


router = APIRouter()


@router.get("/mask")
def mask(workspace: CallerWorkspace, format: str = "nifti") -> Response:
    """Download the label map."""
    return _download(workspace, f"_mask{ending_of(format)}", _write_mask)


@router.get("/segmentation")
def segmentation(workspace: CallerWorkspace) -> dict[str, str]:
    """Return why no DICOM segmentation can be saved; empty if one can be saved."""
    try:
        read_source(workspace.require_open().volume)
    except SaveError as error:
        return {"refused": str(error)}
    return {"refused": ""}


@router.get("/prompts")
def prompts(workspace: CallerWorkspace) -> Response:
    """Download the prompt file."""
    return _download(workspace, SUFFIX, _write_prompts)


@router.get("/measurements")
def measurements(object: str, workspace: CallerWorkspace) -> dict[str, Any]:
    """Return the measurement of an object; null if it has no mask."""
    measurement = measure_objects(workspace, object).get(object)
    return {
        "measurement": None if measurement is None else asdict(measurement),
        "unit": unit_of(workspace),
    }


@router.get("/measurements.csv")
def table(workspace: CallerWorkspace, what: str = "objects") -> Response:
    """Download the measurements of all objects, or their areas per slice."""
    if what == "areas":
        return _download(workspace, "_areas.csv", _write_areas)
    return _download(workspace, "_measurements.csv", _write_table)


@router.post("/case")
async def case(request: Request, workspace: CallerWorkspace, format: str = "nifti") -> Response:
    """Download the case as .zip, with the screenshot from the request's body if there is one."""
    screenshot = await read_body(request, SCREENSHOT_BYTES)
    if screenshot and not screenshot.startswith(_PNG):
        raise HTTPException(422, "A screenshot is sent as PNG; this is none.")

    def write(workspace: Workspace, opened: OpenVolume, path: Path) -> None:
        save_case(
            opened.session, path, name=opened.name, format=format, unit=opened.unit,
            measured=measure_objects(workspace), screenshot=screenshot or None,
        )  # fmt: skip

    return await run_in_threadpool(_download, workspace, ".zip", write)


def measure_objects(workspace: Workspace, only: str | None = None) -> dict[str, Measurement]:
    """Return the measurements of objects that have a mask, by id; each mask is measured once.

    Args:
        workspace: workspace of the page.
        only: id of the only object to measure; None for all.

    Raises:
        PromptError: no volume is open.
    """
    with workspace.lock:
        opened = workspace.require_open()
        volume, masks = opened.volume, opened.masks(workspace.show)
    result, cache = {}, opened.measurements
    for owner, (key, prediction) in masks.items():
        if only in (None, owner):
            if key not in cache:
                cache[key] = measure(prediction.patch, volume.array, volume.grid)
            result[owner] = cache[key]
    for key in list(cache)[:-_MOST_CACHED]:
        cache.pop(key, None)
    return result


def unit_of(workspace: Workspace) -> str:
    """Return the unit of the intensities; empty if unknown."""
    opened = workspace.opened
    return "" if opened is None else opened.unit


def _write_mask(workspace: Workspace, opened: OpenVolume, path: Path) -> None:
    session = opened.session
    colours = {item.label: item.colour for item in session.objects}
    save_labels(session.label_map(), session.volume, path, names=session.label_names, colours=colours)


def _write_prompts(workspace: Workspace, opened: OpenVolume, path: Path) -> None:
    save_prompt_file(opened.session, path)


def _write_table(workspace: Workspace, opened: OpenVolume, path: Path) -> None:
    path.write_text(object_table(_rows(workspace, opened.session), unit=opened.unit), encoding="utf-8")


def _write_areas(workspace: Workspace, opened: OpenVolume, path: Path) -> None:
    path.write_text(area_table(_rows(workspace, opened.session)), encoding="utf-8")


def _rows(workspace: Workspace, session: Session) -> list[tuple[int, str, Measurement]]:
    measurements = measure_objects(workspace)
    return [
        (item.label, item.name, measurements[item.id]) for item in session.objects if item.id in measurements
    ]


def _download(
    workspace: Workspace, suffix: str, write: Callable[[Workspace, OpenVolume, Path], object]
) -> Response:
    """Write a file in the workspace's folder and return it as a download.

    Args:
        workspace: workspace of the page.
        suffix: end of the file name, after the name of the volume.
        write: function that writes the file for the open volume to a path.

    Raises:
        PromptError: no volume is open.
        SaveError: the file cannot be written.
    """
    with workspace.lock:
        opened = workspace.require_open()
        name = f"{opened.name}{suffix}"
        folder = Path(tempfile.mkdtemp(prefix="out-", dir=workspace.files.folder))
        path = folder / f"saved{suffix}"  # the volume's name may be too long or not valid
        try:
            write(workspace, opened, path)
            body = path.read_bytes()
        except OSError as error:
            raise SaveError(
                f"'{name}' could not be written ({error.strerror}); make room on the server."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Response(
        body,
        media_type="application/octet-stream",
        headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"},
    )
