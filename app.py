"""Open the browser app with the embedded model and the bundled sample: `python app.py [IMAGE]`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from medsam_app.errors import MedsamError


def main() -> None:
    """Serve on this machine only; `medsam-app serve --help` has more options."""
    # Waiting threads that spin make a click several times slower when the cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from medsam_app.browser.app import serve

    try:
        serve(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except MedsamError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
