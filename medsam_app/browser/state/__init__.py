"""Server state: workspaces of users, queue of the model, worklists, teaching."""
