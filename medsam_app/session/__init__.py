"""Work of one user on one volume: objects with prompts, undo, and prompt files."""
