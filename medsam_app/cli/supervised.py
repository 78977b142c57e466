"""Run the command line as a child that is stopped when its standard input ends.

Whoever starts it holds the other end: when that process is gone, killed or not, this one stops too, and may
save what it has.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from medsam_app.cli.app import main


def _stop_with_input() -> None:
    # Not through sys.stdin, whose lock an interpreter that ends would wait for.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_input, daemon=True).start()
    sys.exit(main())
