"""Train the embedded model on synthetic and real windows: `medsam-app pretrain`."""
