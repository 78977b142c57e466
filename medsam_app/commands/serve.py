"""`medsam-app serve`: check the options and start the server."""

from __future__ import annotations

from medsam_app.browser.options import ServeOptions
from medsam_app.console import step


def serve(options: ServeOptions) -> None:
    """Serve the browser app until it is interrupted; see `medsam_app.browser.app.serve`."""
    with step("Loading the browser app"):
        from medsam_app.browser import app
    app.serve(options)
