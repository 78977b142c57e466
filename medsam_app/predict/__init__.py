"""Prediction of masks from prompts, and of label maps from learned labels."""
