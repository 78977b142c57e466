"""Files that scripts send and fetch through Gradio: one folder of a server, bounded and swept.

Gradio bounds each file, writes it under a name that follows from its content and forgets about it. Here the
whole request must say how long it is and be within the bound, the folder has one too, and what is an hour
old goes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from medsam_app.errors import VolumeError

#: Seconds that a file stays, and how many largest uploads fit at a time.
KEPT_SECONDS = 3600.0
LARGEST_AT_A_TIME = 4
#: What a form adds to its files.
_FORM_BYTES = 1 << 20


class Exchange:
    """A folder for files under way, gone with the server.

    Args:
        largest: bytes of the largest upload.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.folder = Path(tempfile.mkdtemp(prefix="medsam-api-")).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)  # where Gradio puts files, read when a page is built

    @property
    def nbytes(self) -> int:
        """Bytes of all files in it."""
        return sum(path.stat().st_size for path in self._files())

    def new(self, name: str) -> Path:
        """A path for a file of that name, in a folder of its own."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / name

    def sent(self, path: str) -> Path:
        """A file that was sent.

        Raises:
            VolumeError: the path is not that of such a file.
        """
        try:
            file = Path(path).resolve()
            known = file.is_relative_to(self.folder) and file.is_file()
        except (OSError, ValueError):
            known = False
        if not known:
            raise VolumeError(
                "That file was not sent to this server, or is not there any more; send it again."
            )
        return file

    def sweep(self) -> None:
        """Delete old files."""
        oldest = time.time() - KEPT_SECONDS
        for path in self._files():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def refusal(self, announced: str) -> PlainTextResponse | None:
        """Why a request of that Content-Length may not begin, None when it may."""
        if not announced.isdigit():
            return PlainTextResponse("An upload must say how long it is (Content-Length).", 411)
        if int(announced) > self.largest + _FORM_BYTES:
            return PlainTextResponse(
                f"This upload is larger than the {self.largest / 1e9:g} GB this server takes.", 413
            )
        self.sweep()
        if self.nbytes + int(announced) > LARGEST_AT_A_TIME * self.largest + _FORM_BYTES:
            return PlainTextResponse("Too many uploads wait to be opened; send this one later.", 507)
        return None

    def close(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if os.environ.get("GRADIO_TEMP_DIR") == str(self.folder):
            del os.environ["GRADIO_TEMP_DIR"]

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]


class UploadGate:
    """ASGI middleware that asks an `Exchange` before Gradio's upload begins."""

    def __init__(self, app: ASGIApp, *, exchange: Exchange) -> None:
        self.app = app
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse uploads to Gradio that come without a script's session."""
        if scope["type"] == "http" and scope["method"] == "POST" and _is_gradios_upload(scope["path"]):
            refusal = self.exchange.refusal(Headers(scope=scope).get("content-length", ""))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_gradios_upload(path: str) -> bool:
    return path.rstrip("/").endswith("/upload") and not path.startswith("/medsam/")
