"""Header of an adapter file, version 1; read without torch.

An adapter file is a safetensors file. Its header holds these fields as JSON, in addition to the names and
shapes of the tensors. Every field is validated on reading, and unknown fields are rejected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError, safe_open

from medsam_app.adapters.table import adapter_kind
from medsam_app.errors import AdapterError, invalid_fields

FORMAT: Final = "medsam_app adapter"
VERSION: Final = 1
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Millimetres = Annotated[float, Field(gt=0)]
Voxels = Annotated[int, Field(ge=16, le=512, multiple_of=16)]


class AdapterCard(BaseModel):
    """Information about an adapter for its users.

    Attributes:
        spacing: voxel size of the training windows in mm along (x, y, z), or None.
        window: size of the training windows in voxels along (x, y, z), or None for the model's own size.
        intensity: normalisation of intensities: {"method": "clip", "low": ..., "high": ...} if they are
            clipped before the model's own normalisation; any other value only describes the latter.
        labels: names of the label values that the adapter was trained for.
        licence: licence of the tensors (SPDX); '' if not given.
        training: record of the training: data, steps, options, scores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = None
    window: tuple[Voxels, Voxels, Voxels] | None = None
    intensity: dict[str, JsonValue] = {}
    labels: dict[int, str] = {}
    licence: str = ""
    training: dict[str, JsonValue] = {}

    @property
    def clip(self) -> tuple[float, float] | None:
        """Range that intensities are clipped to before they enter the model, or None."""
        low, high = (self.intensity.get(end) for end in ("low", "high"))
        if self.intensity.get("method") != "clip" or not isinstance(low, float | int):
            return None
        return (float(low), float(high)) if isinstance(high, float | int) and low < high else None


class BaseEntry(BaseModel):
    """Name and weights hash of the model that an adapter belongs to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    sha256: Sha256


class AdapterHeader(AdapterCard):
    """Header of an adapter file: the card, and the fields needed to load the tensors.

    Attributes:
        format: constant that marks adapter files.
        version: version of the file format.
        kind: kind of adapter, a key of `ADAPTER_KINDS`.
        settings: settings of that kind.
        also: names of the base's parameters with trained copies in the file.
        prompts: label values with learned prompts, in the order of the tensors.
        base: the model that the adapter was trained on.
        sha256: hash of the tensors, the kind and the settings, which identifies the adapter.
    """

    format: Literal["medsam_app adapter"] = FORMAT
    version: Literal[1] = VERSION
    kind: str
    settings: dict[str, JsonValue]
    also: tuple[str, ...]
    prompts: tuple[int, ...] = ()
    base: BaseEntry
    sha256: Sha256

    @property
    def card(self) -> AdapterCard:
        """Fields that the user gave on saving."""
        return AdapterCard(**self.model_dump(include=set(AdapterCard.model_fields)))

    def to_strings(self) -> dict[str, str]:
        """Return every field as JSON text, as stored in the file."""
        return {
            name: json.dumps(value, ensure_ascii=False, sort_keys=True)
            for name, value in self.model_dump(mode="json").items()
        }


def check_card(values: Mapping[str, Any]) -> AdapterCard:
    """Return a card from its fields.

    Raises:
        AdapterError: Fields are unknown or have the wrong type; all of them are listed.
    """
    try:
        return AdapterCard.model_validate(dict(values))
    except ValidationError as error:
        raise AdapterError(f"The adapter cannot be described so: {_field_errors(error)}.") from None


def read_header(path: str | Path) -> AdapterHeader:
    """Return the header of an adapter file without reading its tensors.

    Raises:
        AdapterError: The file does not exist, is damaged, or is not an adapter of this version.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise AdapterError(f"There is no adapter file '{path}'; check the path.")
    try:
        with safe_open(path, framework="np") as file:
            strings = file.metadata() or {}
    except SafetensorError:
        raise AdapterError(
            f"'{path.name}' is not a safetensors file, or it is cut short or damaged; copy it again."
        ) from None
    except OSError as error:
        raise AdapterError(
            f"'{path.name}' cannot be read ({error.strerror}); look at its permissions."
        ) from None
    if strings.get("format") != json.dumps(FORMAT):
        raise AdapterError(
            f"'{path.name}' holds tensors, but not an adapter of medsam_app; give a file that Adapter.save "
            "wrote."
        )
    if strings.get("version") != json.dumps(VERSION):
        raise AdapterError(
            f"'{path.name}' is an adapter file of version {strings.get('version')}, but version {VERSION} is "
            "read here; use the medsam_app that wrote it, or a newer one."
        )
    return _parse_header(path, strings)


def header_for(path: Path, model: str) -> AdapterHeader:
    """Return the header of an adapter file after checking that it belongs to a model.

    Raises:
        AdapterError: As for `read_header`; also if the adapter belongs to another model.
    """
    header = read_header(path)
    if header.base.id != model:
        raise AdapterError(
            f"'{path.name}' was made for the model '{header.base.id}', not for '{model}'; give --model "
            f"{header.base.id}, or an adapter of {model}."
        )
    return header


def _parse_header(path: Path, strings: dict[str, str]) -> AdapterHeader:
    values = {}
    for name, text in strings.items():
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            raise AdapterError(
                f"The header of '{path.name}' is damaged: '{name}' is not JSON; copy the file again."
            ) from None
    try:
        header = AdapterHeader.model_validate(values)
    except ValidationError as error:
        raise AdapterError(f"The header of '{path.name}' is wrong: {_field_errors(error)}.") from None
    adapter_kind(header.kind)
    return header


def _field_errors(error: ValidationError) -> str:
    clauses = {"missing": "is missing", "extra_forbidden": "is not a field of an adapter"}
    return "; ".join(
        f"'{field.name}' {clauses.get(field.kind, field.clause)}" for field in invalid_fields(error)
    )
