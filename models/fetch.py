"""Fetching one file of known size over HTTP, however often the connection breaks. Free of torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, BinaryIO, cast

#: Called with what is being done, bytes done and bytes in all.
Progress = Callable[[str, int, int], None]

#: Seconds to wait for a connection, and for the next bytes of it.
PATIENCE = (15.0, 60.0)
#: Seconds before each new attempt; attempts that get further than any before them are not counted.
PAUSES = (1.0, 3.0, 10.0, 30.0)
_CHUNK = 1 << 18


class NotFetched(Exception):
    """Why a file did not come, as the end of a sentence."""


def fetch(url: str, file: BinaryIO, *, size: int, progress: Progress | None = None) -> None:
    """Fill an empty file from a URL. A connection that breaks is resumed where it broke.

    Args:
        url: http or https; redirects are followed.
        file: open for writing in binary, and empty.
        size: bytes that the file has.
        progress: called with what is being done, bytes done and bytes in all.

    Raises:
        NotFetched: no connection, no answer, or a file of another size.
        OSError: the file cannot be written.
    """
    import requests

    furthest, pauses = 0, iter(PAUSES)
    while True:
        try:
            _connect(url, file, size, progress)
            if file.tell() == size:
                return
            reason = f"the file ends after {file.tell()} of {size} bytes"
        except requests.HTTPError as error:
            answer = cast(requests.Response, error.response)
            code = answer.status_code
            reason = f"the server answers {code} ({answer.reason})"
            if code < 500 and code not in (408, 416, 429):  # asking again would not help
                raise NotFetched(reason) from None
        except requests.RequestException as error:
            reason = _in_words(error)
        if file.tell() <= furthest:
            pause = next(pauses, None)
            if pause is None:
                raise NotFetched(reason)
            time.sleep(pause)
        furthest = max(furthest, file.tell())


def _connect(url: str, file: BinaryIO, size: int, progress: Progress | None) -> None:
    """One connection: append to the file what it lacks, or begin again where the server cannot do that."""
    import pooch

    from medsam_app._version import __version__

    def begin(response: Any, **_: Any) -> None:
        if response.status_code in (200, 416):  # all of it; or no such part of it
            file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length", str(size))
        if response.status_code == 200 and length != str(size):
            response.close()
            raise NotFetched(f"there is a file of {length} bytes now, not the published one of {size}")

    # Without an encoding, lengths and positions are those of the file.
    headers = {"User-Agent": f"medsam-app/{__version__}", "Accept-Encoding": "identity"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    get = pooch.HTTPDownloader(
        progressbar=_Meter(file, size, progress),
        chunk_size=_CHUNK,
        timeout=PATIENCE,
        headers=headers,
        hooks={"response": begin},
    )
    get(url, file, None)


class _Meter:
    """Progress bar for pooch that also stops a file that is too long."""

    total = 0  # set by pooch to what the server says

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None) -> None:
        self._file, self._size, self._progress = file, size, progress

    def update(self, _: int) -> None:
        done = self._file.tell()
        if done > self._size:
            raise NotFetched(f"the server sends more than the {self._size} bytes of the published file")
        if self._progress is not None:
            self._progress("Downloading", done, self._size)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def _in_words(error: Exception) -> str:
    from requests import exceptions

    if isinstance(error, exceptions.Timeout) or "timed out" in str(error):
        return "the server does not answer"
    if isinstance(error, exceptions.SSLError):
        return "the server's certificate could not be verified"
    if isinstance(error, exceptions.ProxyError):
        return "the proxy lets nothing through"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection breaks again and again"
    if isinstance(error, exceptions.ConnectionError):
        return "there is no connection"
    return type(error).__name__
