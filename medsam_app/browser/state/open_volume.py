"""Open volume of a workspace, with all state that is discarded with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from medsam_app.browser.state.comparison import Reference
from medsam_app.io.volume import Volume
from medsam_app.measure.measurements import Measurement
from medsam_app.measure.surface_mesh import Surface
from medsam_app.predict.core.prediction import MaskPrediction
from medsam_app.session.session import Session
from medsam_app.worklist.case_session import CaseWork


@dataclass(eq=False)
class OpenVolume:
    """Volume, the session on it, and values derived from its masks.

    Attributes:
        number: number of the volume in the workspace, counted from 1; 'opened' in the protocol.
        session: session on the volume.
        name: name of the volume without file ending.
        header: header of the volume as sent to the page.
        case: work on a case of a worklist; None if the volume is not a case.
        notes: sentences for the page, sent with the next state.
        reference: mask file that the objects are compared with.
        measurements: measurements by key of the mask.
        surfaces: surfaces by key of the mask.
    """

    number: int
    session: Session
    name: str
    header: dict[str, Any]
    case: CaseWork | None = None
    notes: list[str] = field(default_factory=list)
    reference: Reference | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)
    surfaces: dict[str, Surface] = field(default_factory=dict)
    _keys: dict[Hashable, str] = field(default_factory=dict)

    @property
    def volume(self) -> Volume:
        """The volume."""
        return self.session.volume

    @property
    def unit(self) -> str:
        """Unit of the intensities; empty if unknown."""
        return "HU" if self.header and self.header["ct"] else ""

    @property
    def restored(self) -> bool:
        """Whether the objects come from an earlier session, so that their masks may not be computed yet."""
        return self.case is not None and bool(self.session.objects)

    def masks(self, progress: Callable[[str, float | None], None]) -> dict[str, tuple[str, MaskPrediction]]:
        """Return the key and the mask of each object that has a mask, by id of the object.

        Masks computed from the same prompts have equal keys. The browser caches masks by key, so that undo
        and redo do not send them again.

        Args:
            progress: callback with the text and fraction of the current step.
        """
        masks = {}
        for item in self.session.objects:
            prediction = self.session.prediction(item.id, progress=progress)
            if prediction is not None:
                mask_key = self.session.mask_key(item.id)
                key = self._keys.setdefault(mask_key, f"v{self.number}m{len(self._keys)}")
                masks[item.id] = (key, prediction)
        return masks

    def keep_work(self) -> dict[str, Any] | None:
        """Store the work on the case of a worklist; return its state for the page, or None without a case."""
        if self.case is None:
            return None
        self.case.keep(self.session)
        problem = self.case.problem
        return {
            "name": self.case.name,
            "version": self.case.version,
            "problem": problem.sentence if problem else "",
            "conflict": problem is not None and problem.conflict,
        }
