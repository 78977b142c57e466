"""Script that serves the browser app: `python app.py [IMAGE] [--labels FILE]`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from medsam_app.errors import MedsamError


def main() -> None:
    """Serve on this machine only; `medsam-app serve --help` has more options."""
    parser = argparse.ArgumentParser(description="Open the browser app on this machine.")
    parser.add_argument("image", nargs="?", type=Path, help="opened at the start; without it, a sample")
    parser.add_argument("--labels", type=Path, help="CSV or JSON with the objects to offer")
    arguments = parser.parse_args()
    # Spinning OpenMP threads make a click several times slower when the cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from medsam_app.browser.app import serve
    from medsam_app.browser.options import ServeOptions
    from medsam_app.session.label_set import read_label_set

    try:
        labels = () if arguments.labels is None else read_label_set(arguments.labels)
        serve(ServeOptions(image=arguments.image, labels=labels))
    except MedsamError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
