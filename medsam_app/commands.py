"""What the commands of the command line do. Results go to stdout; progress and warnings to stderr."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from medsam_app.adapters.header import read_header
from medsam_app.errors import AdapterError, ModelError, PromptError, SaveError, SettingsError, VolumeError
from medsam_app.models.table import model_entry

if TYPE_CHECKING:  # heavy: imported inside the commands that need them
    from medsam_app.geometry import Grid
    from medsam_app.prompts import Box, MaskPrompt, Point
    from medsam_app.session import Session
    from medsam_app.volume import Volume

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What `segment` was asked for; see its options."""

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
    model: str
    weights: Path | None
    adapter: Path | None
    device: str
    save_prompts: Path | None
    other_image: bool
    overwrite: bool


def say(text: str) -> None:
    """A line of the result."""
    Console(highlight=False, markup=False, soft_wrap=True).print(text)


def note(text: str) -> None:
    """A line about the work, apart from the result."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


@contextmanager
def step(text: str) -> Iterator[Any]:
    """Say what is being done: a spinner in a terminal, a line in a log. Yields a `Progress`."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        note(f"{text} ...")
        yield lambda what, done: None
        return
    with console.status(text) as status:
        yield lambda what, done: status.update(f"{text}: {what} ({100 * done:.0f} %)")


def _check_model(model: str, weights: Path | None, adapter: Path | None) -> None:
    """What can be told of the wanted model without loading it.

    Raises:
        ModelError: an unknown name, or no file of weights.
        AdapterError: no adapter's file, or one of another model.
    """
    model_entry(model)
    if weights is not None and not weights.exists():
        raise ModelError(f"There is no file of weights '{weights}'; check the path.")
    if adapter is not None:
        base = read_header(adapter).base.id
        if base != model:
            raise AdapterError(
                f"'{adapter.name}' was made for the model '{base}', not for '{model}'; give --model {base}, "
                f"or an adapter of {model}."
            )


def serve(
    image: Path | None,
    *,
    host: str,
    port: int,
    roots: Sequence[Path],
    model: str,
    weights: Path | None,
    adapter: Path | None,
    device: str,
    auth: Sequence[str],
    open_browser: bool,
) -> None:
    _check_model(model, weights, adapter)
    if image is not None and not image.exists():
        raise VolumeError(f"There is no file or folder {image}; give the path of an image.")
    for root in roots:
        if not root.is_dir():
            raise SettingsError(f"--root {root} is not a folder; give a folder whose files may be opened.")
    pairs = [(user, password) for user, _, password in (each.partition(":") for each in auth)]
    if not all(user and password for user, password in pairs):
        raise SettingsError("--auth is written USER:PASSWORD, neither of them empty.")
    with step("Loading the browser app"):
        from medsam_app.browser import app
    app.serve(
        image,
        host=host,
        port=port,
        roots=list(roots),
        model=model,
        weights=weights,
        adapter=adapter,
        device=device,
        open_browser=open_browser,
        auth=pairs or None,
    )


def segment(asked: Segmentation) -> None:
    # What can be refused is refused before anything slow begins.
    _check_targets(asked)
    _check_combination(asked)
    _check_model(asked.model, asked.weights, asked.adapter)
    with step(f"Reading {asked.image.name}"):
        from medsam_app.volume import load_volume

        volume = load_volume(asked.image, series=asked.series, frame=asked.frame, channel=asked.channel)
    for remark in volume.notes:
        note(f"Note: {remark}")
    prompts = [] if asked.prompt_file else _prompts(asked, volume.grid)
    with step(f"Loading {asked.model}"):
        from medsam_app.models.load import choose_device
        from medsam_app.predictor import VolumePredictor
        from medsam_app.session import Session

        device, chosen = choose_device(asked.device)
        predictor = VolumePredictor(
            asked.model, weights=asked.weights, adapter=asked.adapter, device=str(device)
        )
    note(chosen)
    session = Session(volume, predictor)
    if asked.prompt_file is not None:
        for remark in session.load_prompts(asked.prompt_file, other_image=asked.other_image):
            note(f"Warning: {remark}")
    else:
        added = session.add_object(asked.name, label=asked.label)
        for prompt in prompts:
            session.add_prompt(added.id, prompt)
    if asked.refine is not None:
        session.refine = asked.refine
    _run(session)
    with step(f"Writing {asked.output.name}"):
        from medsam_app.volume import save_mask

        saved = save_mask(session.label_map(), volume, asked.output, label_names=session.label_names)
    say(f"Saved {saved}: {_geometry(volume)}; affine, shape and labels were checked by reading it back.")
    if asked.save_prompts is not None:
        say(f"Saved {session.save_prompts(asked.save_prompts)}: prompts of {len(session.objects)} object(s).")


