"""What the server holds: workspaces of its users, the queue of the model, worklists, teaching."""
