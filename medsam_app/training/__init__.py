"""Shared parts of training runs: loop, loss, checkpoints, simulated users, processes."""
