"""Settings of a folder run; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from medsam_app._version import __version__
from medsam_app.adapters.header import read_header
from medsam_app.errors import AdapterError, PromptFileError, SettingsError, VolumeError, invalid_fields
from medsam_app.models.table import DEFAULT_MODEL, model_entry
from medsam_app.predict.model_choice import ModelChoice

#: How the label maps of a folder are written: in one format, or each in that of its image.
OutputFormat = Literal["nii.gz", "nii", "nrrd", "mha", "input"]
#: What is taken of a coarse mask: the box around each label, its deepest voxel, or both.
Taken = Literal["box", "point", "both"]
#: A path that other processes find too.
_WholePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class BatchSettings(BaseModel):
    """Settings that decide the masks of a folder, besides images and prompts.

    Attributes:
        model: name of the model. weights: a checkpoint in place of the published one. adapter: its file.
        prompts: a folder of prompt files, a CSV table of points and boxes, or None for prompt files next to
            the images.
        masks: a folder of coarse masks that say where objects are, instead of prompts.
        from_masks: what is taken of them.
        jitter: how unsteady these boxes are, as a fraction of the box; points are then drawn at random,
            deeper voxels being likelier. 0 for the box as it is and the deepest voxel.
        seed: of what is drawn.
        automatic: no prompts: the labels that the adapter or the net was trained on.
        net: a network of `medsam-app finetune --baseline`, instead of an adapter.
        only: names or values of those that are looked for; none named for all.
        largest: whether of each of them only the largest connected part is kept.
        refine: whether outlines of large objects are drawn finely; None as a prompt file says, or yes.
        frame, channel: of images that hold several.
        other_image: whether prompt files of other images on the same grid are accepted.
        format: of the label maps.
        separate: one file an object in a folder of the case's name, instead of one label map.
        probabilities: also maps of the probability of each object, in NIfTI.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = DEFAULT_MODEL
    weights: _WholePath | None = None
    adapter: _WholePath | None = None
    prompts: _WholePath | None = None
    masks: _WholePath | None = None
    from_masks: Taken = "box"
    jitter: float = Field(0.0, ge=0, le=0.5)
    seed: int = Field(0, ge=0, lt=2**63)
    automatic: bool = False
    net: _WholePath | None = None
    only: tuple[str, ...] = ()
    largest: bool = False
    refine: bool | None = None
    frame: int | None = Field(None, ge=0)
    channel: int | None = Field(None, ge=0)
    other_image: bool = False
    format: OutputFormat = "nii.gz"
    separate: bool = False
    probabilities: bool = False

    @property
    def model_choice(self) -> ModelChoice:
        """The model with its weights and adapter."""
        return ModelChoice(name=self.model, weights=self.weights, adapter=self.adapter)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the results, by name; hashes instead of files."""
        from medsam_app.models.download import sha256_of

        weights = (
            model_entry(self.model).checkpoint.sha256 if self.weights is None else sha256_of(self.weights)
        )
        adapter = None if self.adapter is None else read_header(self.adapter).sha256
        skipped = {"weights", "adapter", "prompts", "masks", "net"}
        return {
            "version": __version__,
            **self.model_dump(mode="json", exclude=skipped),
            "weights": weights,
            "adapter": adapter,
            "net": None if self.net is None else sha256_of(self.net),
        }


def make_settings(values: Mapping[str, Any]) -> BatchSettings:
    """Settings from their fields, checked as far as that can be done without an image.

    Raises:
        SettingsError: a field that is unknown or out of its range, or fields that exclude each other.
        ModelError, AdapterError, VolumeError: no such model, adapter, prompts or masks.
    """
    try:
        settings = BatchSettings.model_validate(dict(values))
    except ValidationError as error:
        field = invalid_fields(error)[0]
        raise SettingsError(
            f"The setting '{field.name}' is wrong: {field.clause}; got {field.value!r}."
        ) from None
    _check_combination(settings)
    choice = settings.model_choice
    choice.check()
    for path in (settings.prompts, settings.masks, settings.net):
        if path is not None and not path.exists():
            raise VolumeError(f"There is no file or folder '{path}'; check the path.")
    if settings.automatic:
        choice.check_labels(settings.only)
    return settings


def _check_combination(settings: BatchSettings) -> None:
    ways = {"prompts": settings.prompts, "masks": settings.masks, "automatic": settings.automatic or None}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise SettingsError(
            f"'{given[0]}' and '{given[1]}' both say where the objects are; give one of them."
        )
    if settings.automatic and settings.adapter is None and settings.net is None:
        raise AdapterError(
            "'automatic' finds the labels that an adapter or a net was taught; give one, or give prompts or "
            "masks."
        )
    if settings.net is not None and (not settings.automatic or settings.adapter is not None or settings.only):
        raise SettingsError("'net' finds all labels that it was taught; give it with 'automatic' alone.")
    if not settings.automatic and (settings.only or settings.largest):
        raise SettingsError("'only' and 'largest' are for 'automatic'; give them with it, or leave them out.")
    if settings.masks is None and (settings.from_masks != "box" or settings.jitter):
        raise SettingsError(
            "'from_masks' and 'jitter' are for 'masks'; give them with it, or leave them out."
        )
    if settings.prompts is not None and settings.prompts.suffix == ".json":
        raise PromptFileError(
            f"'{settings.prompts}' is the prompt file of one image; for a folder give the folder that holds "
            "the prompt files, or a CSV table."
        )
    if settings.masks is not None and not settings.masks.is_dir():
        raise VolumeError(f"'{settings.masks}' is a file; give the folder that holds a mask for each image.")
