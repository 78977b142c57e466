"""Archive of a case as one .zip: masks, prompts, measurements, and provenance."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app._version import __version__
from medsam_app.atomic import replace_file
from medsam_app.errors import SaveError
from medsam_app.io.mask_formats import ending_of, plain_name, save_labels
from medsam_app.measure.measurements import Measurement, area_table, measure, object_table

if TYPE_CHECKING:  # heavy
    from medsam_app.session.session import Session

FORMAT = "medsam_app case"


def measure_all(session: Session, known: Mapping[str, Measurement] | None = None) -> dict[str, Measurement]:
    """Return the measurements of all objects with a mask by object id.

    Args:
        session: session whose objects are measured.
        known: measurements that are reused, by object id.
    """
    measurements = dict(known or {})
    for item in session.objects:
        prediction = session.prediction(item.id) if item.id not in measurements else None
        if prediction is not None:
            measurements[item.id] = measure(prediction.patch, session.volume.array, session.volume.grid)
    return measurements


def save_case(
    session: Session,
    path: Path,
    *,
    name: str,
    format: str = "nifti",
    unit: str = "",
    measured: Mapping[str, Measurement] | None = None,
    screenshot: bytes | None = None,
) -> Path:
    """Write a case as a .zip, verify it by reading it back, then rename it to its final name.

    Contents of the .zip:
        `<name>_mask` in the requested format,
        `objects/` with one mask per object, if masks overlap,
        `<name>.prompts.json`,
        `measurements.csv` and `areas.csv` (columns: `medsam_app.measure.measurements`),
        `screenshot.png`, if given,
        `about.json`: versions, image, model, adapter, objects, and the SHA-256 of every other file.

    Args:
        session: session with at least one mask.
        path: target; ends in .zip.
        name: name of the case.
        format: format of the masks, one of `medsam_app.io.formats.MASK_SUFFIXES`.
        unit: unit of the intensities, for the table.
        measured: measurements that are reused, by object id.
        screenshot: PNG file.

    Raises:
        SaveError: there is no mask, or a file could not be written or did not read back as written.
        SettingsError: the format is unknown.
    """
    ending = ending_of(format)
    masks = {item.id: session.prediction(item.id) for item in session.objects}
    if not any(masks.values()):
        raise SaveError("There is no mask to save yet; click inside an object first.")
    volume, case = session.volume, plain_name(name)
    measurements = measure_all(session, measured)
    rows = [
        (item.label, item.name, measurements[item.id]) for item in session.objects if item.id in measurements
    ]
    colours = {item.label: item.colour for item in session.objects}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".case-") as contents:
        folder = Path(contents)
        names = session.label_names
        save_labels(
            session.label_map(), volume, folder / f"{case}_mask{ending}", names=names, colours=colours
        )
        if session.overlaps():
            (folder / "objects").mkdir()
            for item in session.objects:
                if (prediction := masks[item.id]) is None:
                    continue
                target = folder / "objects" / f"{item.label}_{plain_name(item.name)}{ending}"
                save_labels(prediction.mask, volume, target, names={1: item.name}, colours={1: item.colour})
        session.save_prompts(folder / f"{case}.prompts.json")
        (folder / "measurements.csv").write_text(object_table(rows, unit=unit), encoding="utf-8")
        (folder / "areas.csv").write_text(area_table(rows), encoding="utf-8")
        if screenshot is not None:
            (folder / "screenshot.png").write_bytes(screenshot)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        about = _about(session, name) | {"files": {_inner(file, folder): _sha256(file) for file in files}}
        (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        try:
            with replace_file(path) as draft:
                with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
                    for file in [*files, folder / "about.json"]:
                        archive.write(file, _inner(file, folder))
                _verify(draft, about["files"])
        except OSError as error:
            raise SaveError(
                f"'{path.name}' could not be written ({error.strerror or error}); free some space or save "
                "elsewhere."
            ) from error
    return path


def _inner(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _verify(draft: Path, files: Mapping[str, str]) -> None:
    """Check the .zip against the SHA-256 of the files that it must hold."""
    with zipfile.ZipFile(draft) as archive:
        for name, expected in files.items():
            if hashlib.sha256(archive.read(name)).hexdigest() != expected:
                raise SaveError(f"'{draft.name}' did not read back as written; nothing was saved.")


def _about(session: Session, name: str) -> dict[str, Any]:
    """Return the contents of about.json: a record of everything that determines the masks."""
    volume, model = session.volume, session.identity
    adapter = (
        {"id": model.adapter_id, "sha256": model.adapter_sha256} if model and model.adapter_sha256 else None
    )
    return {
        "format": FORMAT,
        "version": 1,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": {"medsam_app": __version__, "python": platform.python_version(), **_libraries()},
        "case": name,
        "image": {
            "name": volume.source.name if volume.source is not None else name,
            "sha256": volume.fingerprint,
            "shape": [int(n) for n in volume.shape],
            "spacing_mm": [float(v) for v in volume.spacing],
            "modality": volume.modality,
            "series": volume.series,
            "frame": volume.frame,
            "channel": volume.channel,
        },
        "model": {"id": model.model_id, "sha256": model.weights_sha256} if model else None,
        "adapter": adapter,
        "settings": asdict(session.settings),
        "objects": [
            {"label": item.label, "name": item.name, "colour": item.colour, "prompts": len(item.prompts)}
            for item in session.objects
        ],
    }


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "monai", "numpy")}
