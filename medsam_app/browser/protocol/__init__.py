"""What crosses the wire: request bodies, binary answers, and the files that may be opened."""
