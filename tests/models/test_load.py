"""Loading of models by name, with small checkpoints in the official layouts, also by the command line."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam_app.adapters.adapter import Adapter
from medsam_app.cli.app import main
from medsam_app.errors import ModelError, SettingsError
from medsam_app.io.volume import Volume
from medsam_app.models.load import choose_device, load_model
from medsam_app.models.published import PublishedNetwork
from medsam_app.models.sam3d_vit import VIT_SHAPES, VitShape
from medsam_app.models.slices import sam2d
from medsam_app.models.slices.sam_package import SamSizes
from medsam_app.models.vit3d import Vit3d
from medsam_app.predict.predictor import VolumePredictor
from medsam_app.prompts.types import Point
from medsam_app.session.session import Session

SMALL = VitShape(48, 4, 3, (1, 3))
SIZES = SamSizes(embed_dim=48, depth=4, heads=3, global_attn_indexes=(1, 3))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ViT-B small; the code is unchanged."""
    monkeypatch.setitem(VIT_SHAPES, "vit_b", SMALL)
    monkeypatch.setitem(sam2d.ARCHITECTURES, "vit_b", SIZES)


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    """Return a checkpoint in SAM's layout with random weights."""
    torch.manual_seed(0)
    path = tmp_path / "sam_vit_b.pth"
    torch.save(sam2d.build_slice_model("sam", "vit_b").state_dict(), path)
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return a checkpoint in the layout of 3DSAM-adapter, including the training script's other entries."""
    torch.manual_seed(0)
    network = PublishedNetwork(dim=48, depth=4, heads=3, global_blocks=(1, 3))
    encoder = dict(network.encoder.state_dict())
    encoder["blocks.0.attn_mask"] = torch.zeros(64, 512, 512)
    prompts = network.prompt_encoder.state_dict()
    path = tmp_path / "best.pth.tar"
    optimizer = torch.optim.AdamW(network.parameters())
    torch.save(
        {
            "encoder_dict": encoder,
            "decoder_dict": network.decoder.state_dict(),
            "feature_dict": [prompts] * 4,
            "encoder_opt": optimizer.state_dict(),
        },
        path,
    )
    return path


def test_sam_in_3d_takes_the_official_layout(sam: Path) -> None:
    official = torch.load(sam, weights_only=True)
    model = load_model("sam3d_vit_b", weights=sam)
    own = model.state_dict()
    name = "encoder.vit.blocks.2.attn.qkv.weight"
    assert torch.equal(own[name], official["image_encoder.blocks.2.attn.qkv.weight"])
    table = "encoder.vit.blocks.1.attn.rel_pos_"
    torch.testing.assert_close(own[f"{table}d"], (own[f"{table}h"] + own[f"{table}w"]) / 2)
    assert model.model_id == "sam3d_vit_b" and len(model.weights_sha256) == 64


def test_a_state_of_its_own_is_taken_too(sam: Path, tmp_path: Path) -> None:
    model = load_model("sam3d_vit_b", weights=sam)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    again = load_model("sam3d_vit_b", weights=tmp_path / "own.pth").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_checkpoints_of_other_networks_are_named(
    sam: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"holds no weights by name.*encoder_dict"):
        load_model("sam_vit_b", weights=published)
    with pytest.raises(ModelError, match="needs the published 3DSAM-adapter"):
        load_model("3dsam_adapter_vit_b", weights=sam)
    # Names and shapes of ViT-L, in a file without data.
    with torch.device("meta"):
        large = Vit3d(**asdict(VIT_SHAPES["vit_l"])).state_dict()
    state = {f"image_encoder.{key}": torch.zeros(()).expand(value.shape) for key, value in large.items()}
    torch.save({key: value for key, value in state.items() if not key.endswith("rel_pos_d")}, sam)
    monkeypatch.setitem(VIT_SHAPES, "vit_b", VitShape(768, 12, 12, (2, 5, 8, 11)))
    with pytest.raises(ModelError, match=r"ViT-L .*but sam3d_vit_b needs SAM ViT-B"):
        load_model("sam3d_vit_b", weights=sam)


def test_a_checkpoint_with_a_hole_is_refused(sam: Path, tmp_path: Path) -> None:
    state = torch.load(sam, weights_only=True)
    del state["image_encoder.blocks.3.mlp.lin1.bias"]
    torch.save(state, tmp_path / "hole.pth")
    with pytest.raises(ModelError, match=re.escape("1 missing (first blocks.3.mlp.lin1.bias)")):
        load_model("sam3d_vit_b", weights=tmp_path / "hole.pth")


def test_a_task_sets_the_intensities_of_the_published_model(published: Path) -> None:
    known = load_model("3dsam_adapter_vit_b_liver", weights=published)
    assert known.window == (-48, 163, 60.057533, 40.198017)
    assert load_model("3dsam_adapter_vit_b", weights=published).window is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam3d_vit_b", "sam_vit_b", "medsam_vit_b"])
