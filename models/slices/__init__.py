"""Slice models: SAM, MedSAM, SAM-Med2D and LiteMedSAM."""
