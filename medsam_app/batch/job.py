"""Jobs of a folder run and the names of their masks; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsam_app.batch.prompts import CasePrompts
from medsam_app.batch.record import CaseRecord
from medsam_app.batch.settings import OutputFormat
from medsam_app.errors import SaveError
from medsam_app.io.formats import mask_suffix_for
from medsam_app.io.volume_folder import FoundVolume

#: Cases that one process reads, segments and writes at the same time; the model processes one of them.
SIDE_BY_SIDE = 2


class NoRoom(SaveError):
    """The disk is full: the run ends and can be resumed later."""


@dataclass(frozen=True)
class Job:
    """One case to segment.

    Attributes:
        found: the volume. asked: what is asked of it.
        outputs: the label map's path, or the folder of its objects' files.
        ending: of the files.
        settings: hash of what decides the mask. key: of the files that are read.
    """

    found: FoundVolume
    asked: CasePrompts
    outputs: Path
    ending: str
    settings: str
    key: str

    @property
    def case(self) -> str:
        """Name of the case."""
        return self.found.case

    def record(self, **fields: object) -> CaseRecord:
        """A record of this case."""
        kinds = {"prompt file": self.asked.prompt_file, "table": self.asked.rows, "mask": self.asked.mask}
        asked = next((name for name, value in kinds.items() if value), "automatic")
        return CaseRecord(
            case=self.case,
            image=str(self.found.path),
            series=self.found.series,
            asked="" if self.asked.missing else asked,
            settings=self.settings,
            key=self.key,
            **fields,  # type: ignore[arg-type]
        )


def ending_for(path: Path, format: OutputFormat) -> str:
    """Return the ending of the masks of an image."""
    return mask_suffix_for(path) if format == "input" else f".{format}"
