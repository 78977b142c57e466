"""Segment medical volumes by clicking, in bulk, or with a model taught on your own data."""

__version__ = "0.1.0"
