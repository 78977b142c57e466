"""What the commands of the command line do. Results go to stdout; progress and warnings to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_app.commands.checks import check_model
from medsam_app.console import step
from medsam_app.errors import SettingsError, VolumeError
from medsam_app.session.label_set import read_label_set

if TYPE_CHECKING:  # heavy: imported inside the commands that need them
    pass


def serve(
    image: Path | None,
    *,
    host: str,
    port: int,
    roots: Sequence[Path],
    worklist: Path | None,
    model: str,
    weights: Path | None,
    adapter: Path | None,
    device: str,
    auth: Sequence[str],
    auth_file: Path | None,
    session_memory: float | None,
    open_browser: bool,
    labels: Path | None = None,
) -> None:
    check_model(model, weights, adapter)
    if image is not None and not image.exists():
        raise VolumeError(f"There is no file or folder {image}; give the path of an image.")
    for root in roots:
        if not root.is_dir():
            raise SettingsError(f"--root {root} is not a folder; give a folder whose files may be opened.")
    if worklist is not None and not worklist.is_dir():
        raise SettingsError(f"--worklist {worklist} is not a folder; make it, or give another.")
    if labels is not None:
        read_label_set(labels)
    from medsam_app.browser.security.accounts import read_accounts

    pairs = read_accounts(auth, auth_file)
    with step("Loading the browser app"):
        from medsam_app.browser import app
    app.serve(
        image,
        host=host,
        port=port,
        roots=list(roots),
        worklist=worklist,
        model=model,
        weights=weights,
        adapter=adapter,
        device=device,
        open_browser=open_browser,
        auth=pairs or None,
        session_bytes=None if session_memory is None else int(session_memory * 1e9),
        labels=labels,
    )
