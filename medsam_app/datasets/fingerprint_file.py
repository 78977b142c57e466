"""Files of fingerprints, which avoid reading all volumes of a dataset again."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from medsam_app.atomic import save_whole
from medsam_app.datasets.fingerprint import Fingerprint
from medsam_app.errors import DatasetError, invalid_fields

_FINGERPRINT = TypeAdapter(Fingerprint)


def save_fingerprint(file: Path, fingerprint: Fingerprint) -> None:
    """Write a fingerprint as JSON.

    Raises:
        SaveError: the file could not be written.
    """
    save_whole(file, _FINGERPRINT.dump_json(fingerprint, indent=1).decode() + "\n")


def read_fingerprint(file: Path) -> Fingerprint:
    """Return the fingerprint in a file, equal to the one that was saved.

    Raises:
        DatasetError: the file cannot be read, or holds no fingerprint of this version.
    """
    try:
        return _FINGERPRINT.validate_json(file.read_bytes())
    except OSError as error:
        raise DatasetError(
            f"The fingerprint {file} cannot be read ({error.strerror}); check the path."
        ) from None
    except ValidationError as error:
        field = invalid_fields(error)[0]
        where = field.name or "the file"
        raise DatasetError(
            f"{file} is no fingerprint of this version ({where}: {field.message}); take it away, and the "
            "dataset is read again."
        ) from None
