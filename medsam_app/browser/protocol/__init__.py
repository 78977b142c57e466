"""Request bodies, binary responses, and the files that may be opened."""