def info(image: Path, *, series: str | None, frame: int | None, channel: int | None) -> None:
    with step(f"Reading {image.name}"):
        from medsam_app.describe import describe

        found = describe(image, series=series, frame=frame, channel=channel)
    # What the file does not say is left out.
    known = {key.replace("_", " "): value for key, value in found.items() if value not in (None, [], (), {})}
    width = max(map(len, known), default=0)
    for key, value in known.items():
        for number, line in enumerate(_lines(value)):
            say(f"{key if number == 0 else '':<{width}}  {line}")


def _check_targets(asked: Segmentation) -> None:
    """Refuse outputs that could not or should not be written."""
    if not asked.image.exists():
        raise VolumeError(f"There is no file or folder {asked.image}; give the path of an image.")
    if not asked.output.name.lower().endswith(ENDINGS):
        raise SaveError(
            f"The mask cannot be written as {asked.output.name}; end its name in {', '.join(ENDINGS)}."
        )
    if asked.save_prompts is not None and asked.save_prompts.suffix.lower() != ".json":
        raise SaveError(
            f"The prompt file cannot be named {asked.save_prompts.name}; end it in .prompts.json."
        )
    for target in filter(None, (asked.output, asked.save_prompts)):
        if not target.parent.is_dir():
            raise SaveError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
        for source in filter(None, (asked.image, asked.mask)):
            if target.resolve() == source.resolve() or (target.exists() and target.samefile(source)):
                raise SaveError(f"{target} is what is read here and is not overwritten; give another output.")
        if target.exists() and not asked.overwrite:
            raise SaveError(f"{target} exists already; give another name, or --overwrite to replace it.")


def _check_combination(asked: Segmentation) -> None:
    own = bool(asked.points or asked.negatives or asked.boxes or asked.mask)
    if asked.prompt_file is not None:
        if own or asked.label is not None or asked.name is not None or asked.world:
            raise SettingsError(
                "--prompts brings objects, labels and prompts of its own; give it without "
                "--point, --negative, --box, --mask, --label, --name and --world."
            )
    elif not own:
        raise PromptError("Nothing says where the object is; give --point, --box, --mask or --prompts.")
    elif not (asked.points or asked.boxes or asked.mask):
        raise PromptError("Negative points say only where the object is not; add --point, --box or --mask.")
    for option, texts in (("--point", asked.points), ("--negative", asked.negatives), ("--box", asked.boxes)):
        for text in texts:
            _numbers(option, text)


def _prompts(asked: Segmentation, grid: Grid) -> list[Point | Box | MaskPrompt]:
    """The prompts of the options, in voxel indices, in the order in which they are used."""
    from medsam_app.prompt_schema import voxel_of, world_box
    from medsam_app.prompts import Box, MaskPrompt, Point, check_prompts
    from medsam_app.volume import load_mask

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
    """Make every object's mask and say what came of it."""
    from medsam_app.prompts import Point, format_voxel

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
            what = "box or mask"
            if isinstance(prompt, Point):
                sign = "positive" if prompt.positive else "negative"
                what = f"{sign} click at {format_voxel(prompt.coordinates)}"
            note(f"Warning: the mask of '{each.name}' does not honour prompt {index + 1}, the {what}.")
        if not made.patch.any():
            note(f"Warning: the mask of '{each.name}' is empty.")
    for first, second, voxels in session.overlaps():
        owner = second if session.overlap == "later" else first
        shared = f"'{first.name}' and '{second.name}' share {voxels} voxels"
        note(f"Note: {shared}; in the file these belong to '{owner.name}'.")


def _geometry(volume: Volume) -> str:
    from medsam_app.geometry import format_mm

    grid = volume.grid
    return f"{' x '.join(str(n) for n in grid.shape)} voxels, {format_mm(grid.spacing)}, {grid.orientation}"


def _lines(value: Any) -> list[str]:
    """A value of `describe` as lines: numbers on one, everything else on one each."""
    if isinstance(value, dict):
        return [f"{key}: {' '.join(_lines(each))}" for key, each in value.items() if each is not None]
    if isinstance(value, list | tuple):
        if all(isinstance(each, int | float) for each in value):
            return ["  ".join(_lines(each)[0] for each in value)]
        return [line for each in value for line in _lines(each)]
    return [f"{value:g}" if isinstance(value, float) else str(value)]
