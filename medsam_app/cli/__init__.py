"""Options of the command line; no heavy imports, so that `--help` is fast."""