def test_segment_a_real_ct_from_the_command_line(
    name: str,
    sam: Path,
    shared_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Segment with random weights: the mask has the image's grid, contains the click and can be replayed."""
    image = shared_data / "msd_spleen_crop" / "spleen_2_image.nii.gz"
    label = np.asarray(nib.load(shared_data / "msd_spleen_crop" / "spleen_2_label.nii.gz").dataobj) > 0
    depth = ndimage.distance_transform_edt(np.pad(label, 1))[1:-1, 1:-1, 1:-1]
    click = tuple(int(v) for v in np.unravel_index(depth.argmax(), depth.shape))
    common = ["--model", name, "--weights", str(sam), "--device", "cpu", "--no-refine"]
    first, second = tmp_path / "first.nii.gz", tmp_path / "second.nii.gz"
    prompts = tmp_path / "case.prompts.json"
    arguments = ["segment", str(image), "--point", ",".join(map(str, click)), "-o", str(first), *common]
    assert main([*arguments, "--save-prompts", str(prompts)]) == 0, capsys.readouterr().err
    mask = nib.load(first)
    np.testing.assert_array_equal(mask.affine, nib.load(image).affine)
    result = np.asarray(mask.dataobj) > 0
    assert result.shape == label.shape and result[click]
    assert main(["segment", str(image), "--prompts", str(prompts), "-o", str(second), *common[:-1]]) == 0
    np.testing.assert_array_equal(np.asarray(nib.load(second).dataobj) > 0, result)


@pytest.mark.slow
def test_an_adapter_is_switched_on_and_named_in_the_prompt_file(
    sam: Path, tmp_path: Path, phantom_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model("sam3d_vit_b", weights=sam)
    adapter = Adapter.create("lora", model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    adapter.save(tmp_path / "organs.safetensors")
    common = ["--model", "sam3d_vit_b", "--weights", str(sam), "--device", "cpu", "--no-refine"]
    prompts = tmp_path / "case.prompts.json"
    arguments = ["segment", str(phantom_file), "--point", "30,30,20", *common]
    own = ["-o", str(tmp_path / "a.nii.gz"), "--adapter", str(tmp_path / "organs.safetensors")]
    assert main([*arguments, *own, "--save-prompts", str(prompts)]) == 0, capsys.readouterr().err
    assert '"organs"' in prompts.read_text()
    replay = ["segment", str(phantom_file), "--prompts", str(prompts), "-o", str(tmp_path / "b.nii.gz")]
    assert main([*replay, *common[:-1]]) == 0
    assert "written with the adapter organs, and here none is on" in capsys.readouterr().err
    tiny = ["segment", str(phantom_file), "--point", "30,30,20", "-o", str(tmp_path / "c.nii.gz")]
    assert main([*tiny, "--adapter", str(tmp_path / "organs.safetensors")]) == 2
    assert "sam3d_tiny" in capsys.readouterr().err


@pytest.fixture
def phantom_file(tmp_path: Path) -> Path:
    """Write a small volume with a bright ball."""
    lines = np.meshgrid(*[np.arange(n) - n / 2 for n in (60, 60, 40)], indexing="ij")
    array = (sum(line**2 for line in lines) < 15**2) * 100
    path = tmp_path / "ball.nii.gz"
    nib.save(nib.Nifti1Image(array.astype(np.int16), np.diag([1.0, 1.0, 1.5, 1.0])), path)
    return path


@pytest.mark.parametrize("device", ["meta", "vulkan", "nowhere"])
def test_devices_that_cannot_compute_are_refused(device: str) -> None:
    with pytest.raises(SettingsError, match=f"'{device}'"):
        choose_device(device)


@pytest.mark.slow
def test_a_session_sees_which_adapter_is_on(sam: Path) -> None:
    model = load_model("sam_vit_b", weights=sam)
    adapter = Adapter.create("ssf", model)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    array = np.random.default_rng(0).normal(size=(24, 20, 4)).astype(np.float32)
    session = Session(Volume.from_array(array, np.diag([1.0, 1.0, 4.0, 1.0])), VolumePredictor(model))
    asked = session.add_object()
    session.add_prompt(asked.id, Point(coordinates=(12, 10, 2)))
    alone = session.prediction(asked.id)
    adapter.enable()
    adapted = session.prediction(asked.id)
    assert alone is not None and adapted is not None
    assert not np.array_equal(alone.mask, adapted.mask)
    adapter.disable()
    again = session.prediction(asked.id)
    assert again is not None and np.array_equal(again.mask, alone.mask)


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "backbone.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})
    assert capsys.readouterr().out.strip() == "torch.Size([1, 192, 4, 2, 6])"
