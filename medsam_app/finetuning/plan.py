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

#: Families of models that can be trained, and what the sides of their windows are multiples of.
TAUGHT = {"sam3d": 16, "sam3d_vit": 32}

_Positive = Annotated[int, Field(ge=1)]
_Side = Annotated[int, Field(ge=16, le=512, multiple_of=16)]
_Value = Annotated[int, Field(ge=1)]
_Part = Annotated[float, Field(ge=0, lt=1)]


class Plan(RunSettings):
    """Plan of a fine-tuning run.

    Attributes:
        base: name of the model that is trained; it stays as it is, what is learned lies in the adapter.
        adapter, settings: a kind of `ADAPTER_KINDS` and its settings.
        decoder: the mask decoder is trained, too, as copies in the adapter.
        labels: names of the labels that are learned, by value.
        spacing: mm of the windows' voxels, the same along each axis.
        window: voxels along the axes closest to RAS.
        clip: lowest and highest intensity that the model is shown, in the file's unit; None for all.
        minutes: time after which the run is done; or
        steps: number of updates after which it is.
        batch: windows an update, over all processes.
        micro_batch: windows at a time in one process; None for all of its share.
        checkpointing: activations are computed again instead of kept, which saves memory and costs time.
        cached: the encoder stays as it is and its embeddings of fixed windows are kept: only the decoder
            and learned prompts are trained.
        learning_rate: at its highest, after the warm-up.
        warmup_steps: updates over which the learning rate rises.
        ema: decay of the running average of what is trained, which is what gets saved.
        rounds: fewest and most decodes an example; each after the first answers a further click.
        automatic: each label becomes a learned prompt, so that it is found without a click.
        mirror: windows are mirrored left to right now and then; for labels that have no side.
        rotate: degrees at most around each axis; 0 for none, as with all that follow.
        zoom: sizes change by this part at most.
        noise: standard deviation of noise at most, as a part of the window's range of intensities.
        gamma: intensities within their range are raised to 1 / (1 + gamma) to 1 + gamma.
        blur: standard deviation of a Gaussian blur at most, in voxels of the window.
        bias: brightness drifts across the window by this part at most.
        held_out: part of the cases that are measured and never learned from.
        validate_minutes: time between two measurements of a run counted in minutes; 0 for none.
        validate_steps: updates between two measurements of a run counted in steps; 0 for none.
        patience: measurements without a better one after which the run ends; 0 for never.
        save_minutes: time between two saves of the run's state.
        seed: of everything that is drawn.
        split: cases of this split of the dataset; None for all.
        datasets: cases of these datasets of a folder that holds several; none named for all.
        most_cases: at most this many cases of each, evenly spread, including the held-out ones; None for all.
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
    def _can_be_taught(cls, base: str) -> str:
        if model_entry(base).family not in TAUGHT:
            known = ", ".join(name for name, entry in MODELS.items() if entry.family in TAUGHT)
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
        multiple = TAUGHT[model_entry(self.base).family]
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
        """JSON of every field, which reads back as the same plan."""
        return self.model_dump_json(indent=2) + "\n"


def read_plan(file: Path) -> Plan:
    """The plan in a JSON file, as `Plan.text` wrote it.

    Raises:
        MedsamError: no such file, or a field that is unknown, missing or out of its range.
    """
    return make_plan(read_settings(file), source=f"The plan {file}")


def read_settings(file: Path) -> dict[str, Any]:
    """Read some fields of a plan from a JSON file, with checked names and unchecked values.

    Raises:
        SettingsError: no such file, no JSON object, or an unknown field.
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


def laid_over(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Merge options over the settings of a file; an option for the length replaces the file's."""
    if options.keys() & {"minutes", "steps"}:
        settings = {name: value for name, value in settings.items() if name not in ("minutes", "steps")}
    return settings | options


def make_plan(values: dict[str, Any], *, source: str = "The plan") -> Plan:
    """A plan from its fields.

    Args:
        source: what the values are, for messages.

    Raises:
        SettingsError: a field that is unknown, missing or out of its range.
        ModelError, AdapterError: an unknown base, or an adapter that cannot be as requested.
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
