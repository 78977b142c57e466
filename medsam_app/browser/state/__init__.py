"""Server state: users' workspaces, the model's queue, worklists, teaching."""
