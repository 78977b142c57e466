"""What all training runs share: loop, loss, checkpoints, simulated users, processes."""
