"""Bounded folder for files that scripts send and fetch through Gradio.

Gradio limits the size of each file, names it after its content, and never deletes it. Here, the whole request
must announce its length and keep within the limit, the folder as a whole has a limit as well, and files older
than an hour are deleted.
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

#: Age in seconds after which a file is deleted.
MAX_AGE_SECONDS = 3600.0
#: Number of uploads of the largest size that fit in the folder.
MAX_LARGEST_UPLOADS = 4
#: Allowance for the form fields around the files, in bytes.
_FORM_BYTES = 1 << 20


class Exchange:
    """Temporary folder for transferred files, deleted when the server stops.

    Args:
        largest: size of the largest upload in bytes.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.folder = Path(tempfile.mkdtemp(prefix="medsam-api-")).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)  # Gradio reads this when a page is built

    @property
    def nbytes(self) -> int:
        """Size of all files in the folder in bytes."""
        return sum(path.stat().st_size for path in self._files())

    def new_path(self, name: str) -> Path:
        """Return a path for a file with this name, in a new folder."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / name

    def sent_file(self, path: str) -> Path:
        """Return the path of a file that a script has sent.

        Raises:
            VolumeError: the path is not that of a file in the folder.
        """
        try:
            file = Path(path).resolve()
            was_sent = file.is_relative_to(self.folder) and file.is_file()
        except (OSError, ValueError):
            was_sent = False
        if not was_sent:
            raise VolumeError(
                "That file was not sent to this server, or is not there any more; send it again."
            )
        return file

    def sweep(self) -> None:
        """Delete old files."""
        oldest = time.time() - MAX_AGE_SECONDS
        for path in self._files():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def refusal(self, announced: str) -> PlainTextResponse | None:
        """Return the response that refuses an upload of this Content-Length; None if it is allowed."""
        if not announced.isdigit():
            return PlainTextResponse("An upload must say how long it is (Content-Length).", 411)
        if int(announced) > self.largest + _FORM_BYTES:
            return PlainTextResponse(
                f"This upload is larger than the {self.largest / 1e9:g} GB this server takes.", 413
            )
        self.sweep()
        if self.nbytes + int(announced) > MAX_LARGEST_UPLOADS * self.largest + _FORM_BYTES:
            return PlainTextResponse("Too many uploads wait to be opened; send this one later.", 507)
        return None

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if os.environ.get("GRADIO_TEMP_DIR") == str(self.folder):
            del os.environ["GRADIO_TEMP_DIR"]

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]


class UploadGate:
    """ASGI middleware that refuses uploads to Gradio which an `Exchange` has no room for."""

    def __init__(self, app: ASGIApp, *, exchange: Exchange) -> None:
        self.app = app
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; refuse an upload to Gradio of unknown or excessive length."""
        if scope["type"] == "http" and scope["method"] == "POST" and _is_gradio_upload(scope["path"]):
            refusal = self.exchange.refusal(Headers(scope=scope).get("content-length", ""))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_gradio_upload(path: str) -> bool:
    return path.rstrip("/").endswith("/upload") and not path.startswith("/medsam/")
