"""Run the command line as a child process that stops when its standard input ends.

The parent process holds the other end of the pipe. When the parent exits, even if it was killed, this process
receives SIGTERM, so that it can save its state and stop.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from medsam_app.cli.app import main


def _stop_with_input() -> None:
    # Read the descriptor directly: an exiting interpreter would wait for the lock of sys.stdin.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_input, daemon=True).start()
    sys.exit(main())
