"""One person's work on one volume: objects with prompts, undo, and files that replay it."""
