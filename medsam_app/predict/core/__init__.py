"""Shared parts of all engines: protocol, predictions, constraints, caching."""
