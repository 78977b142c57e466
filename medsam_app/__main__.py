"""Entry point of `python -m medsam_app`, equivalent to `medsam-app`."""

from __future__ import annotations

import sys

from medsam_app.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
