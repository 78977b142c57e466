"""Options of the command line; imports nothing heavy, so that `--help` is quick."""
