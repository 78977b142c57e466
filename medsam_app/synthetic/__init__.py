"""Synthetic volumes with known label maps, for tests, the bundled sample and pretraining."""
