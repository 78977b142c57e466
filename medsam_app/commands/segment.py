"""`medsam-app segment` for one image: objects by prompts, or an adapter's labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_app.console import check_target, note, say, step
from medsam_app.errors import AdapterError, PromptError, SaveError, SettingsError
from medsam_app.io.formats import WRITABLE
from medsam_app.io.paths import check_image
from medsam_app.predict.model_choice import ModelChoice

if TYPE_CHECKING:  # heavy: imported inside the functions that need them
    from numpy.typing import NDArray

    from medsam_app.grid.geometry import Grid
    from medsam_app.io.volume import Volume
    from medsam_app.predict.predictor import VolumePredictor
    from medsam_app.prompts.types import Box, MaskPrompt, ModelPrompt, Point
    from medsam_app.session.session import Session


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Options of `medsam-app segment` for one image."""

    image: Path
    output: Path
    points: Sequence[str]
    negatives: Sequence[str]
    boxes: Sequence[str]
    mask: Path | None
    prompt_file: Path | None
    world: bool
    label: int | None
    name: str | None
    refine: bool | None
    series: str | None
    frame: int | None
    channel: int | None
    model: ModelChoice
    save_prompts: Path | None
    other_image: bool
    overwrite: bool
    automatic: bool
    only: Sequence[str]
    largest: bool


def segment(asked: Segmentation) -> None:
    # What can be refused is refused before anything slow begins.
    """Segment one image and save its label map."""
    _check_targets(asked)
    _check_combination(asked)
    asked.model.check()
    if asked.automatic:
        _check_automatic(asked)
    with step(f"Reading {asked.image.name}"):
        from medsam_app.io.loading import load_volume

        volume = load_volume(asked.image, series=asked.series, frame=asked.frame, channel=asked.channel)
    for remark in volume.notes:
        note(f"Note: {remark}")
    prompts = [] if asked.prompt_file or asked.automatic else _prompts(asked, volume.grid)
    with step(f"Loading {asked.model.name}"):
        from medsam_app.models.load import choose_device
        from medsam_app.predict.predictor import VolumePredictor

        model = asked.model
        device, chosen = choose_device(model.device)
        predictor = VolumePredictor(
            model.name, weights=model.weights, adapter=model.adapter, device=str(device)
        )
    note(chosen)
    if asked.automatic:
        _find_labels(asked, volume, predictor)
    else:
        _follow_prompts(asked, volume, predictor, prompts)


def _find_labels(asked: Segmentation, volume: Volume, predictor: VolumePredictor) -> None:
    """The labels of the adapter, without a prompt."""
    predictor.set_volume(volume)
    with step("Looking for labels") as progress:
        found = predictor.predict_labels(labels=asked.only or None, largest=asked.largest, progress=progress)
    for value, ml in found.volumes_ml().items():
        say(f"{found.names[value]} (label {value}): {ml:.2f} ml")
        if not ml:
            note(f"Warning: '{found.names[value]}' was not found; it has no voxels.")
    _save(asked, volume, found.array, found.names)


def _follow_prompts(
    asked: Segmentation,
    volume: Volume,
    predictor: VolumePredictor,
    prompts: Sequence[ModelPrompt],
) -> None:
    """Objects by the prompts of a file or of the options."""
    from medsam_app.session.session import Session

    session = Session(volume, predictor)
    if asked.prompt_file is not None:
        for remark in session.load_prompts(asked.prompt_file, other_image=asked.other_image):
            note(f"Warning: {remark}")
    else:
        added = session.add_object(asked.name, label=asked.label)
        for prompt in prompts:
            session.add_prompt(added.id, prompt)
        if asked.label in predictor.learned:
            session.settings = replace(session.settings, by_label=True)
            note(f"The adapter has learned label {asked.label}, {predictor.learned[asked.label]}.")
    if asked.refine is not None:
        session.settings = replace(session.settings, refine=asked.refine)
    _run(session)
    _save(asked, volume, session.label_map(), session.label_names)
    if asked.save_prompts is not None:
        say(f"Saved {session.save_prompts(asked.save_prompts)}: prompts of {len(session.objects)} object(s).")


def _save(asked: Segmentation, volume: Volume, labels: NDArray, names: Mapping[int, str]) -> None:
    with step(f"Writing {asked.output.name}"):
        from medsam_app.io.writing import save_mask

        saved = save_mask(labels, volume, asked.output, label_names=names)
    say(f"Saved {saved}: {_geometry(volume)}; affine, shape and labels were checked by reading it back.")


def _geometry(volume: Volume) -> str:
    """Shape, spacing and orientation of a volume in words."""
    from medsam_app.grid.geometry import format_mm

    grid = volume.grid
    return f"{' x '.join(str(n) for n in grid.shape)} voxels, {format_mm(grid.spacing)}, {grid.orientation}"


