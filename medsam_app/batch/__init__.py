"""Segment a folder of volumes unattended, resumable, with a record of every case."""
