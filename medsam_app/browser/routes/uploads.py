"""Routes of uploads: single files, or all files of a folder in one request.

Uploads are limited in size, stored in the workspace's folder under safe names, and deleted if incomplete.
Disk access is slow and therefore runs in threads. The request for a folder is laid out like the server's
frames (protocol/binary.py): the length of a list of names and sizes, the list in JSON, then the bytes of the
files one after another. This way the browser can stream the files from disk, and each block is written on
arrival; the parser of a form would collect the whole request first.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from medsam_app.browser.protocol.allowed_files import UPLOAD_FILES, safe_name
from medsam_app.browser.routes.dependencies import CallerWorkspace, CurrentService
from medsam_app.browser.state.workspace_files import ENDED
from medsam_app.browser.state.workspaces import Workspace
from medsam_app.errors import VolumeError
from medsam_app.io.formats import UPLOADABLE
from medsam_app.io.headers import looks_like_dicom

#: Size of the longest list of a folder's files in bytes.
_LIST_BYTES = 8 << 20
#: Headers that close the connection, so that the browser stops sending an upload that is too large.
_CLOSE_CONNECTION = {"Connection": "close"}


router = APIRouter()


@router.post("/upload")
async def upload_file(
    request: Request, name: str, service: CurrentService, workspace: CallerWorkspace
) -> dict[str, str]:
    """Store a file and return its key."""
    length = request.headers.get("content-length", "")
    key = await receive_file(workspace, name, request.stream(), limit=service.upload_bytes, announced=length)
    return {"upload": key}


@router.post("/upload-folder")
async def upload_folder(
    request: Request, name: str, service: CurrentService, workspace: CallerWorkspace
) -> dict[str, str]:
    """Store the DICOM files of a folder and return its key."""
    return {"upload": await receive_folder(workspace, name, request.stream(), limit=service.upload_bytes)}


class FileEntry(BaseModel):
    """File of a folder: its name, and its size in the request's body in bytes."""

    model_config = ConfigDict(extra="forbid")
    name: str
    size: int = Field(ge=0)


_LIST = TypeAdapter(list[FileEntry])


class Body:
    """Reader of a request's body in parts of known length.

    Args:
        blocks: blocks of the body as they arrive.
    """

    def __init__(self, blocks: AsyncIterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    async def part(self, length: int) -> AsyncGenerator[memoryview, None]:
        """Yield the next `length` bytes, in blocks as they arrive.

        Raises:
            HTTPException: the body ends too early.
        """
        while length:
            if not self._rest:
                block = await anext(self._blocks, None)
                if block is None:
                    raise HTTPException(400, "The upload broke off before it was whole; send it again.")
                self._rest = memoryview(block)
            piece, self._rest = self._rest[:length], self._rest[length:]
            length -= len(piece)
            if piece:
                yield piece

    async def read(self, length: int) -> bytes:
        """Return the next `length` bytes.

        Raises:
            HTTPException: the body ends too early.
        """
        return b"".join([bytes(piece) async for piece in self.part(length)])


async def receive_file(
    workspace: Workspace, name: str, blocks: AsyncIterator[bytes], *, limit: int, announced: str = ""
) -> str:
    """Store a single-file volume and return the key of the upload.

    Args:
        workspace: workspace of the page.
        name: name of the file.
        blocks: content of the file.
        limit: size of the largest file in bytes.
        announced: Content-Length of the request; empty if unknown.

    Raises:
        VolumeError: files with this ending cannot be opened.
        HTTPException: the file is too large, or could not be stored.
    """
    if not name.lower().endswith(UPLOADABLE):
        raise VolumeError(
            f"'{name}' is no volume that can be opened here; choose a file that ends in "
            f"{', '.join(UPLOADABLE)}, or the folder of DICOM slices."
        )
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(name, limit)
    async with _upload_folder(workspace, name) as folder:
        path, received = folder / safe_name(name), 0
        async with _new_file(path) as out:
            async for block in blocks:
                received += len(block)
                if received > limit:
                    raise _too_large(name, limit)
                await run_in_threadpool(out.write, block)
        return workspace.files.add(path, name)


async def receive_folder(workspace: Workspace, name: str, blocks: AsyncIterator[bytes], *, limit: int) -> str:
    """Store the DICOM files of a folder and return the key of the upload.

    Args:
        workspace: workspace of the page.
        name: name of the folder.
        blocks: body of the request.
        limit: largest size of all files together, in bytes.

    Raises:
        HTTPException: the files are too many or too large, the list or the body is damaged, or the files
            could not be stored.
    """
    body = Body(blocks)
    (length,) = struct.unpack("<I", await body.read(4))
    if length > _LIST_BYTES:
        raise _too_many(name)
    try:
        entries = _LIST.validate_json(await body.read(length))
    except ValidationError:
        raise HTTPException(
            422, "The server does not understand this upload; reload the page and try again."
        ) from None
    if not entries:
        raise HTTPException(422, f"'{name}' holds no files; choose the folder that holds the DICOM slices.")
    if len(entries) > UPLOAD_FILES:
        raise _too_many(name)
    if sum(entry.size for entry in entries) > limit:
        raise _too_large(name, limit)
    async with _upload_folder(workspace, name) as parent:
        folder = parent / safe_name(name)
        await run_in_threadpool(folder.mkdir)
        for number, entry in enumerate(entries):
            # Numbered folders: sent names do not decide where files are written, and names may repeat.
            await _write_dicom(folder / f"{number:05d}" / safe_name(entry.name), body, entry.size)
        return workspace.files.add(folder, name)


async def _write_dicom(path: Path, body: Body, size: int) -> None:
    """Write a file if it is DICOM; create an empty one otherwise, so that messages can name what was sent."""
    start = await body.read(min(size, 132))
    is_dicom = looks_like_dicom(start)
    await run_in_threadpool(path.parent.mkdir)
    async with (
        _new_file(path, start if is_dicom else b"") as out,
        aclosing(body.part(size - len(start))) as blocks,
    ):
        async for block in blocks:
            if is_dicom:
                await run_in_threadpool(out.write, block)


@asynccontextmanager
async def _new_file(path: Path, start: bytes = b"") -> AsyncIterator[BinaryIO]:
    """Open a new file that starts with some bytes."""
    out = await run_in_threadpool(path.open, "wb")
    try:
        if start:
            await run_in_threadpool(out.write, start)
        yield out
    finally:
        await asyncio.to_thread(out.close)  # unlike Starlette's, starts even if the request is cancelled


@asynccontextmanager
async def _upload_folder(workspace: Workspace, name: str) -> AsyncIterator[Path]:
    """Yield a new folder for an upload and delete previous uploads; delete the folder if the upload fails."""
    try:
        await run_in_threadpool(workspace.files.drop)
        folder = await run_in_threadpool(workspace.files.new_folder)
        try:
            yield folder
        except BaseException:
            await asyncio.to_thread(workspace.files.discard, folder)
            raise
    except OSError as error:
        if workspace.files.closed:  # the folder was deleted during the upload
            raise HTTPException(401, ENDED) from error
        raise HTTPException(
            507,
            f"'{name}' could not be stored on the server ({error.strerror}); "
            "make room there and send it again.",
        ) from error


def _too_large(name: str, limit: int) -> HTTPException:
    sentence = f"'{name}' is larger than the {limit / 1e9:g} GB this server takes."
    return HTTPException(413, sentence, headers=_CLOSE_CONNECTION)


def _too_many(name: str) -> HTTPException:
    return HTTPException(
        413, f"'{name}' holds more than {UPLOAD_FILES} files; choose the folder of one series or study."
    )
