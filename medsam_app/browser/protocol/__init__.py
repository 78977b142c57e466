"""Request bodies, binary answers, and the files that may be opened."""
