"""Access control of the server: accounts, origins, hosts, lockout."""
