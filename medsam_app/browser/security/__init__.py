"""Who may use the server: accounts, origins, hosts, lockout."""
