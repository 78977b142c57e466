"""Layouts recognised by file names: two folders, or pairs in one folder."""

from __future__ import annotations

import re
from pathlib import Path

from medsam_app.datasets.gathering import (
    NAMES_FILE,
    CaseCollector,
    Dataset,
    names_in_folder,
    readable_entries,
    volumes_in,
)
from medsam_app.io.formats import is_volume, stem

#: Names of folders of images and of label maps, in lower case.
IMAGE_FOLDERS = ("images", "imagestr", "image", "imgs", "img", "scans", "volumes")
LABEL_FOLDERS = (
    "labels", "labelstr", "label", "masks", "mask", "segmentations", "segmentation", "segs", "seg",
)  # fmt: skip

_IMAGE_ENDING = re.compile(r"[-_. ](image|img|scan|volume)$", re.IGNORECASE)
_LABEL_ENDING = re.compile(
    r"[-_. ](labels?|masks?|segs?|segmentations?|gt|labelmap|label_map)$", re.IGNORECASE
)
_CHANNEL = re.compile(r"_(\d{4})$")


def sibling_folders(folder: Path) -> Dataset | None:
    """Return images and label maps in two folders, matched by name; None if there are no such folders."""
    inside = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    images = [inside[name] for name in IMAGE_FOLDERS if name in inside]
    labels = [inside[name] for name in LABEL_FOLDERS if name in inside]
    if not images or not labels:
        return None
    names, sources = names_in_folder(folder)
    collector = CaseCollector(folder.resolve().name, names)
    for chosen, *rest in (images, labels):
        for extra in rest:
            collector.warning(
                "folder not used",
                "",
                f"{extra} is not used, since {chosen} was taken; move away the one that is not wanted.",
            )
    _match(collector, images[0], labels[0])
    if not collector.cases and not collector.problems:
        return None
    layout = f"two folders, {images[0].name} and {labels[0].name}"
    return collector.finish(folder, layout, names_in=str(folder / NAMES_FILE), sources=sources)


def _match(collector: CaseCollector, image_folder: Path, label_folder: Path) -> None:
    """Pair the files of two folders, equal names first, because an ending may be part of a case name."""
    images = {stem(path): path for path in volumes_in(image_folder, folders=True)}
    labels = {stem(path): path for path in volumes_in(label_folder, folders=True)}
    for image_key, label_key in ((str, str), (_bare_image, _bare_label), (_without_channel, _bare_label)):
        groups: dict[str, list[str]] = {}
        for name in images:
            groups.setdefault(image_key(name), []).append(name)
        for name in list(labels):
            key = label_key(name)
            if key in groups:
                paths = [images.pop(image) for image in groups.pop(key)]
                collector.add(key, paths[0], labels.pop(name), channels=paths if len(paths) > 1 else ())
    collector.cases.sort(key=lambda case: case.case)
    for name, path in labels.items():
        collector.no_image(name, path, str(image_folder / path.name))
    for name, path in images.items():
        collector.no_label(name, path, f"{label_folder / name}.nii.gz")
    warn_of_channels(collector, [])


def label_maps_in(folder: Path) -> list[Path]:
    """Return label maps of a folder that have an image of the same name next to them or in a parallel folder.

    Files that cannot be read are ignored.
    """
    inside = {path.name.lower(): path for path in readable_entries(folder)[1]}
    images = [path for name in IMAGE_FOLDERS if name in inside for path in _volumes(inside[name])]
    labels = [path for name in LABEL_FOLDERS if name in inside for path in _volumes(inside[name])]
    files = _volumes(folder)
    labels_by_ending = [path for path in files if _LABEL_ENDING.search(stem(path))]
    in_folders = _named_as(labels, images)
    return in_folders + _named_as(labels_by_ending, [path for path in files if path not in labels_by_ending])


def _volumes(folder: Path) -> list[Path]:
    return [path for path in readable_entries(folder)[0] if is_volume(path)]


def _named_as(labels: list[Path], images: list[Path]) -> list[Path]:
    """Return the label maps whose name, with or without its ending, is that of an image."""
    names = {key(stem(path)) for path in images for key in (str, _bare_image, _without_channel)}
    return [path for path in labels if not names.isdisjoint((stem(path), _bare_label(stem(path))))]


def _bare_image(name: str) -> str:
    return _IMAGE_ENDING.sub("", name)


def _bare_label(name: str) -> str:
    return _LABEL_ENDING.sub("", name)


def _without_channel(name: str) -> str:
    return _CHANNEL.sub("", _bare_image(name))


def warn_of_channels(collector: CaseCollector, names: list[str]) -> None:
    """Warn once that only the first of several channels is used.

    Args:
        collector: collector of the cases.
        names: names of the channels in order, if the dataset gives them.
    """
    several = [case for case in collector.cases if len(case.channels) > 1]
    if several:
        most = max(len(case.channels) for case in several)
        names = names or [str(number) for number in range(most)]
        collector.warning(
            "channels",
            "",
            f"{len(several)} cases have up to {most} channels ({', '.join(names)}), but a volume has one: "
            f"the first ({names[0]}) is inspected, the others are not used; put another first to use it.",
        )


def suffix_pairs(folder: Path) -> Dataset | None:
    """Return pairs such as x_image and x_label in one folder; None if there is no label map."""
    images: dict[str, list[Path]] = {}
    labels: dict[str, list[Path]] = {}
    for path in volumes_in(folder):
        name = stem(path)
        if _LABEL_ENDING.search(name):
            labels.setdefault(_bare_label(name), []).append(path)
        else:
            images.setdefault(_bare_image(name), []).append(path)
    if not labels:
        return None
    names, sources = names_in_folder(folder)
    collector = CaseCollector(folder.resolve().name, names)
    for key in sorted(images.keys() | labels.keys()):
        if key not in labels:
            for path in images[key]:
                collector.no_label(key, path, f"{folder / key}_label.nii.gz")
        elif key not in images:
            for path in labels[key]:
                collector.no_image(key, path, f"{folder / key}_image.nii.gz")
        else:
            collector.add(key, images[key][0], labels[key][0])
            for used, *rest in (images[key], labels[key]):
                for extra in rest:
                    collector.warning(
                        "file not used",
                        key,
                        f"{extra} is not used, since {used} was taken; move away the one that is not wanted.",
                    )
    layout = "pairs in one folder"
    return collector.finish(folder, layout, names_in=str(folder / NAMES_FILE), sources=sources)
