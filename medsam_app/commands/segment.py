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
    from medsam_app.prompts.types import AnyPrompt
    from medsam_app.session.objects import SegmentedObject
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
    alternative: int | None
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


def segment(options: Segmentation) -> None:
    """Segment one image and save its label map; options are checked before anything slow starts."""
    _check_targets(options)
    _check_combination(options)
    options.model.check()
    if options.automatic:
        _check_automatic(options)
    with step(f"Reading {options.image.name}"):
        from medsam_app.io.loading import load_volume

        volume = load_volume(
            options.image, series=options.series, frame=options.frame, channel=options.channel
        )
    for remark in volume.notes:
        note(f"Note: {remark}")
    prompts = [] if options.prompt_file or options.automatic else _prompts(options, volume.grid)
    with step(f"Loading {options.model.name}"):
        from medsam_app.models.load import choose_device
        from medsam_app.predict.predictor import VolumePredictor

        model = options.model
        device, device_sentence = choose_device(model.device)
        predictor = VolumePredictor(
            model.name, weights=model.weights, adapter=model.adapter, device=str(device)
        )
    note(device_sentence)
    if options.automatic:
        _segment_labels(options, volume, predictor)
    else:
        _segment_objects(options, volume, predictor, prompts)


def _segment_labels(options: Segmentation, volume: Volume, predictor: VolumePredictor) -> None:
    """Segment the labels of the adapter without prompts."""
    predictor.set_volume(volume)
    with step("Looking for labels") as progress:
        label_map = predictor.predict_labels(
            labels=options.only or None, largest=options.largest, progress=progress
        )
    for value, ml in label_map.volumes_ml().items():
        say(f"{label_map.names[value]} (label {value}): {ml:.2f} ml")
        if not ml:
            note(f"Warning: '{label_map.names[value]}' was not found; it has no voxels.")
    _save(options, volume, label_map.array, label_map.names)


def _segment_objects(
    options: Segmentation,
    volume: Volume,
    predictor: VolumePredictor,
    prompts: Sequence[AnyPrompt],
) -> None:
    """Segment objects from the prompts of a file or of the options."""
    from medsam_app.session.session import Session

    session = Session(volume, predictor)
    if options.prompt_file is not None:
        for remark in session.load_prompts(options.prompt_file, other_image=options.other_image):
            note(f"Warning: {remark}")
    else:
        session_object = session.add_object(options.name, label=options.label)
        for prompt in prompts:
            session.add_prompt(session_object.id, prompt)
        if options.label in predictor.learned:
            session.settings = replace(session.settings, by_label=True)
            note(f"The adapter has learned label {options.label}, {predictor.learned[options.label]}.")
    if options.refine is not None:
        session.settings = replace(session.settings, refine=options.refine)
    _run(session)
    _save(options, volume, session.label_map(), session.label_names)
    if options.save_prompts is not None:
        say(
            f"Saved {session.save_prompts(options.save_prompts)}: "
            f"prompts of {len(session.objects)} object(s)."
        )


def _save(options: Segmentation, volume: Volume, labels: NDArray, names: Mapping[int, str]) -> None:
    with step(f"Writing {options.output.name}"):
        from medsam_app.io.writing import save_mask

        saved = save_mask(labels, volume, options.output, label_names=names)
    say(f"Saved {saved}: {_geometry(volume)}; affine, shape and labels were checked by reading it back.")


def _geometry(volume: Volume) -> str:
    """Return shape, spacing and orientation of a volume as text."""
    from medsam_app.grid.geometry import format_mm

    grid = volume.grid
    return f"{' x '.join(str(n) for n in grid.shape)} voxels, {format_mm(grid.spacing)}, {grid.orientation}"


def _check_targets(options: Segmentation) -> None:
    """Reject outputs that cannot or should not be written."""
    check_image(options.image)
    if not options.output.name.lower().endswith(WRITABLE):
        raise SaveError(
            f"The mask cannot be written as {options.output.name}; end its name in {', '.join(WRITABLE)}."
        )
    if options.save_prompts is not None and options.save_prompts.suffix.lower() != ".json":
        raise SaveError(
            f"The prompt file cannot be named {options.save_prompts.name}; end it in .prompts.json."
        )
    sources = [options.image] if options.mask is None else [options.image, options.mask]
    for target in filter(None, (options.output, options.save_prompts)):
        check_target(target, sources=sources, overwrite=options.overwrite)


def _check_automatic(options: Segmentation) -> None:
    """Check the requested labels of an adapter without loading it."""
    if options.model.adapter is None:
        raise AdapterError(
            "--automatic finds the labels that an adapter was taught; give one with --adapter, or say where "
            "the object is with --point, --box, --mask or --prompts."
        )
    options.model.check_labels(options.only)


