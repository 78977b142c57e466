"""Pretraining of the embedded model on synthetic and real windows."""
