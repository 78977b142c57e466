"""Resumable download of one file of known size over HTTP; free of torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, BinaryIO, cast

#: Callback with the name of the activity, the bytes done and the total bytes.
Progress = Callable[[str, int, int], None]

#: Timeouts in seconds: for the connection, and for the next bytes.
TIMEOUTS = (15.0, 60.0)
#: Delays in seconds before each new attempt. An attempt that gets further than all before is not counted.
RETRY_DELAYS = (1.0, 3.0, 10.0, 30.0)
#: Bytes received at a time.
_CHUNK = 1 << 18


class NotFetched(Exception):
    """Failed download; the message is a clause for the end of a sentence."""


def fetch(url: str, file: BinaryIO, *, size: int, progress: Progress | None = None) -> None:
    """Download a URL into an empty file; a broken download resumes where it stopped.

    Args:
        url: http or https address; redirects are followed.
        file: empty binary file, open for writing.
        size: expected size in bytes.
        progress: callback, see `Progress`.

    Raises:
        NotFetched: There is no connection, the server does not respond, or the file has another size.
        OSError: The file cannot be written.
    """
    import requests

    most_received, delays = 0, iter(RETRY_DELAYS)
    while True:
        try:
            _connect(url, file, size, progress)
            if file.tell() == size:
                return
            reason = f"the file ends after {file.tell()} of {size} bytes"
        except requests.HTTPError as error:
            response = cast(requests.Response, error.response)
            code = response.status_code
            reason = f"the server answers {code} ({response.reason})"
            if code < 500 and code not in (408, 416, 429):  # a retry would not help
                raise NotFetched(reason) from None
        except requests.RequestException as error:
            reason = _describe(error)
        if file.tell() <= most_received:
            delay = next(delays, None)
            if delay is None:
                raise NotFetched(reason)
            time.sleep(delay)
        most_received = max(most_received, file.tell())


def _connect(url: str, file: BinaryIO, size: int, progress: Progress | None) -> None:
    """Append the missing bytes by one connection, or start again if the server cannot send a part."""
    import pooch

    from medsam_app._version import __version__

    def check_response(response: Any, **_: Any) -> None:
        if response.status_code in (200, 416):  # the whole file, or the range is not available
            file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length", str(size))
        if response.status_code == 200 and length != str(size):
            response.close()
            raise NotFetched(f"there is a file of {length} bytes now, not the published one of {size}")

    # Without a content encoding, lengths and positions refer to the file itself.
    headers = {"User-Agent": f"medsam-app/{__version__}", "Accept-Encoding": "identity"}
    if file.tell():
        headers["Range"] = f"bytes={file.tell()}-"
    downloader = pooch.HTTPDownloader(
        progressbar=_ProgressAdapter(file, size, progress),
        chunk_size=_CHUNK,
        timeout=TIMEOUTS,
        headers=headers,
        hooks={"response": check_response},
    )
    downloader(url, file, None)


class _ProgressAdapter:
    """Progress bar for pooch that calls `progress` and aborts when more bytes arrive than expected."""

    total = 0  # set by pooch to the length that the server reports

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


def _describe(error: Exception) -> str:
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
