"""Engine of 3D models: window choice, encoding, decoding, and outlines redrawn in tiles."""
