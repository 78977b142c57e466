"""Uploads: single files, or all files of a folder in one request.

What is sent is bounded, lands under names of our own choosing in the workspace's folder, and is there
whole or not at all. Disks are slow, so whatever touches one runs in a thread. A folder's request begins
like the server's own frames (protocol/binary.py): the length of a list of names and sizes, the list in
JSON, the files' bytes one after the other. So the browser streams them from disk, and here each block is
written as it comes; a form would be gathered by its parser first.
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

#: Bytes of the list of a folder's files.
_LIST_BYTES = 8 << 20
#: Bytes over the limit after which an upload is cut off.
_HANG_UP = {"Connection": "close"}


router = APIRouter()


@router.post("/upload")
async def upload_file(
    request: Request, name: str, service: CurrentService, workspace: CallerWorkspace
) -> dict[str, str]:
    """Store a file and return the key it is opened by."""
    length = request.headers.get("content-length", "")
    key = await receive_file(workspace, name, request.stream(), limit=service.upload_bytes, announced=length)
    return {"upload": key}


@router.post("/upload-folder")
async def upload_folder(
    request: Request, name: str, service: CurrentService, workspace: CallerWorkspace
) -> dict[str, str]:
    """Store the DICOM files of a folder and return the key it is opened by."""
    return {"upload": await receive_folder(workspace, name, request.stream(), limit=service.upload_bytes)}


class FileEntry(BaseModel):
    """A file of a folder: its name, and how many bytes of the body are its own."""

    model_config = ConfigDict(extra="forbid")
    name: str
    size: int = Field(ge=0)


_LIST = TypeAdapter(list[FileEntry])


class Body:
    """Reader of a request's body in parts of known length."""

    def __init__(self, blocks: AsyncIterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    async def part(self, length: int) -> AsyncGenerator[memoryview, None]:
        """The next bytes, in blocks as they come.

        Raises:
            HTTPException: the body ends before.
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
        """Return the next bytes."""
        return b"".join([bytes(piece) async for piece in self.part(length)])


async def receive_file(
    workspace: Workspace, name: str, blocks: AsyncIterator[bytes], *, limit: int, announced: str = ""
) -> str:
    """Store a file that is a volume by itself; the key it is opened by.

    Args:
        limit: most bytes taken.
        announced: the request's Content-Length, if any.

    Raises:
        VolumeError: its ending is none that can be opened.
        HTTPException: it is too large, or could not be stored.
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
    """Store the DICOM files of an uploaded folder; return the key to open it.

    Args:
        limit: most bytes of all files together.

    Raises:
        HTTPException: they are too many or too large, the list or the body is damaged, or they could not
            be stored.
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
            # Numbered: no name that was sent decides where a byte is written, and equal names are kept.
            await _write_dicom(folder / f"{number:05d}" / safe_name(entry.name), body, entry.size)
        return workspace.files.add(folder, name)


async def _write_dicom(path: Path, body: Body, size: int) -> None:
    """Write a file if it is DICOM; others stay empty, so that a message can say what was found."""
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
    """A new file that begins with some bytes."""
    out = await run_in_threadpool(path.open, "wb")
    try:
        if start:
            await run_in_threadpool(out.write, start)
        yield out
    finally:
        await asyncio.to_thread(out.close)  # unlike Starlette's, begun even when the request is cancelled


@asynccontextmanager
async def _upload_folder(workspace: Workspace, name: str) -> AsyncIterator[Path]:
    """A new folder for an upload instead of those before it; gone again when the upload fails."""
    try:
        await run_in_threadpool(workspace.files.drop)
        folder = await run_in_threadpool(workspace.files.new_folder)
        try:
            yield folder
        except BaseException:
            await asyncio.to_thread(workspace.files.discard, folder)
            raise
    except OSError as error:
        if workspace.files.closed:  # and its folder gone
            raise HTTPException(401, ENDED) from error
        raise HTTPException(
            507,
            f"'{name}' could not be stored on the server ({error.strerror}); "
            "make room there and send it again.",
        ) from error


def _too_large(name: str, limit: int) -> HTTPException:
    sentence = f"'{name}' is larger than the {limit / 1e9:g} GB this server takes."
    return HTTPException(413, sentence, headers=_HANG_UP)


def _too_many(name: str) -> HTTPException:
    return HTTPException(
        413, f"'{name}' holds more than {UPLOAD_FILES} files; choose the folder of one series or study."
    )
