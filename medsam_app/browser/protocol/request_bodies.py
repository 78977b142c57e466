"""Request bodies: bounded reading and validation."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, ValidationError

#: Largest body of an action, in bytes.
ACTION_BYTES = 8 << 20


class Source(BaseModel):
    """Image to open: the sample, the server's image, a file in a folder, or an upload."""

    model_config = ConfigDict(extra="forbid")
    source: Literal["sample", "start", "folder", "upload"]
    root: int = 0
    path: str = ""
    upload: str = ""
    series: str | None = None
    frame: int | None = None
    channel: int | None = None

    @property
    def location(self) -> tuple[str, int, str, str]:
        """Identity of the file, without the choice of series, frame or channel."""
        return self.source, self.root, self.path, self.upload


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request, of at most `limit` bytes.

    Raises:
        HTTPException: the body is larger (413).
    """
    parts, size = [], 0
    async for block in request.stream():
        size += len(block)
        if size > limit:
            raise HTTPException(413, f"This request is larger than the {limit >> 20} MiB allowed.")
        parts.append(block)
    return b"".join(parts)


def parse_body(kind: type[Any], body: bytes) -> Any:
    """Parse a JSON body as a pydantic model.

    Raises:
        HTTPException: the body is invalid (422), with a sentence about the first problem.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = f"{where}: {first['msg']}"
        raise HTTPException(
            422, f"The server does not understand this request ({problem}); reload the page."
        ) from None
