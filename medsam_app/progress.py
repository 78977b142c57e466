"""Callback type for progress."""

from __future__ import annotations

from collections.abc import Callable

#: Called with a sentence for the user and the fraction done, from 0 to 1.
Progress = Callable[[str, float], None]
