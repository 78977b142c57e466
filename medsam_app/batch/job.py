"""Jobs of a folder run and the names of their masks, without a dependency on torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsam_app.batch.prompts import CasePrompts
from medsam_app.batch.record import CaseRecord
from medsam_app.batch.settings import OutputFormat
from medsam_app.errors import SaveError
from medsam_app.io.formats import mask_suffix_for
from medsam_app.io.volume_folder import FoundVolume

#: Cases that one process reads, segments and writes concurrently; the model processes one at a time.
CONCURRENT_CASES = 2


class DiskFull(SaveError):
    """The disk is full: the run ends and can be resumed later."""


@dataclass(frozen=True)
class Job:
    """One case to segment.

    Attributes:
        source: the image.
        prompts: its prompts.
        outputs: path of the label map, or folder of one file per object.
        ending: suffix of the output files.
        settings: hash of the settings that determine the mask.
        key: hash of the input files.
    """

    source: FoundVolume
    prompts: CasePrompts
    outputs: Path
    ending: str
    settings: str
    key: str

    @property
    def case(self) -> str:
        """Name of the case."""
        return self.source.case

    def record(self, **fields: object) -> CaseRecord:
        """Return a record of this case."""
        sources = {
            "prompt file": self.prompts.prompt_file,
            "table": self.prompts.rows,
            "mask": self.prompts.mask,
        }
        prompt_source = next((name for name, value in sources.items() if value), "automatic")
        return CaseRecord(
            case=self.case,
            image=str(self.source.path),
            series=self.source.series,
            asked="" if self.prompts.missing else prompt_source,
            settings=self.settings,
            key=self.key,
            **fields,  # type: ignore[arg-type]
        )


def ending_for(path: Path, format: OutputFormat) -> str:
    """Return the suffix of the masks of an image."""
    return mask_suffix_for(path) if format == "input" else f".{format}"