def _check_combination(options: Segmentation) -> None:
    has_prompts = bool(options.points or options.negatives or options.boxes or options.mask)
    if options.automatic:
        other_options = (
            options.prompt_file,
            options.save_prompts,
            options.label,
            options.name,
            options.refine,
            options.alternative,
        )
        if (
            has_prompts
            or options.world
            or options.other_image
            or any(value is not None for value in other_options)
        ):
            raise SettingsError(
                "--automatic goes without prompts, and the adapter says labels and names; leave out --point, "
                "--negative, --box, --mask, --prompts, --save-prompts, --world, --other-image, --label, "
                "--name, --alternative and --refine, and choose labels by --only."
            )
        return
    if options.only or options.largest:
        raise SettingsError("--only and --largest are for --automatic; give them with it, or leave them out.")
    if options.prompt_file is not None:
        others = (options.label, options.name, options.alternative)
        if has_prompts or options.world or any(value is not None for value in others):
            raise SettingsError(
                "--prompts brings objects, labels and prompts of its own; give it without "
                "--point, --negative, --box, --mask, --alternative, --label, --name and --world."
            )
    elif not has_prompts:
        raise PromptError(
            "Nothing says where the object is; give --point, --box, --mask or --prompts, or --automatic with "
            "an adapter that was taught labels."
        )
    elif not (options.points or options.boxes or options.mask):
        raise PromptError("Negative points say only where the object is not; add --point, --box or --mask.")
    for option, texts in (
        ("--point", options.points),
        ("--negative", options.negatives),
        ("--box", options.boxes),
    ):
        for text in texts:
            _numbers(option, text)


def _prompts(options: Segmentation, grid: Grid) -> list[AnyPrompt]:
    """Return the prompts of the options, in voxel indices, in the order of their use."""
    from medsam_app.io.loading import load_mask
    from medsam_app.prompts.types import Box, MaskPrompt, Point, check_prompts, with_choice
    from medsam_app.session.prompt_schema import voxel_of, world_box

    prompts: list[AnyPrompt] = []
    if options.mask is not None:
        prompts.append(MaskPrompt.from_array(load_mask(options.mask, grid)))
    for text in options.boxes:
        low, high = (a := _numbers("--box", text))[:3], a[3:]
        prompts.append(world_box(low, high, grid) if options.world else Box(lower=low, upper=high))
    for option, texts in (("--point", options.points), ("--negative", options.negatives)):
        for text in texts:
            position = _numbers(option, text)
            position = voxel_of(position, grid) if options.world else position
            prompts.append(Point(coordinates=position, positive=option == "--point"))
    check_prompts(prompts, grid)
    return prompts if options.alternative is None else with_choice(prompts, options.alternative)


def _numbers(option: str, text: str) -> Any:
    """Return the 3 numbers of a point or the 6 of a box."""
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
    """Predict the mask of every object and print the results."""
    from medsam_app.prompts.types import Point, format_voxel
    from medsam_app.session.objects import prompt_words

    for session_object in session.objects:
        with step(f"Segmenting {session_object.name}") as progress:
            prediction = session.prediction(session_object.id, progress=progress)
        if prediction is None:
            note(f"Warning: no prompt says where '{session_object.name}' is; it has no voxels.")
            continue
        honoured = len(session_object.prompts) - len(prediction.unmet)
        count = f"all {honoured}" if not prediction.unmet else f"{honoured} of {len(session_object.prompts)}"
        say(
            f"{session_object.name} (label {session_object.label}): {prediction.volume_ml:.2f} ml, "
            f"predicted quality {prediction.score:.2f}, {count} prompts honoured"
        )
        for index in prediction.unmet:
            prompt = session_object.prompts[index]
            words = prompt_words(prompt)
            if isinstance(prompt, Point):
                words += f" at {format_voxel(prompt.coordinates)}"
            note(
                f"Warning: the mask of '{session_object.name}' does not honour prompt {index + 1}, "
                f"the {words}."
            )
        if not prediction.voxels:
            note(f"Warning: the mask of '{session_object.name}' is empty.")
        _list_alternatives(session, session_object)
    for first, second, voxels in session.overlaps():
        owner = second if session.settings.overlap == "later" else first
        shared = f"'{first.name}' and '{second.name}' share {voxels} voxels"
        note(f"Note: {shared}; in the file these belong to '{owner.name}'.")


def _list_alternatives(session: Session, session_object: SegmentedObject) -> None:
    """Print the masks that the first prompt may mean, if another one can be chosen cheaply."""
    from medsam_app.prompts.types import can_choose

    chosen = session.choice(session_object.id) is not None
    if chosen or not can_choose(session_object.prompts) or not session.offers_quickly:
        return
    with step("Looking for other masks"):
        masks = session.alternatives(session_object.id)
    if len(masks) > 1:
        listed = (
            f"{mask.number}: {mask.prediction.volume_ml:.2f} ml (quality {mask.prediction.score:.2f}"
            f"{', this one' if mask.shown else ''})"
            for mask in masks
        )
        note(f"Other masks for this prompt by --alternative N: {', '.join(listed)}.")
