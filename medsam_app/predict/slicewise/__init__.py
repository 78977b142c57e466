"""Engine of 2D models: encoding of slices, decoding, and propagation between slices."""
