"""Least recently used cache with a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar

from medsam_app.errors import SettingsError


class Sized(Protocol):
    """Object that reports its memory."""

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""


Value = TypeVar("Value", bound=Sized)


class BytesCache(Generic[Value]):
    """Least recently used cache with a limit in bytes; safe to share between threads.

    A value larger than the limit is returned but not cached.

    Args:
        limit: most bytes of all cached values together.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise SettingsError(f"A cache cannot hold {limit} bytes; give 0 or more.")
        self.limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._nbytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all cached values."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """Return the value of a key and mark it as most recently used; None if it is missing."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Cache a value and evict the least recently used ones until all fit."""
        size = value.nbytes
        with self._lock:
            old = self._values.pop(key, None)
            self._nbytes -= 0 if old is None else old.nbytes
            if size > self.limit:
                return
            self._values[key] = value
            self._nbytes += size
            while self._nbytes > self.limit:
                self._nbytes -= self._values.popitem(last=False)[1].nbytes

    def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> tuple[Value, bool]:
        """Return the value of a key, computed if missing, and whether it was computed.

        If two threads miss the same key at once, both compute it: the lock is not held meanwhile.
        """
        value = self.get(key)
        if value is not None:
            return value, False
        value = make()
        self.put(key, value)
        return value, True

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._values.clear()
            self._nbytes = 0


class EmbeddingCache(BytesCache):
    """Embeddings keyed by model, volume and window or slice; predictors may share one."""
