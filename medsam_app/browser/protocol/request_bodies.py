"""Bodies of requests, refused as soon as they are too large."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, ValidationError

#: Largest body of an action, in bytes.
ACTION_BYTES = 8 << 20


class Source(BaseModel):
    """Image to open: the sample, the server's image, a file of a folder, or an upload."""

    model_config = ConfigDict(extra="forbid")
    source: Literal["sample", "start", "folder", "upload"]
    root: int = 0
    path: str = ""
    upload: str = ""
    series: str | None = None
    frame: int | None = None
    channel: int | None = None

    @property
    def place(self) -> tuple[str, int, str, str]:
        """Place of the file, without the choice of series, frame or channel."""
        return self.source, self.root, self.path, self.upload


async def read_body(request: Request, most: int) -> bytes:
    """A request's body of at most this many bytes."""
    parts, size = [], 0
    async for block in request.stream():
        size += len(block)
        if size > most:
            raise HTTPException(413, f"This request is larger than the {most >> 20} MiB allowed.")
        parts.append(block)
    return b"".join(parts)


def parse_body(kind: type[Any], body: bytes) -> Any:
    """Parse a JSON body as a pydantic model; turn its problems into a sentence."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f"{where}: {first['msg']}"
        raise HTTPException(
            422, f"The server does not understand this request ({what}); reload the page."
        ) from None
