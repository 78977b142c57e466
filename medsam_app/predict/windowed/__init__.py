"""Engine of 3D models: choose a window, encode it, decode prompts, redraw outlines in tiles."""
