"""Engine of 2D models: encode slices, decode prompts, propagate masks from slice to slice."""
