"""Settings of a folder run, without a dependency on torch."""

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

#: Format of the label maps of a folder: one format, or that of each image.
OutputFormat = Literal["nii.gz", "nii", "nrrd", "mha", "input"]
#: Prompts derived from each label of a coarse mask: its bounding box, its deepest voxel, or both.
MaskPrompts = Literal["box", "point", "both"]
#: An absolute path, which is valid for other processes as well.
_AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class BatchSettings(BaseModel):
    """Settings that, with images and prompts, determine the masks of a folder.

    Attributes:
        model: name of the model.
        weights: checkpoint instead of the published one.
        adapter: file of an adapter.
        prompts: a folder of prompt files, a CSV table of points and boxes, or None for prompt files next to
            the images.
        masks: a folder of coarse masks, used instead of prompts.
        from_masks: prompts derived from them.
        jitter: random displacement of these boxes as a fraction of their size; points are then random, with
            deeper voxels more likely. 0 for the exact box and the deepest voxel.
        seed: seed of the jitter.
        automatic: segment the labels of the adapter or the network without prompts.
        net: a network of `medsam-app finetune --baseline`, instead of an adapter.
        only: names or values of the labels to segment; empty for all.
        largest: keep only the largest connected component of each label.
        refine: draw the outlines of large objects finely; None for the prompt file's setting, or
            yes.
        frame, channel: for images that contain several.
        other_image: whether to accept prompt files of other images on the same grid.
        format: format of the label maps.
        separate: write one file per object into a folder with the name of the case, instead of one label map.
        probabilities: also write the probability of each object, as NIfTI.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = DEFAULT_MODEL
    weights: _AbsolutePath | None = None
    adapter: _AbsolutePath | None = None
    prompts: _AbsolutePath | None = None
    masks: _AbsolutePath | None = None
    from_masks: MaskPrompts = "box"
    jitter: float = Field(0.0, ge=0, le=0.5)
    seed: int = Field(0, ge=0, lt=2**63)
    automatic: bool = False
    net: _AbsolutePath | None = None
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
        """Return the settings that determine the results, by name; files are replaced by their hashes."""
        from medsam_app.models.download import sha256_of

        weights = (
            model_entry(self.model).checkpoint.sha256 if self.weights is None else sha256_of(self.weights)
        )
        adapter = None if self.adapter is None else read_header(self.adapter).sha256
        paths = {"weights", "adapter", "prompts", "masks", "net"}
        return {
            "version": __version__,
            **self.model_dump(mode="json", exclude=paths),
            "weights": weights,
            "adapter": adapter,
            "net": None if self.net is None else sha256_of(self.net),
        }


def make_settings(values: Mapping[str, Any]) -> BatchSettings:
    """Return settings from their fields, with all checks that need no image.

    Raises:
        SettingsError: a field is unknown or out of range, or fields exclude each other.
        ModelError, AdapterError, VolumeError: the model, adapter, prompts or masks do not exist.
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
    sources = {"prompts": settings.prompts, "masks": settings.masks, "automatic": settings.automatic or None}
    names = [name for name, value in sources.items() if value is not None]
    if len(names) > 1:
        raise SettingsError(
            f"'{names[0]}' and '{names[1]}' both say where the objects are; give one of them."
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