def _check_targets(asked: Segmentation) -> None:
    """Refuse outputs that could not or should not be written."""
    check_image(asked.image)
    if not asked.output.name.lower().endswith(WRITABLE):
        raise SaveError(
            f"The mask cannot be written as {asked.output.name}; end its name in {', '.join(WRITABLE)}."
        )
    if asked.save_prompts is not None and asked.save_prompts.suffix.lower() != ".json":
        raise SaveError(
            f"The prompt file cannot be named {asked.save_prompts.name}; end it in .prompts.json."
        )
    sources = [asked.image] if asked.mask is None else [asked.image, asked.mask]
    for target in filter(None, (asked.output, asked.save_prompts)):
        check_target(target, sources=sources, overwrite=asked.overwrite)


def _check_automatic(asked: Segmentation) -> None:
    """Check the labels of an adapter without loading it."""
    if asked.model.adapter is None:
        raise AdapterError(
            "--automatic finds the labels that an adapter was taught; give one with --adapter, or say where "
            "the object is with --point, --box, --mask or --prompts."
        )
    asked.model.check_labels(asked.only)


def _check_combination(asked: Segmentation) -> None:
    own = bool(asked.points or asked.negatives or asked.boxes or asked.mask)
    if asked.automatic:
        other = (asked.prompt_file, asked.save_prompts, asked.label, asked.name, asked.refine)
        if own or asked.world or asked.other_image or any(each is not None for each in other):
            raise SettingsError(
                "--automatic goes without prompts, and the adapter says labels and names; leave out --point, "
                "--negative, --box, --mask, --prompts, --save-prompts, --world, --other-image, --label, "
                "--name and --refine, and choose labels by --only."
            )
        return
    if asked.only or asked.largest:
        raise SettingsError("--only and --largest are for --automatic; give them with it, or leave them out.")
    if asked.prompt_file is not None:
        if own or asked.label is not None or asked.name is not None or asked.world:
            raise SettingsError(
                "--prompts brings objects, labels and prompts of its own; give it without "
                "--point, --negative, --box, --mask, --label, --name and --world."
            )
    elif not own:
        raise PromptError(
            "Nothing says where the object is; give --point, --box, --mask or --prompts, or --automatic with "
            "an adapter that was taught labels."
        )
    elif not (asked.points or asked.boxes or asked.mask):
        raise PromptError("Negative points say only where the object is not; add --point, --box or --mask.")
    for option, texts in (("--point", asked.points), ("--negative", asked.negatives), ("--box", asked.boxes)):
        for text in texts:
            _numbers(option, text)


def _prompts(asked: Segmentation, grid: Grid) -> list[Point | Box | MaskPrompt]:
    """The prompts of the options, in voxel indices, in the order in which they are used."""
    from medsam_app.io.loading import load_mask
    from medsam_app.prompts.types import Box, MaskPrompt, Point, check_prompts
    from medsam_app.session.prompt_schema import voxel_of, world_box

    found: list[Point | Box | MaskPrompt] = []
    if asked.mask is not None:
        found.append(MaskPrompt.from_array(load_mask(asked.mask, grid)))
    for text in asked.boxes:
        low, high = (a := _numbers("--box", text))[:3], a[3:]
        found.append(world_box(low, high, grid) if asked.world else Box(lower=low, upper=high))
    for option, texts in (("--point", asked.points), ("--negative", asked.negatives)):
        for text in texts:
            at = _numbers(option, text)
            at = voxel_of(at, grid) if asked.world else at
            found.append(Point(coordinates=at, positive=option == "--point"))
    check_prompts(found, grid)
    return found


def _numbers(option: str, text: str) -> Any:
    """The 3 numbers of a point or the 6 of a box."""
    count = 6 if option == "--box" else 3
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(math.isfinite(value) for value in values):
        example = "120,88,40" if count == 3 else "90,60,30,150,120,55"
        raise PromptError(
            f"{option} takes {count} numbers with commas between them, such as {example}; got '{text}'."
        )
    return values


def _run(session: Session) -> None:
    """Predict every object's mask and print the results."""
    from medsam_app.prompts.types import Point, format_voxel
    from medsam_app.session.objects import prompt_words

    for each in session.objects:
        with step(f"Segmenting {each.name}") as progress:
            made = session.prediction(each.id, progress=progress)
        if made is None:
            note(f"Warning: no prompt says where '{each.name}' is; it has no voxels.")
            continue
        honoured = len(each.prompts) - len(made.unmet)
        said = f"all {honoured}" if not made.unmet else f"{honoured} of {len(each.prompts)}"
        say(
            f"{each.name} (label {each.label}): {made.volume_ml:.2f} ml, predicted quality {made.score:.2f}, "
            f"{said} prompts honoured"
        )
        for index in made.unmet:
            prompt = each.prompts[index]
            what = prompt_words(prompt)
            if isinstance(prompt, Point):
                what += f" at {format_voxel(prompt.coordinates)}"
            note(f"Warning: the mask of '{each.name}' does not honour prompt {index + 1}, the {what}.")
        if not made.voxels:
            note(f"Warning: the mask of '{each.name}' is empty.")
    for first, second, voxels in session.overlaps():
        owner = second if session.settings.overlap == "later" else first
        shared = f"'{first.name}' and '{second.name}' share {voxels} voxels"
        note(f"Note: {shared}; in the file these belong to '{owner.name}'.")
