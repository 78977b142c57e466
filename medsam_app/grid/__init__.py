"""Voxel grids: affine, spacing, orientation, and parts of a volume (windows, patches)."""
