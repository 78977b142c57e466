"""Prompts: points, boxes, scribbles, masks, painted voxels; and simulated clicks."""
