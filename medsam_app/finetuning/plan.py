"""Plan of a fine-tuning run, fixed before it starts; free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from medsam_app.adapters.table import adapter_kind, check_settings
from medsam_app.errors import InvalidField, SettingsError, invalid_fields, setting_problem, unknown_name
from medsam_app.models.table import MODELS, model_entry
from medsam_app.training.run_settings import RunSettings, TimeUnit

#: Families of models that can be trained, with the divisor of the sides of their windows.
WINDOW_MULTIPLES = {"sam3d": 16, "sam3d_vit": 32}

_Positive = Annotated[int, Field(ge=1)]
_Side = Annotated[int, Field(ge=16, le=512, multiple_of=16)]
_Value = Annotated[int, Field(ge=1)]
_Part = Annotated[float, Field(ge=0, lt=1)]


class Plan(RunSettings):
    """Plan of a fine-tuning run.

    Attributes:
        base: name of the base model. It is frozen; the adapter holds everything that is learned. adapter,
        settings: kind of adapter in `ADAPTER_KINDS`, and its settings. decoder: whether the mask decoder is
        trained too, as copies in the adapter. labels: names of the labels to learn, by value. spacing:
        isotropic voxel size of the windows in mm. window: voxels along the axes closest to RAS. clip: lowest
        and highest intensity passed to the model, in the file's unit; None for no limits. minutes: length of
        the run as a time; None if it is a number of steps. steps: length of the run as a number of updates;
        None if it is a time. batch: windows per update, over all processes. micro_batch: windows at a time in
        one process; None for its full share of the batch. checkpointing: whether activations are recomputed
        instead of stored, which saves memory and costs time. cached: whether the encoder is frozen and the
        embeddings of fixed windows are cached. Only the decoder
            and the learned prompts are trained then.
        learning_rate: peak learning rate, reached after the warm-up.
        weight_decay: weight decay of AdamW, except for learned prompts.
        warmup_steps: updates over which the learning rate rises.
        ema: decay of the running average of the trained tensors; the average is saved.
        rounds: fewest and most decodes per example; each one after the first follows another click.
        automatic: whether each label gets a learned prompt, which segments it without a click.
        mirror: whether windows are randomly mirrored along each axis, for labels that have no side.
        rotate: largest rotation around each axis in degrees; 0 for none, as for the next five.
        zoom: largest relative change of size.
        noise: largest standard deviation of noise, as a fraction of the window's range of intensities.
        gamma: contrast exponents range from 1 - gamma to 1 + gamma.
        blur: largest standard deviation of a Gaussian blur, in voxels of the window.
        bias: largest coefficient of a smooth change of brightness across the window.
        held_out: fraction of the cases that are used for validation and not for training.
        validate_minutes: training time between two validations if the length is a time; 0 for none.
        validate_steps: updates between two validations if the length is a number of updates; 0 for none.
        patience: validations without improvement after which the run ends; 0 for never.
        save_minutes: time between two saves of the run's state.
        seed: seed of all random choices.
        split: split of the dataset to use; None for all cases.
        datasets: names of the datasets to use, in a folder of several; empty for all.
        most_cases: most cases of each dataset, evenly spread, including held-out ones; None for all.
    """

    TIME = TimeUnit("minutes", 60, "{:.1f} of {:g} min")

    base: str = "sam3d_tiny"
    adapter: str = "spatial"
    settings: dict[str, JsonValue] = {}
    decoder: bool = True
    labels: dict[_Value, Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    spacing: float = Field(gt=0)
    window: tuple[_Side, _Side, _Side]
    clip: tuple[float, float] | None = None
    minutes: float | None = Field(None, gt=0)
    steps: _Positive | None = None
    batch: _Positive = 4
    micro_batch: _Positive | None = None
    checkpointing: bool = False
    cached: bool = False
    learning_rate: float = Field(0.002, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: _Positive = 20
    ema: _Part = 0.99
    rounds: tuple[_Positive, _Positive] = (1, 3)
    automatic: bool = True
    mirror: bool = False
    rotate: float = Field(15.0, ge=0, le=180)
    zoom: _Part = 0.15
    noise: _Part = 0.05
    gamma: float = Field(0.2, ge=0, le=4)
    blur: float = Field(0.5, ge=0, le=8)
    bias: _Part = 0.2
    held_out: float = Field(0.15, gt=0, lt=0.9)
    validate_minutes: float = Field(3.0, ge=0)
    validate_steps: int = Field(100, ge=0)
    patience: int = Field(8, ge=0)
    save_minutes: float = Field(3.0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)
    split: str | None = None
    datasets: tuple[str, ...] = ()
    most_cases: _Positive | None = None

    @field_validator("base")
    @classmethod
    def _trainable(cls, base: str) -> str:
        if model_entry(base).family not in WINDOW_MULTIPLES:
            known = ", ".join(name for name, entry in MODELS.items() if entry.family in WINDOW_MULTIPLES)
            raise ValueError(
                f"The model '{base}' ({MODELS[base].summary}) cannot be taught here: windows in 3D and a "
                f"mask decoder of this package are needed; take one of {known}."
            )
        return base

    @field_validator("adapter")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        return adapter_kind(kind).name

    @field_validator("clip")
    @classmethod
    def _lowest_first(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and clip[0] >= clip[1]:
            raise ValueError(
                f"'clip' is the lowest intensity, then the highest; got {clip[0]:g}, {clip[1]:g}."
            )
        return clip

    @field_validator("rounds")
    @classmethod
    def _fewest_first(cls, rounds: tuple[int, int]) -> tuple[int, int]:
        if rounds[0] > rounds[1]:
            raise ValueError(f"'rounds' is the fewest, then the most; got {rounds[0]}, {rounds[1]}.")
        return rounds

    @model_validator(mode="after")
    def _agrees(self) -> Plan:
        check_settings(self.adapter, self.settings)
        self.check_length()
        multiple = WINDOW_MULTIPLES[model_entry(self.base).family]
        if any(side % multiple for side in self.window):
            sides = " x ".join(str(side) for side in self.window)
            raise ValueError(
                f"The sides of windows of {self.base} are multiples of {multiple}; 'window' is {sides}."
            )
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(
                f"'micro_batch' is a part of 'batch', which is {self.batch}; got {self.micro_batch}."
            )
        if self.cached and not (self.decoder or self.automatic):
            raise ValueError(
                "With 'cached' only the decoder and learned prompts are taught; set 'decoder' or 'automatic'."
            )
        return self

    def text(self) -> str:
        """Return the plan as JSON with every field; `read_plan` is the inverse."""
        return self.model_dump_json(indent=2) + "\n"


def read_plan(file: Path) -> Plan:
    """Return the plan in a JSON file written by `Plan.text`.

    Raises:
        MedsamError: the file does not exist, or a field is unknown, missing or out of its range.
    """
    return make_plan(read_settings(file), source=f"The plan {file}")


def read_settings(file: Path) -> dict[str, Any]:
    """Read some fields of a plan from a JSON file, with checked names and unchecked values.

    Raises:
        SettingsError: the file does not exist or is not a JSON object, or a field is unknown.
    """
    try:
        values = _Json.model_validate_json(file.read_bytes()).model_extra or {}
    except OSError as error:
        raise SettingsError(
            f"The settings {file} cannot be read ({error.strerror}); check the path."
        ) from None
    except ValidationError as error:
        problem = invalid_fields(error)[0]
        raise SettingsError(f"{file} does not hold settings as a JSON object: {problem.message}.") from None
    for name in values:
        if name not in Plan.model_fields:
            raise SettingsError(
                f"The settings {file} are wrong: {unknown_name('setting', name, Plan.model_fields)}"
            )
    return values


class _Json(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")


def merge_settings(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return a file's settings overridden by options; an option for the length replaces the file's length."""
    if options.keys() & {"minutes", "steps"}:
        settings = {name: value for name, value in settings.items() if name not in ("minutes", "steps")}
    return settings | options


def make_plan(values: dict[str, Any], *, source: str = "The plan") -> Plan:
    """Return a plan with the given fields.

    Args:
        values: fields of the plan.
        source: description of the values for error messages.

    Raises:
        SettingsError: a field is unknown, missing or out of its range.
        ModelError, AdapterError: the base is unknown, or the adapter does not allow the settings.
    """
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        problem = setting_problem(error, Plan.model_fields) or _describe(invalid_fields(error)[0])
        raise SettingsError(f"{source} is wrong: {problem}") from None


def _describe(field: InvalidField) -> str:
    if field.kind == "missing":
        return f"'{field.name}' is missing; give it."
    return f"'{field.name}': {field.clause}; got {field.value!r}."
