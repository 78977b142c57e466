"""Checks of a model choice without loading the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_app.adapters.adapter import Adapter
from medsam_app.errors import AdapterError, ModelError
from medsam_app.models.sam3d import build_sam3d_tiny
from medsam_app.predict.model_choice import ModelChoice


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_sam3d_tiny()
    model.model_id, model.weights_sha256 = "sam3d_tiny", "0" * 64
    return Adapter.create("lora", model).save(tmp_path_factory.mktemp("adapter") / "mine.safetensors")


def test_files_that_fit(adapter: Path) -> None:
    ModelChoice().check()
    ModelChoice(weights=adapter, adapter=adapter).check()  # contents are checked on loading


def test_mistakes(adapter: Path) -> None:
    with pytest.raises(ModelError, match="There is no model 'sam3d_tinny'"):
        ModelChoice(name="sam3d_tinny", adapter=adapter).check()
    with pytest.raises(ModelError, match="There is no file of weights"):
        ModelChoice(weights=Path("nowhere.pth")).check()
    with pytest.raises(AdapterError, match="was made for the model 'sam3d_tiny'"):
        ModelChoice(name="sam3d_vit_b", adapter=adapter).check()


def test_an_adapter_without_labels_needs_prompts(adapter: Path) -> None:
    ModelChoice(adapter=adapter).check()
    with pytest.raises(AdapterError, match="was taught no labels"):
        ModelChoice(adapter=adapter).check_labels()
