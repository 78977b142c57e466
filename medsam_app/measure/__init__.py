"""Measurements of masks: volumes, diameters, surfaces, distances and scores."""
