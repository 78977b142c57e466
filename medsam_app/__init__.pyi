"""Public names of medsam_app and the modules that define them: the only list, read by `__init__.py`, too."""

from ._version import __version__ as __version__
from .adapters.adapter import Adapter
from .adapters.adapter_set import AdapterSet
from .adapters.header import read_header
from .adapters.table import ADAPTER_KINDS
from .batch.record import CaseRecord
from .batch.run import segment_folder
from .batch.settings import BatchSettings
from .datasets.cases import Case
from .datasets.find import find_cases
from .datasets.fingerprint import fingerprint
from .errors import (
    AdapterError,
    DatasetError,
    GridMismatch,
    MedsamError,
    ModelError,
    PromptError,
    PromptFileError,
    SaveError,
    SettingsError,
    VolumeError,
    WorklistError,
)
from .evaluate.files import write_scores
from .evaluate.gallery import Gallery
from .evaluate.report import write_report
from .evaluate.run import evaluate_folder
from .finetuning.plan import Plan
from .io.loading import load_mask, load_volume
from .io.monai_reader import VolumeReader
from .io.volume import Volume, make_volume
from .io.writing import save_mask
from .models.load import load_model
from .models.sam3d_vit import VitShape, build_sam3d_vit
from .predict.predictor import VolumePredictor
from .prompts.types import Box, Choice, MaskPrompt, Paint, Point, Scribble
from .session.prompt_file import read_prompt_file
from .session.session import Session

__all__ = [
    "ADAPTER_KINDS",
    "Adapter",
    "AdapterError",
    "AdapterSet",
    "BatchSettings",
    "Box",
    "Case",
    "CaseRecord",
    "Choice",
    "DatasetError",
    "Gallery",
    "GridMismatch",
    "MaskPrompt",
    "MedsamError",
    "ModelError",
    "Paint",
    "Plan",
    "Point",
    "PromptError",
    "PromptFileError",
    "SaveError",
    "Scribble",
    "Session",
    "SettingsError",
    "VitShape",
    "Volume",
    "VolumeError",
    "VolumePredictor",
    "VolumeReader",
    "WorklistError",
    "build_sam3d_vit",
    "evaluate_folder",
    "find_cases",
    "fingerprint",
    "load_mask",
    "load_model",
    "load_volume",
    "make_volume",
    "read_header",
    "read_prompt_file",
    "save_mask",
    "segment_folder",
    "write_report",
    "write_scores",
]
