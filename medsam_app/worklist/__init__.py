"""Worklist of a folder: database of cases, and adapters trained on accepted cases."""
