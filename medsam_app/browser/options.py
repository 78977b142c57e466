"""Options of the browser app's server, importable without torch and gradio."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from medsam_app.errors import SettingsError
from medsam_app.io.paths import check_image
from medsam_app.predict.model_choice import ModelChoice
from medsam_app.session.label_set import Label

#: Largest upload in bytes unless set otherwise.
UPLOAD_BYTES = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of a server, checked on construction.

    Attributes:
        image: volume that a page opens first; the bundled sample by default.
        host: address to listen on; by default only this machine can reach it.
        port: port to listen on; if it is in use, the next free one of ten.
        roots: folders on the server that pages may browse and open files from.
        model: segmentation model.
        open_browser: whether to open the page in this machine's browser.
        auth: (name, password) pairs of accounts; None disables the login.
        upload_bytes: size of the largest upload in bytes.
        session_bytes: memory for all volumes and masks together, in bytes; half of the machine's by default.
        worklist: folder for worklists and the masks of accepted cases; None to keep them with the data.
        labels: objects that pages offer to add.

    Raises:
        SettingsError: a root or `worklist` is not a folder.
        VolumeError: the image does not exist.
        ModelError, AdapterError: from `ModelChoice.check`.
    """

    image: Path | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    roots: tuple[Path, ...] = ()
    model: ModelChoice = field(default_factory=ModelChoice)
    open_browser: bool = True
    auth: tuple[tuple[str, str], ...] | None = None
    upload_bytes: int = UPLOAD_BYTES
    session_bytes: int | None = None
    worklist: Path | None = None
    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        self.model.check()
        if self.image is not None:
            check_image(self.image)
        for root in self.roots:
            if not root.is_dir():
                raise SettingsError(
                    f"--root {root} is not a folder; give a folder whose files may be opened."
                )
        if self.worklist is not None and not self.worklist.is_dir():
            raise SettingsError(f"--worklist {self.worklist} is not a folder; make it, or give another.")
