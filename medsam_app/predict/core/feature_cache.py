"""Cache with a limit in bytes that evicts the least recently used entries."""

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
    """Least recently used cache bounded in bytes; safe to share between threads.

    A value larger than the whole bound is handed out and not kept.

    Args:
        limit: bytes that the cached values may hold together.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise SettingsError(f"A cache cannot hold {limit} bytes; give 0 or more.")
        self.limit = limit
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._held = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._held

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """The value of a key, which becomes the most recently used, or None."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value, forgetting others until all fit."""
        size = value.nbytes
        with self._lock:
            old = self._values.pop(key, None)
            self._held -= 0 if old is None else old.nbytes
            if size > self.limit:
                return
            self._values[key] = value
            self._held += size
            while self._held > self.limit:
                self._held -= self._values.popitem(last=False)[1].nbytes

    def get_or_make(self, key: Hashable, make: Callable[[], Value]) -> tuple[Value, bool]:
        """Return the value of a key, computed if missing, and whether it was computed.

        Two threads that miss the same key at once both make it: the lock is not held meanwhile.
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
            self._held = 0


class EmbeddingCache(BytesCache):
    """Embeddings of windows, keyed by model, volume and window; share one between predictors."""
