"""Image and mask files: reading, validation, writing and verification."""
